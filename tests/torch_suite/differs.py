"""PyTorch's tests that fail on fastseq's modules by design: a pattern of the name, and why."""

DIFFERS: dict[str, str] = {
    r"two_masks_fast_path_mock": (
        "it asks whether torch's C++ fast path was called; ours has its own way"
    ),
}
