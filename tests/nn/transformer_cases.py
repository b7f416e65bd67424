"""Transformer modules of either library with the same parameters, their arguments and masks."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

import fastseq

KINDS = (
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerDecoder",
    "Transformer",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch-first": {"batch_first": True},
    "norm-first": {"norm_first": True, "batch_first": True},
    "no-bias": {"bias": False, "batch_first": True},
    "gelu": {"activation": "gelu", "batch_first": True},
    "callable": {"activation": torch.tanh},
    "eps": {"layer_norm_eps": 0.1, "batch_first": True},
}
WIDTH, HEADS, TARGET, SOURCE, BATCH = 12, 2, 5, 7, 3
LENGTHS = torch.tensor([7, 4, 1])
PADDING = torch.arange(SOURCE) >= LENGTHS[:, None]
CAUSAL = torch.nn.Transformer.generate_square_subsequent_mask(SOURCE, dtype=torch.float64)


def build(library: Any, kind: str, **options: Any) -> Module:
    """A module in float64 with the same initial values in either library."""
    torch.manual_seed(4)
    options = {"dropout": 0.0, "dtype": torch.float64, "dim_feedforward": 20, **options}
    if kind == "Transformer":
        return library.Transformer(
            WIDTH, HEADS, num_encoder_layers=2, num_decoder_layers=2, **options
        )
    extra = {k: options.pop(k) for k in ("skip_padding", "mask_check") if k in options}
    layer = getattr(library, kind.removesuffix("Layer") + "Layer")(WIDTH, HEADS, **options)
    if kind.endswith("Layer"):
        return layer
    norm = torch.nn.LayerNorm(WIDTH, dtype=torch.float64)
    with torch.no_grad():
        norm.bias.uniform_()
    return getattr(library, kind)(layer, 2, norm, **extra)


def pair(kind: str, **options: Any) -> tuple[Module, Module]:
    """torch's and ours; random biases and scales too."""
    theirs, ours = build(torch.nn, kind, **options), build(fastseq, kind, **options)
    with torch.no_grad():
        for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert torch.equal(a, b)
            if a.dim() == 1:
                b.copy_(a.add_(torch.randn_like(a) / 4))
    return theirs, ours


def arguments(kind: str, batch_first: bool, batched: bool = True) -> list[Tensor]:
    def one(tokens: int) -> Tensor:
        shape = (BATCH, tokens) if batch_first else (tokens, BATCH)
        return torch.randn(*(shape if batched else (tokens,)), WIDTH, dtype=torch.float64)

    if kind == "Transformer":
        return [one(SOURCE), one(TARGET)]
    return [one(TARGET), one(SOURCE)] if "Decoder" in kind else [one(SOURCE)]


def masks(kind: str, batched: bool = True) -> dict[str, dict[str, Any]]:
    """Sets of masks by name, for the keyword arguments of each kind."""
    padding = PADDING if batched else PADDING[1]
    target = torch.arange(TARGET) >= torch.tensor([5, 3, 1])[:, None]
    target = target if batched else target[1]
    square = torch.rand(SOURCE, SOURCE) > 0.6
    square[:, 0] = False
    if "Encoder" in kind:
        name = "src_mask" if kind.endswith("Layer") else "mask"
        per_head = torch.randn(
            (BATCH if batched else 1) * HEADS, SOURCE, SOURCE, dtype=torch.float64
        )
        return {
            "none": {},
            "bool": {name: square},
            "per-head": {name: per_head},
            "causal": {name: CAUSAL, "is_causal": True},
            "padding": {"src_key_padding_mask": padding},
            "float-padding": {"src_key_padding_mask": padding.double() * -2.5},
            "both": {name: square, "src_key_padding_mask": padding},
            "causal-padding": {name: CAUSAL, "src_key_padding_mask": padding, "is_causal": True},
        }
    bias = torch.randn(TARGET, SOURCE, dtype=torch.float64)
    causal = CAUSAL[:TARGET, :TARGET]
    cross = {"memory_mask": bias, "memory_key_padding_mask": padding.double() * -2.5}
    hint = {"tgt_mask": causal, "tgt_is_causal": True}
    found = {
        "none": {},
        "causal": hint,
        "detected": {"tgt_mask": causal, "memory_key_padding_mask": padding},
        "target-padding": {"tgt_key_padding_mask": target, **hint},
        "memory": cross,
    }
    if kind == "Transformer":
        found["source"] = {"src_mask": CAUSAL, "src_key_padding_mask": padding.double() * -2.5}
        found["all"] = {**cross, **hint, "src_key_padding_mask": padding}
    return found


def results(module: Module, data: list[Tensor], call: dict[str, Any]) -> list[Tensor]:
    """Output, then gradients of inputs, of floating masks that want them, and of parameters."""
    leaves = [x.detach().requires_grad_() for x in data]
    given = {
        k: v.detach().requires_grad_() if isinstance(v, Tensor) and v.requires_grad else v
        for k, v in call.items()
    }
    out = module(*leaves, **given)
    upstream = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
    wanted = [
        *leaves,
        *(x for x in given.values() if isinstance(x, Tensor) and x.requires_grad),
        *module.parameters(),
    ]
    return [out, *torch.autograd.grad(out, wanted, upstream, allow_unused=True)]
