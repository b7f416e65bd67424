"""The step kernels of layers with layer norm or a projection: the step cut at its row-wide parts.

Forward:   product (W_hh h) -> rows (norm, gates, cell) [-> product (W_hr m) -> projected (zoneout)]
Backward:  product (W_hh^T grad_u) [-> head (zoneout) -> product (W_hr^T grad_proj)] -> rows
Buffers between the parts are (D, B, width), accumulation type. Tiles of the parts differ in height,
so all walk the same T steps, whatever their own sequences' lengths.
"""

import triton
import triton.language as tl

from .rnn_cell import backward_times, product, span, time_of
from .rnn_state import (
    add_bias,
    cell_norm_weights,
    finish_backward,
    finish_forward,
    gates_norm,
    gradient_of_state,
    load_backward,
    load_forward,
    load_gradient,
    split_gradient,
    store_state,
)

_RUNTIME = ["s", "T", "B", "seed", "zone_h", "zone_c"]


@triton.jit(do_not_specialize=["s", "T", "B"])
def rnn_product(
    a, w, out, offsets, s, T, B, D: tl.constexpr,
    K: tl.constexpr, N: tl.constexpr,
    WHERE: tl.constexpr,  # a: "state" (D, B, K); rows (N, D, K) of backward step s "now" or "done"
    TRANSPOSED: tl.constexpr,  # w is (D, K, N) instead of (D, N, K)
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out (D, B, N) = a w^T; rows that a lacks give 0."""
    d = tl.program_id(2)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)[:, None]
    n = tl.program_id(0) * BN + tl.arange(0, BN)[None, :]
    if WHERE == "state":
        valid = rows < B
        base = a + (d * B + rows).to(tl.int64) * K
    else:
        _, start, size, start_done, size_done, _, _ = backward_times(s, T, offsets, d, T, B, PACKED)
        if WHERE == "done":
            start = start_done
            size = size_done
        valid = rows < size
        base = a + ((start + rows) * D + d) * K
    acc = tl.zeros([BM, BN], dtype=out.dtype.element_ty)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        x = tl.load(base + k[None, :], mask=valid & (k < K)[None, :], other=0)
        if TRANSPOSED:
            at = (tl.cast(d, tl.int64) * K + k[:, None]) * N + n
        else:
            at = (tl.cast(d, tl.int64) * N + n) * K + k[:, None]
        y = tl.load(w + at, mask=(n < N) & (k < K)[:, None], other=0)
        acc = product(x, y, acc, PRECISION)
    tl.store(out + (d * B + rows).to(tl.int64) * N + n, acc, mask=(rows < B) & (n < N))


@triton.jit
def load_product(u, rows, units, valid, d, B, G: tl.constexpr, H: tl.constexpr):
    """G tiles of a product (D, B, G*H)."""
    at = u + (d * B + rows).to(tl.int64) * (G * H) + units
    out = (tl.load(at, mask=valid, other=0),)
    for g in tl.static_range(1, G):
        out = out + (tl.load(at + g * H, mask=valid, other=0),)
    return out


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_forward_rows(
    u_product, gates, offsets, h, c, fed, b_hh, ln_gates, ln_cell, h_mask, output, cells,
    hn, m, s, T, B, seed: tl.int64, zone_h: tl.int64, zone_c: tl.int64,
    D: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr,
    LN: tl.constexpr, LN_CELL: tl.constexpr, EPS: tl.constexpr, ZONEOUT: tl.constexpr,
    SAVE: tl.constexpr, PACKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Whole rows of a forward step, given the product; BN >= H."""
    d = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    units = tl.arange(0, BN)[None, :]
    t = time_of(s, T, d == 1)
    start, size = span(offsets, t, T, B, PACKED)
    active = (rows < size) & (units < H)
    like = tl.zeros([BM, BN], dtype=c.dtype.element_ty)
    gx, h_prev, c_prev = load_forward(
        gates, h, c, like, start, rows, units, active, d, B, D, H, G, MODE
    )
    u = load_product(u_product, rows, units, active, d, B, G, H)
    if LN:
        u = gates_norm(u, ln_gates, units, active, d, H, G, EPS)
    u = add_bias(u, b_hh, units, d, H)
    ln = cell_norm_weights(ln_cell, units, d, like, H, LN_CELL)
    finish_forward(
        u, gx, h_prev, c_prev, ln, gates, h, c, fed, h_mask, output, cells, hn, m, None,
        start, t, s, rows, units, active, d, B, D, seed, zone_h, zone_c,
        H, P, G, MODE, LN_CELL, EPS, ZONEOUT, SAVE,
    )  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_forward_projected(
    projected, offsets, h, fed, h_mask, output, s, T, B,
    seed: tl.int64, zone_h: tl.int64, D: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr, ZONEOUT: tl.constexpr, PACKED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Zoneout and output of a projected step, given W_hr m."""
    d = tl.program_id(2)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)[:, None]
    units = tl.program_id(0) * BN + tl.arange(0, BN)[None, :]
    t = time_of(s, T, d == 1)
    start, size = span(offsets, t, T, B, PACKED)
    active = (rows < size) & (units < P)
    at = projected + (d * B + rows).to(tl.int64) * P + units
    h_new = tl.load(at, mask=active, other=0)
    store_state(
        h_new, output, h, fed, h_mask, None, start, t, s, rows, units, active, d, B, D,
        seed, zone_h, H, P, ZONEOUT,
    )  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_backward_head(
    fed_back, grad_output, offsets, h_mask, grad_proj, dh, s, T, B,
    seed: tl.int64, zone_h: tl.int64, D: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr, ZONEOUT: tl.constexpr, PACKED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradient of a projected step's h' (grad_proj) and what is carried, given W_hh^T grad_u."""
    d = tl.program_id(2)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)[:, None]
    units = tl.program_id(0) * BN + tl.arange(0, BN)[None, :]
    t, start, size, _, _, _, _ = backward_times(s, T, offsets, d, T, B, PACKED)
    mine = (rows < B) & (units < P)
    active = (rows < size) & (units < P)
    state = (d * B + rows).to(tl.int64) * P + units
    carried, out = load_gradient(grad_output, dh, start, rows, units, active, d, B, D, P)
    product = tl.load(fed_back + state, mask=mine, other=0)
    total = gradient_of_state(product, carried, out, h_mask, rows, units, d, B, P)
    new, kept = split_gradient(total, t, rows, units, d, B, D, seed, zone_h, H, P, ZONEOUT)
    at = grad_proj + ((start + rows) * D + d) * P + units
    tl.store(at, new.to(grad_proj.dtype.element_ty), mask=active)
    tl.store(dh + state, tl.where(active, kept, total), mask=mine)


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_backward_rows(
    product,  # (D, B, H): W_hr^T grad_proj with PROJECTED, else W_hh^T grad_u
    grad_output, gates, cells, hn, output, u_raw, offsets, h0, c0, ln_gates, ln_cell,
    h_mask, grad_gx, grad_u, grad_ln_cell, dh, dc, s, T, B,
    seed: tl.int64, zone_h: tl.int64, zone_c: tl.int64,
    D: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, PROJECTED: tl.constexpr,
    LN: tl.constexpr, LN_CELL: tl.constexpr, EPS: tl.constexpr, ZONEOUT: tl.constexpr,
    PACKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Whole rows of a backward step; BN >= H."""
    d = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    units = tl.arange(0, BN)[None, :]
    t, start, size, _, _, start_before, size_before = backward_times(s, T, offsets, d, T, B, PACKED)
    active = (rows < size) & (units < H)
    like = tl.zeros([BM, BN], dtype=dc.dtype.element_ty)
    saved, hn_tile, h_prev, c_prev, dc_tile = load_backward(
        gates, hn, output, h0, cells, c0, dc, like,
        start, start_before, size_before, rows, units, active, d, B, D, H, P, G, MODE,
    )  # fmt: skip
    at = product + (d * B + rows).to(tl.int64) * H + units
    new = tl.load(at, mask=(rows < B) & (units < H), other=0)
    total = new
    kept = tl.zeros_like(new)
    if not PROJECTED:
        carried, out = load_gradient(grad_output, dh, start, rows, units, active, d, B, D, H)
        total = gradient_of_state(new, carried, out, h_mask, rows, units, d, B, H)
        new, kept = split_gradient(total, t, rows, units, d, B, D, seed, zone_h, H, P, ZONEOUT)
    ln = cell_norm_weights(ln_cell, units, d, like, H, LN_CELL)
    state_gradient = dh
    if PROJECTED:
        state_gradient = None
    finish_backward(
        new, kept, total, saved, hn_tile, h_prev, c_prev, dc_tile, u_raw, ln_gates, ln,
        state_gradient, dc, grad_gx, grad_u, grad_ln_cell, None, start, t, rows, units, active,
        d, B, D, seed, zone_c, H, P, G, MODE, LN, LN_CELL, EPS, ZONEOUT,
    )  # fmt: skip
