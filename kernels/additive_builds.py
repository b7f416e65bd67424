"""The additive attention kernels that ahead-of-time builds compile: launches on meta tensors."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import additive
from .device import Limits, assume

Build = tuple[str, bool, Callable[[], None]]  # label, part of the quick subset, what launches


def _call(dtype: torch.dtype, queries: int, masked: bool) -> None:
    batch, keys, dim = 8, 50, 512

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, k, value, v = (
        new(batch, queries, dim),
        new(batch, keys, dim),
        new(batch, keys, dim),
        new(dim),
    )
    mask = new(batch, 1, keys, dtype=torch.bool) if masked else None
    out, weights = additive.additive_attention_forward(q, k, value, v, mask)
    additive.additive_attention_backward(out, None, q, k, value, v, weights, mask)


def builds(limits: Limits) -> Iterator[Build]:
    assume(limits)
    cases = [
        (True, torch.bfloat16, 60, True),
        (False, torch.float32, 60, False),
        (False, torch.float16, 1, True),
    ]
    for quick, *arguments in cases:
        _, queries, masked = arguments
        label = f"Tq={queries}" + " mask" * masked
        yield label, quick, lambda a=arguments: _call(*a)
