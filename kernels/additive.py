"""Additive attention on Triton: the operators of fastseq/ops/additive_attention.py.

Serves float32, bfloat16 and float16; float64 goes to plain PyTorch. The weights are a result, so
they are made in place of the scores, and products with values are the library's, in float32: small
beside a tanh for each query, key and element.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from ..reference import additive_attention as reference
from . import flash_additive
from .device import on, power_of_two
from .launch import Launch

_SERVED = (torch.float32, torch.bfloat16, torch.float16)
# Sizes of tiles: products of the three bound how many values of tanh a thread holds.
_SCORES = {"BN": 32, "BD": 16}
_GRADIENTS = {"BN": 8, "BD": 64}
_ROWS = {"BM": 4, "BN": 128}
_WARPS = {"num_warps": 4, "num_stages": 1}


def _launch(kernel: Any, values: dict[str, Any], tile: dict[str, int], programs: int) -> None:
    if programs:
        sizes = " ".join(f"{name}={size}" for name, size in tile.items())
        Launch(kernel, {**values, **tile}, _WARPS, sizes)((programs,))


def _rows(n: int) -> int:
    """Rows of a tile: few for a decoder's one query."""
    return min(power_of_two(n), 8)


def additive_attention_forward(
    q: Tensor, k: Tensor, value: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``fastseq::additive_attention_forward``: out (B, Tq, Dv) and the weights (B, Tq, Tk)."""
    if q.dtype not in _SERVED:
        return reference.additive_attention_forward(q, k, value, v, mask)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    (batch, tq, dim), tk = q.shape, k.shape[1]
    weights = q.new_empty(batch, tq, tk, dtype=torch.float32)
    steps = [0, 0, 0]
    if mask is not None:
        steps = [s if n > 1 else 0 for s, n in zip(mask.stride(), mask.shape)]
    values = {
        "q": q, "k": k, "v": v, "mask": mask, "scores": weights, "tq": tq, "tk": tk, "D": dim,
        "rows": batch * tq, **dict(zip(("mask_b", "mask_q", "mask_k"), steps)),
    }  # fmt: skip
    tile = {"BM": _rows(tq), **_SCORES}
    with on(q.device):
        tiles = triton.cdiv(tq, tile["BM"]) * triton.cdiv(tk, tile["BN"])
        _launch(flash_additive.additive_scores, values, tile, batch * tiles)
        rows = triton.cdiv(batch * tq, _ROWS["BM"]) if tk else 0
        _launch(flash_additive.additive_softmax, values, _ROWS, rows)
    return (weights @ value.float()).to(q.dtype), weights


def additive_attention_backward(
    grad_out: Tensor,
    grad_weights: Tensor | None,
    q: Tensor,
    k: Tensor,
    value: Tensor,
    v: Tensor,
    weights: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fastseq::additive_attention_backward``. What is masked has no weight, hence no gradient."""
    if q.dtype not in _SERVED:
        return reference.additive_attention_backward(
            grad_out, grad_weights, q, k, value, v, weights, mask
        )
    q, k, v, weights = q.contiguous(), k.contiguous(), v.contiguous(), weights.contiguous()
    (batch, tq, dim), tk = q.shape, k.shape[1]
    wide = grad_out.float()
    ds = wide @ value.float().mT  # of the weights, at first
    if grad_weights is not None:
        ds = ds + grad_weights
    ds = ds.contiguous()
    grad_q, grad_k = torch.empty_like(q), torch.empty_like(k)
    of_queries, of_keys = ({"BM": _rows(n), **_GRADIENTS} for n in (tq, tk))
    tiles = triton.cdiv(tq, of_queries["BM"])
    parts = q.new_empty(batch, tiles, dim, dtype=torch.float32)
    values = {
        "q": q, "v": v, "weights": weights, "grad_weights": ds, "ds": ds, "rows": batch * tq,
        "tk": tk, "D": dim,
    }  # fmt: skip
    chunks = triton.cdiv(dim, _GRADIENTS["BD"])
    with on(q.device):
        rows = triton.cdiv(batch * tq, _ROWS["BM"]) if tk else 0
        _launch(flash_additive.additive_softmax_backward, values, _ROWS, rows)
        _launch(
            flash_additive.additive_gradients,
            values | {"x": q, "y": k, "grad_x": grad_q, "grad_v": parts}
            | {"ds_x": tk, "ds_y": 1, "tx": tq, "ty": tk},
            of_queries, batch * tiles * chunks,
        )  # fmt: skip
        _launch(
            flash_additive.additive_gradients,
            values | {"x": k, "y": q, "grad_x": grad_k, "grad_v": None}
            | {"ds_x": 1, "ds_y": tk, "tx": tk, "ty": tq},
            of_keys, batch * triton.cdiv(tk, of_keys["BM"]) * chunks,
        )  # fmt: skip
    grad_value = (weights.mT @ wide).to(value.dtype)
    return grad_q, grad_k, grad_value, parts.sum((0, 1)).to(v.dtype)
