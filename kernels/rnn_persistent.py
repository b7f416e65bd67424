"""The persistent kernels: every step in one launch, the weights resident on the chip.

Each program keeps the recurrent weights of BN units (all gates) and walks all steps; the state goes
through L2. When a program has stored its tile of a step it adds one to that step's counter
(release); before the next step it waits until all tiles of the batch tile have (acquire). There
is a counter for each step, direction and batch tile, so nothing is reset. The launch is
cooperative: a grid that is not co-resident is refused by the driver and does not wait for ever.

A program serves the batch tiles program_id(1), + num_programs(1), …: with more than one, the wait
for one batch tile is spent on another.

Products are split over K among the warps: operands are [KS, ., .] with KS independent products,
summed at the end. That shortens the chain of dependent tensor-core operations of a step.
"""

import triton
import triton.language as tl

from .rnn_cell import backward_times, product, span, steps_of_tile, time_of
from .rnn_state import (
    backward_point,
    finish_forward,
    load_backward,
    load_forward,
    load_gradient,
    wait,
)

_RUNTIME = ["T", "B", "seed", "zone_h", "zone_c"]


@triton.jit
def split_k(q, KS: tl.constexpr, KC: tl.constexpr):
    """Indices along K of chunk q, [KS, KC]."""
    return q * (KS * KC) + tl.arange(0, KS)[:, None] * KC + tl.arange(0, KC)[None, :]


@triton.jit
def load_chunks(
    base, rows, size, H: tl.constexpr, KS: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr
):
    """Rows of H, starting at ``base`` [BM, 1], as CHUNKS tiles [KS, BM, KC]."""
    base = base[None, :, :]
    valid = (rows < size)[None, :, :]
    out = ()
    for q in tl.static_range(CHUNKS):
        k = split_k(q, KS, KC)[:, None, :]
        # .cg: other programs wrote this; a stale line must not come from the first-level cache.
        out = out + (tl.load(base + k, mask=valid & (k < H), other=0, cache_modifier=".cg"),)
    return out


@triton.jit
def gate_weights(
    w_hh, unit0, d, H: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, BN: tl.constexpr,
    KS: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """w_hh for all gates of BN units: CHUNKS tiles [KS, KC, BN*GP], columns (unit, gate)."""
    n = tl.arange(0, BN * GP)[None, None, :]
    unit = unit0 + n // GP
    gate = n % GP
    row = tl.cast(d, tl.int64) * G * H + gate * H + unit
    tiles = ()
    for q in tl.static_range(CHUNKS):
        k = split_k(q, KS, KC)[:, :, None]
        valid = (unit < H) & (gate < G) & (k < H)
        tiles = tiles + (tl.load(w_hh + row * H + k, mask=valid, other=0),)
    return tiles


@triton.jit
def gates_product(
    fed, weights, bias, rows, size, d, like,
    H: tl.constexpr, GP: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr,
    KS: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """W_hh h + bias for this program's units: GP tiles [BM, BN]; fed (B, H), bias (D, H, GP)."""
    BM: tl.constexpr = like.shape[0]
    a = load_chunks(fed + rows.to(tl.int64) * H, rows, size, H, KS, KC, CHUNKS)
    u = tl.zeros([KS, BM, BN * GP], dtype=like.dtype)
    for q in tl.static_range(CHUNKS):
        u = product(a[q], weights[q], u, PRECISION)
    # This load also settles how the sum is spread over the threads: all gates of a unit in one
    # thread. Without it every warp would hold, and compute, every unit.
    n = tl.program_id(0) * (BN * GP) + tl.arange(0, BN * GP)[None, :]
    at = bias + d * (H * GP) + rows * 0 + n
    u = tl.sum(u, 0) + tl.load(at, mask=(rows >= 0) & (n < H * GP), other=0)
    if GP == 1:
        out = (u,)
    else:
        even, odd = tl.split(tl.reshape(u, [BM, BN, GP // 2, 2]))
        u0, u2 = tl.split(even)
        u1, u3 = tl.split(odd)
        out = (u0, u1, u2, u3)
    return out


@triton.jit
def state_weights(
    w_hh, units, d, H: tl.constexpr, G: tl.constexpr,
    KS: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """w_hh's columns of BN units: G * CHUNKS tiles [KS, KC, BN], K along each gate's units."""
    units = units[None, :, :]
    tiles = ()
    for g in tl.static_range(G):
        for q in tl.static_range(CHUNKS):
            k = split_k(q, KS, KC)[:, :, None]
            at = (tl.cast(d, tl.int64) * G * H + g * H + k) * H + units
            tiles = tiles + (tl.load(w_hh + at, mask=(units < H) & (k < H), other=0),)
    return tiles


@triton.jit
def state_product(
    grad_u, weights, zeros, start, rows, size, like, d, D,
    H: tl.constexpr, G: tl.constexpr, PRECISION: tl.constexpr,
    KS: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """W_hh^T grad_u for this program's units, [BM, BN]; grad_u (N, D, G, H) from row ``start``."""
    BM: tl.constexpr = like.shape[0]
    BN: tl.constexpr = like.shape[1]
    base = grad_u + ((start + rows) * D + d) * (G * H)
    out = tl.zeros([KS, BM, BN], dtype=like.dtype)
    a = load_chunks(base, rows, size, H, KS, KC, CHUNKS)
    for g in tl.static_range(G):
        following = a
        if AHEAD and g + 1 < G:
            following = load_chunks(base + (g + 1) * H, rows, size, H, KS, KC, CHUNKS)
        for q in tl.static_range(CHUNKS):
            out = product(a[q], weights[g * CHUNKS + q], out, PRECISION)
        if not AHEAD and g + 1 < G:
            following = load_chunks(base + (g + 1) * H, rows, size, H, KS, KC, CHUNKS)
        a = following
    # Zeros, loaded for the sake of the layout: see gates_product.
    at = zeros + rows * 0 + tl.arange(0, BN)[None, :]
    return tl.sum(out, 0) + tl.load(at, mask=rows >= 0, other=0)


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_forward_persistent(
    gates, offsets, lengths, h, c, fed, w_hh, bias, h_mask, output, cells, hn, counters,
    T, B, seed: tl.int64, zone_h: tl.int64, zone_c: tl.int64,
    D: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, ZONEOUT: tl.constexpr,
    SAVE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr, GP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, KS: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """All steps, no layer norm or projection; grid (unit tiles, batch programs, directions)."""
    d = tl.program_id(2)
    unit0 = tl.program_id(0) * BN
    units = unit0 + tl.arange(0, BN)[None, :]
    tiles = tl.cdiv(B, BM)
    like = tl.zeros([BM, BN], dtype=c.dtype.element_ty)
    weights = gate_weights(w_hh, unit0, d, H, G, GP, BN, KS, KC, CHUNKS)
    for s in range(T):
        for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
            steps = steps_of_tile(lengths, T, tile * BM, PACKED)
            if s < steps:
                rows = tile * BM + tl.arange(0, BM)[:, None]
                t = time_of(s, steps, d == 1)
                start, size = span(offsets, t, T, B, PACKED)
                active = (rows < size) & (units < H)
                tl.debug_barrier()  # the last step's stores to h and c, by whichever thread
                # These loads are under way while the program waits.
                gx, h_prev, c_prev = load_forward(
                    gates, h, c, like, start, rows, units, active, d, B, D, H, G, MODE
                )
                counter = counters + (tl.cast(s, tl.int64) * D + d) * tiles + tile
                if s > 0:
                    wait(counter - D * tiles, tl.num_programs(0))
                state = fed + ((s % 2) * D + d) * tl.cast(B, tl.int64) * H
                u = gates_product(
                    state, weights, bias, rows, size, d, like, H, GP, PRECISION, BN, KS, KC, CHUNKS
                )
                finish_forward(
                    u, gx, h_prev, c_prev, None, gates, h, c, fed, h_mask, output, cells, hn, None,
                    counter, start, t, s, rows, units, active, d, B, D, seed, zone_h, zone_c,
                    H, H, G, MODE, False, 0.0, ZONEOUT, SAVE,
                )  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_backward_persistent(
    grad_output, gates, cells, hn, output, offsets, lengths, h0, c0, w_hh, zeros, h_mask,
    grad_gx, grad_u, dh, dc, counters,
    T, B, seed: tl.int64, zone_h: tl.int64, zone_c: tl.int64,
    D: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, ZONEOUT: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, KS: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """All backward steps, no layer norm or projection; grid as the forward's."""
    d = tl.program_id(2)
    units = tl.program_id(0) * BN + tl.arange(0, BN)[None, :]
    tiles = tl.cdiv(B, BM)
    like = tl.zeros([BM, BN], dtype=dh.dtype.element_ty)
    weights = state_weights(w_hh, units, d, H, G, KS, KC, CHUNKS)
    for s in range(T + 1):
        for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
            steps = steps_of_tile(lengths, T, tile * BM, PACKED)
            if s <= steps:
                rows = tile * BM + tl.arange(0, BM)[:, None]
                t, start, size, start_done, size_done, start_before, size_before = backward_times(
                    s, steps, offsets, d, T, B, PACKED
                )
                active = (rows < size) & (units < H)
                tl.debug_barrier()  # the last step's stores to dh and dc, by whichever thread
                saved, hn_tile, h_prev, c_prev, dc_tile = load_backward(
                    gates, hn, output, h0, cells, c0, dc, like,
                    start, start_before, size_before, rows, units, active, d, B, D, H, H, G, MODE,
                )  # fmt: skip
                carried, out = load_gradient(
                    grad_output, dh, start, rows, units, active, d, B, D, H
                )
                counter = counters + (tl.cast(s, tl.int64) * D + d) * tiles + tile
                if s > 0:
                    wait(counter - D * tiles, tl.num_programs(0))
                fed_back = state_product(
                    grad_u, weights, zeros, start_done, rows, size_done, like, d, D,
                    H, G, PRECISION, KS, KC, CHUNKS, AHEAD,
                )  # fmt: skip
                backward_point(
                    fed_back, carried, out, saved, hn_tile, h_prev, c_prev, dc_tile, h_mask,
                    grad_gx, grad_u, dh, dc, counter, start, t, rows, units, active, d, B, D,
                    seed, zone_h, zone_c, H, G, MODE, ZONEOUT,
                )  # fmt: skip
