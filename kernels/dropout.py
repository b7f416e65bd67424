"""Recurrent dropout's mask on Triton, in one kernel: the bits of ``fastseq.reference.philox``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.philox import threshold
from .device import on
from .launch import Launch

_ELEMENTS = 1024  # of a program


@triton.jit(do_not_specialize=("count", "seed", "least"))
def draw_mask(mask, count, seed: tl.int64, least: tl.int64, factor: tl.float64, BN: tl.constexpr):
    """``factor`` where an element's word is at least ``least``, else 0; mask (count,)."""
    at = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    low, high = (at & 0xFFFFFFFF).to(tl.uint32), (at >> 32).to(tl.uint32)
    zero = low * 0
    word, _, _, _ = tl.philox(seed, low, high, zero + 1, zero)
    kept = tl.full([BN], factor, tl.float64)
    if mask.dtype.element_ty != tl.float64:
        kept = kept.to(tl.float32)  # from which there are conversions to every type
    kept = tl.where(word >= tl.cast(least, tl.uint32), kept, 0.0)
    tl.store(mask + at, kept.to(mask.dtype.element_ty), mask=at < count)


def dropout_mask(seed: int, like: Tensor, probability: float) -> Tensor:
    """``fastseq::dropout_mask``: 0 or 1/(1-p), of ``like``'s shape, dtype and device."""
    mask = like.new_empty(like.shape)
    if probability >= 1:
        return mask.zero_()
    if mask.numel() == 0:
        return mask
    # Divided in the mask's dtype, as the reference divides.
    factor = float(torch.ones((), dtype=like.dtype) / (1 - probability))
    values = {
        "mask": mask, "count": mask.numel(), "seed": seed, "least": threshold(probability),
        "factor": factor, "BN": _ELEMENTS,
    }  # fmt: skip
    launch = Launch(draw_mask, values, {"num_warps": 4, "num_stages": 1}, f"BN={_ELEMENTS}")
    with on(like.device):
        launch((triton.cdiv(mask.numel(), _ELEMENTS),))
    return mask
