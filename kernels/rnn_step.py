"""The step kernels: one launch per time step over batch tiles x unit tiles x directions.

They serve every size and feature. Without layer norm or projection a step is one launch; with them
the product, the whole-row point-wise part and the projection are launches of their own. Steps are
counted per batch tile (see ``steps_of_tile``), so that both directions of packed sequences start
with all tiles and lose them as the shorter ones end.
"""

import triton
import triton.language as tl

from .rnn_cell import backward_times, product, span, steps_of_tile, time_of
from .rnn_state import (
    add_bias,
    backward_point,
    finish_forward,
    load_backward,
    load_forward,
    load_gradient,
)

_RUNTIME = ["s", "T", "B", "seed", "zone_h", "zone_c"]


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_forward_step(
    gates, offsets, lengths, h, c, fed, w_hh, b_hh, h_mask, output, cells, hn,
    s, T, B, seed: tl.int64, zone_h: tl.int64, zone_c: tl.int64,
    D: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, ZONEOUT: tl.constexpr,
    SAVE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A step without layer norm and projection; w_hh (D, G*H, H)."""
    d = tl.program_id(2)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)[:, None]
    units = tl.program_id(0) * BN + tl.arange(0, BN)[None, :]
    steps = steps_of_tile(lengths, T, tl.program_id(1) * BM, PACKED)
    t = time_of(s, steps, d == 1)
    start, size = span(offsets, t, T, B, PACKED)
    active = (rows < size) & (units < H)
    like = tl.zeros([BM, BN], dtype=c.dtype.element_ty)
    gx, h_prev, c_prev = load_forward(
        gates, h, c, like, start, rows, units, active, d, B, D, H, G, MODE
    )
    u = (like,)
    for _ in tl.static_range(1, G):
        u = u + (like,)
    half = (s % 2).to(tl.int64) * D * B * H
    for k0 in range(0, H, BK):
        k = k0 + tl.arange(0, BK)
        at = fed + half + (d * B + rows).to(tl.int64) * H + k[None, :]
        a = tl.load(at, mask=(rows < size) & (k < H)[None, :], other=0)
        new = ()
        for g in tl.static_range(G):
            at = w_hh + (tl.cast(d, tl.int64) * G * H + g * H + units) * H + k[:, None]
            w = tl.load(at, mask=(units < H) & (k < H)[:, None], other=0)
            new = new + (product(a, w, u[g], PRECISION),)
        u = new
    u = add_bias(u, b_hh, units, d, H)
    finish_forward(
        u, gx, h_prev, c_prev, None, gates, h, c, fed, h_mask, output, cells, hn, None, None,
        start, t, s, rows, units, active, d, B, D, seed, zone_h, zone_c,
        H, H, G, MODE, False, 0.0, ZONEOUT, SAVE,
    )  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_backward_step(
    grad_output, gates, cells, hn, output, offsets, lengths, h0, c0, w_hh, h_mask,
    grad_gx, grad_u, dh, dc,
    s, T, B, seed: tl.int64, zone_h: tl.int64, zone_c: tl.int64,
    D: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, ZONEOUT: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A backward step, no layer norm or projection; one more than a tile has finishes dh."""
    d = tl.program_id(2)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)[:, None]
    units = tl.program_id(0) * BN + tl.arange(0, BN)[None, :]
    steps = steps_of_tile(lengths, T, tl.program_id(1) * BM, PACKED)
    t, start, size, start_done, size_done, start_before, size_before = backward_times(
        s, steps, offsets, d, T, B, PACKED
    )
    active = (rows < size) & (units < H)
    fed_back = tl.zeros([BM, BN], dtype=dh.dtype.element_ty)
    saved, hn_tile, h_prev, c_prev, dc_tile = load_backward(
        gates, hn, output, h0, cells, c0, dc, fed_back,
        start, start_before, size_before, rows, units, active, d, B, D, H, H, G, MODE,
    )  # fmt: skip
    carried, out = load_gradient(grad_output, dh, start, rows, units, active, d, B, D, H)
    for g in tl.static_range(G):
        for k0 in range(0, H, BK):
            k = k0 + tl.arange(0, BK)
            at = ((start_done + rows) * D + d) * (G * H) + g * H + k[None, :]
            a = tl.load(grad_u + at, mask=(rows < size_done) & (k < H)[None, :], other=0)
            at = (tl.cast(d, tl.int64) * G * H + g * H + k[:, None]) * H + units
            w = tl.load(w_hh + at, mask=(units < H) & (k < H)[:, None], other=0)
            fed_back = product(a, w, fed_back, PRECISION)
    backward_point(
        fed_back, carried, out, saved, hn_tile, h_prev, c_prev, dc_tile, h_mask, grad_gx, grad_u,
        dh, dc, None, start, t, rows, units, active, d, B, D, seed, zone_h, zone_c,
        H, G, MODE, ZONEOUT,
    )  # fmt: skip
