"""Models of every kind with "fastseq": eager's numbers, a warning, or an error."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

transformers = pytest.importorskip("transformers")

from transformers.masking_utils import (  # noqa: E402
    create_bidirectional_mask,
    create_causal_mask,
)

from fastseq.integrations import huggingface  # noqa: E402

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [16, 17, 18, 12, 13, 14, 15]])
PRESENT = torch.ones_like(TOKENS)
PADDED = PRESENT.clone()
PADDED[1, 4:] = 0
BERT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DSA = {
    **BERT,
    "moe_intermediate_size": 16,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 3,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "first_k_dense_replace": 1,
}
NLLB = {
    "vocab_size": 50,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "num_experts": 2,
    "decoder_start_token_id": 2,
}
BLOOM = {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4}
CALLS_OURS: dict[str, tuple[str, dict[str, Any], str]] = {
    # transformers runs these with "eager" only
    "nllb-moe": ("NllbMoeModel", NLLB, "fastseq-additive"),
    "splinter": ("SplinterModel", BERT, "fastseq-additive"),
    "align": ("AlignTextModel", BERT, "fastseq-additive"),
    "deepseek_v32": ("DeepseekV32Model", DSA, "fastseq"),
}
COMPUTES_ITSELF: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomModel", BLOOM),
    "mpnet": ("MPNetModel", BERT),
    "deberta": ("DebertaModel", BERT),
}
HAS_CLASSES: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt_neo": (
        "GPTNeoModel",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global"], 2]],
        },
        "'eager', 'flash_attention_2'",
    ),
    "falcon": ("FalconModel", BLOOM, "'eager', 'sdpa', 'flash_attention_2'"),
    "sam": ("SamVisionModel", {"num_hidden_layers": 1, "image_size": 32}, "'eager', 'sdpa'"),
}


@pytest.fixture(autouse=True)
def registered() -> None:
    huggingface.register()


def built(kind: str, options: dict[str, Any], implementation: Any) -> Module:
    """A model from a configuration, as ``from_pretrained`` builds it, with weights of std 0.3."""
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**copy.deepcopy(options))
    torch.manual_seed(1)
    model = model_class._from_config(config, attn_implementation=implementation).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def hidden(model: Module, present: Tensor | None) -> Tensor:
    more = {"decoder_input_ids": TOKENS.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=TOKENS, attention_mask=present, **more).last_hidden_state


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("present", [None, PRESENT, PADDED], ids=["none", "ones", "padded"])
@pytest.mark.parametrize("name", CALLS_OURS)
def test_models_that_call_the_implementation(name: str, present: Tensor | None) -> None:
    kind, options, chosen = CALLS_OURS[name]
    eager, ours = (built(kind, options, n) for n in ("eager", "fastseq"))
    assert ours.config._attn_implementation == chosen
    close(hidden(ours, present), hidden(eager, present))
    eager.set_attn_implementation("fastseq")  # the other way to it
    assert eager.config._attn_implementation == chosen


@pytest.mark.parametrize("name", COMPUTES_ITSELF)
def test_models_that_compute_attention_themselves(name: str) -> None:
    """One warning that names the class, and eager's numbers."""
    kind, options = COMPUTES_ITSELF[name]
    eager = built(kind, options, "eager")
    _models()._warn_of_own_attention.cache_clear()
    with pytest.warns(UserWarning, match=f"{kind} computes attention by code of its own"):
        ours = built(kind, options, "fastseq")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(kind, options, "fastseq")
    for present in (None, PRESENT, PADDED):
        close(hidden(ours, present), hidden(eager, present))
    # In the configuration of a model that nobody asked: masks to add all the same.
    eager.config._attn_implementation = "fastseq"
    close(hidden(eager, PADDED), hidden(ours, PADDED))


@pytest.mark.parametrize("name", HAS_CLASSES)
def test_models_with_a_class_for_each_implementation(name: str) -> None:
    kind, options, served = HAS_CLASSES[name]
    with pytest.raises(ValueError, match=f'attn_implementation="fastseq".*served by {served}'):
        built(kind, options, "fastseq")


def test_which_attention_a_model_has_is_read_from_its_code() -> None:
    reads = _models()._reads
    assert reads(transformers.LlamaModel) == "interface"
    assert reads(transformers.BloomModel) == "own"
    assert reads(transformers.LlamaForCausalLM) is None  # its LlamaModel answers for itself
    assert list(reads(transformers.GPTJModel)) == ["eager", "flash_attention_2"]


def test_parts_of_a_model() -> None:
    small = {**BERT, "patch_size": 8, "image_size": 16, "max_position_embeddings": 16}
    options = {"text_config": small, "vision_config": small}
    model = built("CLIPModel", options, {"text_config": "fastseq", "vision_config": "eager"})
    assert model.text_model.config._attn_implementation == "fastseq"
    assert model.vision_model.config._attn_implementation == "eager"
    model.set_attn_implementation({"vision_config": "fastseq"})
    assert model.vision_model.config._attn_implementation == "fastseq"


def test_masks_to_add_compile_without_graph_breaks() -> None:
    eager, ours = (built("SplinterModel", BERT, n) for n in ("eager", "fastseq"))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    close(compiled(TOKENS).last_hidden_state, eager(TOKENS).last_hidden_state)


@pytest.mark.parametrize(
    ("queries", "cached", "capacity"), [(7, 0, 7), (7, 0, 12), (3, 4, 12), (1, 6, 7)]
)
@pytest.mark.parametrize("name", ["fastseq", "fastseq-additive"])
def test_masks_say_which_keys_whoever_reads_them(
    name: str, queries: int, cached: int, capacity: int
) -> None:
    """Where a plain mask is dropped, where it is read, and where the model narrows the queries."""
    model = built("LlamaModel", {**BERT, "num_key_value_heads": 4}, "fastseq")
    model.config._attn_implementation = name
    cache = transformers.StaticCache(model.config, max_cache_len=capacity)
    with torch.no_grad():
        if cached:
            model(TOKENS[:, :cached], past_key_values=cache)
    mask = create_causal_mask(model.config, torch.empty(2, queries, 32), None, cache)
    q, k, v = (torch.randn(2, 4, n, 8, dtype=torch.float64) for n in (queries, capacity, capacity))
    expected = _reference(q, k, v, cached)
    call = transformers.AttentionInterface._global_mapping[name]
    layer = model.layers[0].self_attn
    close(call(layer, q, k, v, mask)[0], expected)
    narrow = None if mask is None else mask[:, :, -2:]
    close(call(layer, q[:, :, -2:], k, v, narrow)[0], expected[:, -2:])
    if mask is not None and queries > 1:  # a model that takes a key away
        for row in mask:
            row[..., 0] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        out = call(layer, q, k, v, mask)[0][:, 1:]
        close(out, _reference(q, k, v, cached, first=1)[:, 1:])


@pytest.mark.parametrize("sees_all", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_masks_outweigh_what_a_layer_calls_itself(is_causal: bool, sees_all: bool) -> None:
    """Layers that call themselves causal read Phi-4's pictures, others PaliGemma's texts."""
    small = {**BERT, "num_key_value_heads": 4, "head_dim": 8}
    options = {**small, "use_bidirectional_attention": not is_causal}
    model = built("GemmaModel", options, "fastseq")
    layer = model.layers[0].self_attn
    assert layer.is_causal == is_causal
    q, k, v = (torch.randn(2, 4, 7, 8, dtype=torch.float64) for _ in range(3))
    create = create_bidirectional_mask if sees_all else create_causal_mask
    found = create(model.config, torch.empty(2, 7, 32), None, past_key_values=None)
    out, _ = huggingface.attention_forward(layer, q, k, v, found)
    mask = torch.ones(7, 7, dtype=torch.bool)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask if sees_all else mask.tril()
    )
    close(out, expected.transpose(1, 2))


def _reference(q: Tensor, k: Tensor, v: Tensor, cached: int, first: int = 0) -> Tensor:
    """Causal attention of queries that follow ``cached`` keys, from key ``first`` on."""
    own = torch.arange(q.shape[2])[:, None] + cached
    keys = torch.arange(k.shape[2])
    mask = (keys <= own) & (keys >= first)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


def test_queries_of_shared_keys_see_all_of_them() -> None:
    """Gemma 4's assistant: layers that are causal, fewer queries than keys, and no padding."""
    text = {
        **BERT,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 8,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
    }
    options = {"text_config": text, "backbone_hidden_size": 32}
    call = {
        "inputs_embeds": torch.randn(2, 4, 64),
        "position_ids": torch.arange(5, 9)[None],
        "shared_kv_states": {
            kind: (torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)) for kind in text["layer_types"]
        },
    }
    eager, ours = (built("Gemma4AssistantForCausalLM", options, n) for n in ("eager", "fastseq"))
    with torch.no_grad():
        close(ours(**call).logits, eager(**call).logits)


def _call(**options: Any) -> Tensor:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 8, dtype=torch.float64) for _ in range(3))
    mask = options.pop("mask", torch.ones(5, 5, dtype=torch.bool).tril())
    return huggingface.attention_forward(Module(), q, k, v, mask, **options)[0]


@pytest.mark.parametrize("argument", ["block_indices", "sinks", "sparse_mask"])
def test_arguments_that_nobody_reads_raise(argument: str) -> None:
    with pytest.raises(NotImplementedError, match=f"Module passes {argument} .*not serve"):
        _call(**{argument: torch.zeros(1)})
    assert torch.equal(_call(**{argument: None}, position_ids=torch.arange(5)), _call())


def test_arguments_that_are_read() -> None:
    chosen = torch.tensor([[0, 0], [0, 1], [2, 1], [0, 3], [4, 2]], dtype=torch.int32).expand(
        2, 5, 2
    )
    mask = torch.zeros(5, 5, dtype=torch.bool)
    for query, keys in enumerate(chosen[0].tolist()):
        mask[query, keys] = True
    close(_call(indices=chosen), _call(mask=mask))
    close(_call(indices=chosen, mask=None), _call(mask=mask))
    added = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    close(_call(indices=chosen, mask=added), _call(mask=added.masked_fill(~mask, -torch.inf)))
    huggingface._warn_of_weights.cache_clear()
    with pytest.warns(UserWarning, match="output_attentions"):
        _call(output_attentions=True)
    bounds = torch.tensor([0, 2, 5], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="position_ids"):
        _call(mask=None, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)


@pytest.mark.parametrize("alone", ["query", "key", "all but the mask"])
def test_a_batch_of_one_goes_with_any(alone: str) -> None:
    sizes = {"query": (1, 3, 3), "key": (3, 1, 1), "all but the mask": (1, 1, 1)}[alone]
    q, k, v = (torch.randn(n, 2, 5, 8, dtype=torch.float64).requires_grad_() for n in sizes)
    mask = torch.rand(3, 1, 5, 5) < 0.7
    mask[..., 0] = True
    out = huggingface.attention_forward(Module(), q, k, v, mask)[0]
    wide = (x.expand(3, -1, -1, -1) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, mask).transpose(1, 2)
    close(out, expected)
    for x, y in zip(*(torch.autograd.grad(o.pow(2).sum(), (q, k, v)) for o in (out, expected))):
        close(x, y)


def _models() -> Any:
    from fastseq.integrations import _huggingface_models

    return _huggingface_models
