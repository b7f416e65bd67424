"""transformers' models with fastseq's attention against their eager ones."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

transformers = pytest.importorskip("transformers")

from fastseq.integrations import huggingface  # noqa: E402

COMMON = {"vocab_size": 50, "attn_implementation": "eager", "pad_token_id": 0, "eos_token_id": 1}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 2,
}
PAIR = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
ENCODERS = {"Bert": ("BertForMaskedLM", SIZES)}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 2}),
    "Llama": ("LlamaForCausalLM", GROUPED),
    "Mistral": ("MistralForCausalLM", {**GROUPED, "sliding_window": 4}),
    "Gemma2": (
        "Gemma2ForCausalLM",
        {**GROUPED, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    ),
}
PAIRS = {
    "T5": ("T5ForConditionalGeneration", T5),
    "Bart": ("BartForConditionalGeneration", PAIR),
    "Marian": ("MarianMTModel", PAIR),
}
ALL = {**ENCODERS, **DECODERS, **PAIRS}
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [0, 0, 0, 12, 13, 14, 15]])
PRESENT = TOKENS != 0  # padded on the left


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    huggingface.register()


def pair(name: str) -> tuple[Module, Module]:
    """The model with eager attention, and its copy with ours."""
    kind, options = ALL[name]
    config = getattr(transformers, f"{name}Config")(**COMMON, **options)
    torch.manual_seed(1)
    eager = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for p in eager.parameters():  # the usual initial values are too small to tell masks apart
            p.normal_(std=0.3)
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("fastseq")
    assert ours.config._attn_implementation == "fastseq"
    return eager, ours


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_nothing_is_registered_on_import() -> None:
    huggingface.register("fastseq-other")
    assert "fastseq-other" in transformers.AttentionInterface._global_mapping
    assert "fastseq-another" not in transformers.AttentionInterface._global_mapping


@pytest.mark.parametrize("name", ALL)
def test_outputs_and_gradients(name: str) -> None:
    """With and without padding, in inference and training."""
    models = pair(name)
    for present in (torch.ones_like(PRESENT), PRESENT):
        call = {"input_ids": TOKENS.clamp(min=2), "attention_mask": present.long()}
        if name in PAIRS:
            call["decoder_input_ids"] = TOKENS.flip(1)
        # What a query without keys gets is not defined, and differs.
        seen = torch.ones_like(present) if name in PAIRS else present
        found = []
        for model in models:
            logits = model(**call).logits[seen]
            leaves = [p for p in model.parameters() if p.requires_grad]
            upstream = torch.cos(torch.arange(logits.numel())).view_as(logits)
            found.append(
                [logits, *torch.autograd.grad(logits, leaves, upstream, allow_unused=True)]
            )
        scale = max(x.abs().max().item() for x in found[0] if x is not None)
        for x, y in zip(*found, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-6 * scale)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [*DECODERS, *PAIRS])
def test_generate(name: str, cache: str) -> None:
    """Step by step with a cache, from prompts padded on the left."""
    found = []
    for model in pair(name):
        model.generation_config.disable_compile = True
        options = {"cache_implementation": "static"} if cache == "static" else {}
        found.append(
            model.generate(
                TOKENS, attention_mask=PRESENT.long(), max_new_tokens=9, min_new_tokens=9,
                do_sample=False, output_logits=True, return_dict_in_generate=True, **options,
            )
        )  # fmt: skip
    eager, ours = found
    assert torch.equal(ours.sequences, eager.sequences)
    close(torch.stack(ours.logits), torch.stack(eager.logits))


def test_beam_search() -> None:
    eager, ours = pair("Marian")
    call = {"attention_mask": PRESENT.long(), "num_beams": 3, "max_new_tokens": 6}
    assert torch.equal(eager.generate(TOKENS, **call), ours.generate(TOKENS, **call))


def test_dropout_in_training() -> None:
    _, ours = pair("Llama")
    for layer in ours.model.layers:
        layer.self_attn.attention_dropout = 0.5
    ours.train()
    first, second = (ours(TOKENS).logits for _ in range(2))
    assert not torch.allclose(first, second)
    ours.eval()
    assert torch.equal(ours(TOKENS).logits, ours(TOKENS).logits)


def test_attention_sink_and_paged_cache() -> None:
    q, k, v = (torch.randn(2, h, 5, 8, dtype=torch.float64) for h in (4, 2, 2))
    sink = torch.randn(4, dtype=torch.float64).requires_grad_()
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    out, weights = huggingface.attention_forward(Module(), q, k, v, mask, scaling=0.4, s_aux=sink)
    scores = 0.4 * q @ k.repeat_interleave(2, 1).mT
    scores = scores.masked_fill(~mask, -torch.inf)
    scores = torch.cat([scores, sink.view(1, 4, 1, 1).expand(2, 4, 5, 1)], -1)
    expected = (scores.softmax(-1)[..., :-1] @ v.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    assert weights is None
    torch.testing.assert_close(
        torch.autograd.grad(out.pow(2).sum(), sink),
        torch.autograd.grad(expected.pow(2).sum(), sink),
    )
    with pytest.raises(NotImplementedError, match="continuous batching"):
        huggingface.attention_forward(Module(), q, k, v, mask, cache=object())


def test_additive_mask_with_position_bias() -> None:
    q, k, v = (torch.randn(2, 2, 5, 8, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(1, 2, 5, 5, dtype=torch.float64).requires_grad_()
    added = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    out, _ = huggingface.attention_forward(
        Module(), q, k, v, added, scaling=1.0, position_bias=bias
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias + added, scale=1.0
    ).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.pow(2).sum(), bias),
        torch.autograd.grad(expected.pow(2).sum(), bias),
    )


def test_compile_without_graph_breaks() -> None:
    eager, ours = pair("Llama")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    close(compiled(TOKENS, use_cache=False).logits, eager(TOKENS, use_cache=False).logits)
