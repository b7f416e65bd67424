"""PyTorch's tests that fail on fastseq's modules by design: a pattern of the name, and why."""

_FAST_PATH = "it asks whether torch's C++ fast path was called; ours has its own way"
_SCRIPT = "TorchScript does not compile our modules: `fastseq.unpatch(model)` first"

DIFFERS: dict[str, str] = {
    r"two_masks_fast_path_mock": _FAST_PATH,
    r"test_disable_fastpath|test_mask_check_fastpath": _FAST_PATH,
    r"test_transformerencoderlayer_cpu_float32$": (
        "a query whose keys are all masked: torch's inference path of the layer gives NaN; ours "
        "gives the zeros that torch's own attention gives in training"
    ),
    r"test_scaled_dot_product_attention_\dD_.*_dropout_p_0_[25]": (
        "dropout: weights are drawn by counters from a seed of torch's generator, so one seed "
        "leaves out other weights than in torch"
    ),
    r"test_script_encoder_subclass|test_script_mha_in_proj_weight_none": _SCRIPT,
    r"test_transformerencoderlayer_subclass": _SCRIPT,
    r"test_invalid_sdpa_kernel_grouped_query_attention": (
        "`sdpa_kernel` chooses among torch's own kernels, and warns where none serves; ours does"
    ),
}
