"""The attention kernels that ahead-of-time builds compile: real launches, on meta tensors."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import attention
from .device import Limits, assume

Build = tuple[str, bool, Callable[[], None]]  # label, part of the quick subset, what launches


def _call(
    dtype: torch.dtype, dim: int, *, value_dim: int = 0, causal: bool = False, mask: str = "",
    dropout: float = 0.0, softcap: float = 0.0, alibi: bool = False, packed: bool = False,
    backward: bool = True, weights: bool = False,
) -> None:  # fmt: skip
    """One call of the launchers, forward and, unless only that, backward; and the weights."""
    batch, heads, key_heads, length = 2, 8, 2, 1024

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, k = new(batch, heads, length, dim), new(batch, key_heads, length, dim)
    v = new(batch, key_heads, length, value_dim or dim)
    bias = new(1, heads, length, length) if mask == "added" else None
    if mask == "bool":
        bias = new(batch, 1, 1, length, dtype=torch.bool)
    bounds = new(batch + 1, dtype=torch.int32) if packed else None
    if packed:
        q, k, v = (x.transpose(0, 1).flatten(1, 2)[None] for x in (q, k, v))
    slopes = new(heads, dtype=torch.float32) if alibi else None
    context: tuple[Any, ...] = (
        bias, bounds, bounds, slopes, torch.tensor(1), dim**-0.5, -1, 0 if causal else -1, False,
        softcap, dropout, length, length,
    )  # fmt: skip
    out, lse, norm = attention.attention_forward(q, k, v, *context)
    if backward:
        attention.attention_backward(out, lse, q, k, v, out, lse, norm, *context, mask == "added")
    for average in (False, True) if weights else ():
        attention.attention_weights(q, k, lse, norm, bias, *context[3:], average)


def _decode(
    dtype: torch.dtype, dim: int, *, page: int = 0, softcap: float = 0.0, queries: int = 1
) -> None:
    batch, heads, key_heads, capacity = 2, 32, 4, 4096

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    cache = (batch * capacity // page, key_heads, page) if page else (batch, key_heads, capacity)
    table = new(batch, capacity // page, dtype=torch.int32) if page else None
    attention.attention_decode(
        new(batch, heads, queries, dim), new(*cache, dim), new(*cache, dim),
        new(batch, dtype=torch.int32), table, None, dim**-0.5, -1, 0, softcap,
    )  # fmt: skip


def _build(
    call: Callable[..., None], dtype: torch.dtype, dim: int, *, tf32: bool = False, **options: Any
) -> None:
    """A call under a setting of float32 products that is its own, whatever was built before."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    call(dtype, dim, **options)


def builds(limits: Limits) -> Iterator[Build]:
    assume(limits)
    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    cases: list[tuple[bool, Callable[..., None], torch.dtype, int, dict[str, Any]]] = [
        (True, _call, brain, 64, {"causal": True, "alibi": True}),
        (False, _call, brain, 128, {"causal": True, "weights": True}),
        (False, _call, brain, 256, {"causal": True}),
        (False, _call, half, 128, {"mask": "bool", "dropout": 0.1, "weights": True}),
        (False, _call, half, 80, {"packed": True, "softcap": 30.0}),
        (False, _call, brain, 192, {"value_dim": 128, "backward": False}),
        (True, _call, single, 64, {"mask": "added", "dropout": 0.1, "weights": True}),
        (False, _call, single, 128, {"causal": True}),
        (False, _call, single, 128, {"causal": True, "tf32": True}),
        (False, _call, single, 256, {"causal": True}),
        (True, _decode, brain, 128, {}),
        (False, _decode, half, 64, {"page": 16, "softcap": 30.0}),
        (False, _decode, brain, 256, {"page": 256, "queries": 4}),
        (False, _decode, single, 128, {}),
    ]
    for quick, call, dtype, dim, options in cases:
        words = (k if v is True else f"{k}={v}" for k, v in options.items())
        label = " ".join([f"D={dim}", *words])
        yield label, quick, partial(_build, call, dtype, dim, **options)
