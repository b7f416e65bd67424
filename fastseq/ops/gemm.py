"""Matrix products of whole sequences, through torch's library in the fastest type the device has.

A CPU without 16-bit arithmetic multiplies bfloat16 and float16 a hundred times slower than float32
in torch, and some that have AVX-512's bfloat16 pairs take twice as long for them as for floats;
there the product runs in float32 and is rounded once at the end: more exact too. It goes in blocks,
so that what is widened stays small.

Products of float32 are MKL's, or oneDNN's where that is quicker (``csrc/products.h``).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _extension
from .traced import is_traced, plain_autograd_only

_BLOCK = 512  # rows (or terms of a sum) that are widened at once
_MANY = 128  # rows that pay for a weight's widening, where the narrow product is only half as fast


def _rows_to_widen() -> dict[torch.dtype, float]:
    """From how many rows on a product on the CPU is quicker in float32."""
    rows = {torch.bfloat16: math.inf, torch.float16: math.inf}
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        rows[torch.float16] = 0
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        rows[torch.bfloat16] = 0
    elif not (torch.cpu._is_amx_tile_supported() or _extension.pairs_are_quick()):
        rows[torch.bfloat16] = _MANY
    return rows


_ROWS = _rows_to_widen()
_ENOUGH = 2**22 if _extension.onednn_is_quicker() else math.inf  # multiplications that pay for it
_LONG_SUM = 1024  # terms; oneDNN sums one after the other, so that more lose digits


def _widens(x: Tensor, dtype: torch.dtype) -> bool:
    if x.device.type != "cpu" or dtype not in _ROWS:
        return False
    if torch.compiler.is_compiling():  # for any number of rows
        return _ROWS[dtype] < math.inf
    return x.shape[:-1].numel() >= _ROWS[dtype]


def widens(x: Tensor) -> bool:
    """Whether products of the rows of ``x`` are computed in float32 although ``x`` is narrower."""
    return _widens(x, x.dtype)


def _quicker_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether x·weightᵀ + bias is; not where torch would complain, for it does so better."""
    # Asked first, for a length that is traced must not be compared.
    if math.isinf(_ENOUGH) or is_traced():
        return False
    return (
        x.numel() * weight.shape[0] >= _ENOUGH
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[-1] == weight.shape[-1] <= _LONG_SUM
        and (bias is None or (bias.dtype == x.dtype and bias.shape == weight.shape[:1]))
        and x.is_contiguous()  # what is not would be copied
    )


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OnednnLinear(torch.autograd.Function):
    """``F.linear`` with a gradient; a second one is taken by torch's own operators."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            linear(grad, weight.t(), None) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the dtype of ``a``."""
    if _quicker_by_onednn(a, b.t()):
        return _onednn_linear(a, b.t(), None)
    if not widens(a):
        return torch.mm(a, b)
    rows, terms = a.shape
    if terms > rows:  # a gradient of weights: few results, each a sum over all rows of a sequence
        total = a.new_zeros(rows, b.shape[1], dtype=torch.float32)
        for start in range(0, terms, _BLOCK):
            at = slice(start, start + _BLOCK)
            total.addmm_(a[:, at].float(), b[at].float())
        return total.to(a.dtype)
    out, wide = a.new_empty(rows, b.shape[1]), b.float()
    for start in range(0, rows, _BLOCK):
        at = slice(start, start + _BLOCK)
        out[at] = torch.mm(a[at].float(), wide)
    return out


def add_mm(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a @ b, in place."""
    return total.add_(mm(a, b)) if widens(a) else total.addmm_(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·weightᵀ + bias in the dtype of ``x``, or autocast's; differentiable."""
    dtype = x.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    if not _widens(x, dtype):
        quicker = dtype == x.dtype and x.dim() > 1 and _quicker_by_onednn(x, weight, bias)
        if quicker and not plain_autograd_only():
            given = (x, weight) if bias is None else (x, weight, bias)
            if torch.is_grad_enabled() and torch._C._any_requires_grad(*given):
                return _OnednnLinear.apply(x, weight, bias)
            return _onednn_linear(x, weight, bias)
        return F.linear(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        wide = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), wide).to(dtype)


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """out = x·weightᵀ + bias, for ``out`` (rows, features) of any row stride."""
    if widens(x):
        wide, wide_bias = weight.float(), None if bias is None else bias.float()
        for start in range(0, x.shape[0], _BLOCK):
            at = slice(start, start + _BLOCK)
            out[at] = F.linear(x[at].float(), wide, wide_bias)
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)
