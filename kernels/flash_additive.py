"""Additive (Bahdanau) attention on tiles, which hold a chunk of D: never (B, Tq, Tk, D).

s_ij = sum_d v_d tanh(q_id + k_jd). Backward, with ds the gradient of s: dq_id = v_d sum_j ds_ij
(1 - t_ijd^2), dk likewise over i, dv_d = sum ds_ij t_ijd; each summed by one program in one order.
Products with values are the library's. Shapes: q (B, Tq, D), k (B, Tk, D), scores (B, Tq, Tk).
"""

import triton
import triton.language as tl

from .elementary import tanh

RUNTIME = ("tq", "tk", "tx", "ty")
STRIDES = ("mask_b", "mask_q", "mask_k", "ds_x", "ds_y")  # a kernel of its own where 1 alone


@triton.jit
def _columns(x, first, count, start, D: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr):
    """Rows first … and columns start … of x (count, D), in float32, 0 beyond."""
    r = first + tl.arange(0, ROWS)[:, None]
    d = start + tl.arange(0, BD)[None, :]
    at = x + r.to(tl.int64) * D + d
    return tl.load(at, mask=(r < count) & (d < D), other=0).to(tl.float32)


@triton.jit
def _scores_at(first_query, first_key, tq, tk, BM: tl.constexpr, BN: tl.constexpr):
    """Offsets of a tile of scores within those of a sequence, and which of it are there."""
    i = first_query + tl.arange(0, BM)[:, None]
    j = first_key + tl.arange(0, BN)[None, :]
    return i.to(tl.int64) * tk + j, (i < tq) & (j < tk)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=STRIDES)
def additive_scores(
    q, k, v, mask, scores, mask_b, mask_q, mask_k, tq, tk, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A tile of scores, -inf where the mask (True takes part) says no."""
    tiles_q, tiles_k = tl.cdiv(tq, BM), tl.cdiv(tk, BN)
    first_key = tl.program_id(0) % tiles_k * BN
    first_query = tl.program_id(0) // tiles_k % tiles_q * BM
    b = (tl.program_id(0) // tiles_k // tiles_q).to(tl.int64)
    s = tl.zeros([BM, BN], dtype=tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        x = _columns(q + b * tq * D, first_query, tq, start, D, BM, BD)
        y = _columns(k + b * tk * D, first_key, tk, start, D, BN, BD)
        w = tl.load(v + d, mask=d < D, other=0).to(tl.float32)
        s += tl.sum(tanh(x[:, None, :] + y[None, :, :]) * w[None, None, :], 2)
    at, there = _scores_at(first_query, first_key, tq, tk, BM, BN)
    if mask is not None:
        i = first_query + tl.arange(0, BM)[:, None]
        j = first_key + tl.arange(0, BN)[None, :]
        seen = tl.load(
            mask + b * mask_b + i.to(tl.int64) * mask_q + j * mask_k, mask=there, other=0
        )
        s = tl.where(seen, s, float("-inf"))
    tl.store(scores + b * tq * tk + at, s, mask=there)


@triton.jit(do_not_specialize=("rows", "tk"))
def additive_softmax(scores, rows, tk, BM: tl.constexpr, BN: tl.constexpr):
    """Softmax of rows in place; zeros for a row of -inf."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    c = tl.arange(0, BN)[None, :]
    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    l = tl.zeros([BM], dtype=tl.float32)
    for start in range(0, tk, BN):
        j = start + c
        at = scores + r.to(tl.int64) * tk + j
        s = tl.load(at, mask=(r < rows) & (j < tk), other=float("-inf"))
        new_m = tl.maximum(m, tl.max(s, 1))
        base = tl.where(new_m == float("-inf"), 0.0, new_m)
        l = l * tl.exp(m - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        m = new_m
    base = tl.where(m == float("-inf"), 0.0, m)[:, None]
    l = tl.where(l == 0, 1.0, l)[:, None]
    for start in range(0, tk, BN):
        j = start + c
        at = scores + r.to(tl.int64) * tk + j
        inside = (r < rows) & (j < tk)
        s = tl.load(at, mask=inside, other=float("-inf"))
        tl.store(at, tl.exp(s - base) / l, mask=inside)


@triton.jit(do_not_specialize=("rows", "tk"))
def additive_softmax_backward(
    weights, grad_weights, rows, tk, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """Gradient of the scores, in place of that of the weights."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    c = tl.arange(0, BN)[None, :]
    along = tl.zeros([BM], dtype=tl.float32)
    for start in range(0, tk, BN):
        j = start + c
        at = r.to(tl.int64) * tk + j
        inside = (r < rows) & (j < tk)
        p = tl.load(weights + at, mask=inside, other=0)
        along += tl.sum(p * tl.load(grad_weights + at, mask=inside, other=0), 1)
    for start in range(0, tk, BN):
        j = start + c
        at = r.to(tl.int64) * tk + j
        inside = (r < rows) & (j < tk)
        p = tl.load(weights + at, mask=inside, other=0)
        dp = tl.load(grad_weights + at, mask=inside, other=0)
        tl.store(grad_weights + at, p * (dp - along[:, None]), mask=inside)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=STRIDES)
def additive_gradients(
    x, y, v, ds,
    grad_x,
    grad_v,  # (B, tiles, D) float32: parts of v's gradient; None where x are keys
    ds_x, ds_y,  # strides
    tx, ty, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of x (B, tx, D), queries or keys, over all y (B, ty, D), the others."""
    tiles, chunks = tl.cdiv(tx, BM), tl.cdiv(D, BD)
    start = tl.program_id(0) % chunks * BD
    tile = tl.program_id(0) // chunks % tiles
    b = (tl.program_id(0) // chunks // tiles).to(tl.int64)
    mine = _columns(x + b * tx * D, tile * BM, tx, start, D, BM, BD)
    r = tile * BM + tl.arange(0, BM)[:, None]
    total = tl.zeros([BM, BD], dtype=tl.float32)
    of_v = tl.zeros([BD], dtype=tl.float32)
    for first in range(0, ty, BN):
        theirs = _columns(y + b * ty * D, first, ty, start, D, BN, BD)
        t = tanh(mine[:, None, :] + theirs[None, :, :])
        c = first + tl.arange(0, BN)[None, :]
        at = ds + b * tx * ty + r.to(tl.int64) * ds_x + c.to(tl.int64) * ds_y
        upstream = tl.load(at, mask=(r < tx) & (c < ty), other=0)[:, :, None]
        total += tl.sum(upstream * (1 - t * t), 1)
        if grad_v is not None:
            of_v += tl.sum(tl.sum(upstream * t, 1), 0)
    d = start + tl.arange(0, BD)
    w = tl.load(v + d, mask=d < D, other=0).to(tl.float32)
    at = grad_x + (b * tx + r) * D + d[None, :]
    inside = (r < tx) & (d < D)[None, :]
    tl.store(at, (total * w[None, :]).to(grad_x.dtype.element_ty), mask=inside)
    if grad_v is not None:
        tl.store(grad_v + (b * tiles + tile) * D + d, of_v, mask=d < D)
