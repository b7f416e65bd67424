"""Matrix products of whole sequences, through torch's library in the fastest type the device has.

A CPU without 16-bit arithmetic multiplies bfloat16 and float16 a hundred times slower than float32
in torch; there the product runs in float32 and is rounded once at the end: more exact too.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
def _slow_on_cpu(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported()


def widens(x: Tensor) -> bool:
    """Whether products of ``x`` are computed in float32 although ``x`` is narrower."""
    return x.dtype.itemsize == 2 and x.device.type == "cpu" and _slow_on_cpu(x.dtype)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the dtype of ``a``."""
    if widens(a):
        return torch.mm(a.float(), b.float()).to(a.dtype)
    return torch.mm(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·weightᵀ + bias in the dtype of ``x``."""
    if widens(x):
        wide = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), wide).to(x.dtype)
    return F.linear(x, weight, bias)


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """out = x·weightᵀ + bias, for ``out`` (rows, features) of any row stride."""
    if widens(x):
        out.copy_(linear(x, weight, bias))
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)
