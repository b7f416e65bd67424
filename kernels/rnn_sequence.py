"""The sequence kernels: a program for each batch tile and direction runs all steps.

Weights stay resident (W_hh as G tiles, W_hr as one) and the state stays in registers, so whole rows
must fit one program: small hidden sizes. Every feature is served. BH and BP are H and P rounded up
to powers of two.
"""

import triton
import triton.language as tl

from .rnn_cell import (
    backward_times,
    cell_backward,
    cell_forward,
    draw,
    keep_weight,
    load_previous,
    product,
    span,
    steps_of_tile,
    time_of,
)
from .rnn_state import (
    add_bias,
    cell_norm_weights,
    convert,
    gates_norm,
    gates_norm_backward,
    load_gates,
    split_gradient,
    store_gates,
)

_RUNTIME = ["T", "B", "seed", "zone_h", "zone_c"]


@triton.jit
def whole_weights(w_hh, j, k, d, H: tl.constexpr, P: tl.constexpr, G: tl.constexpr):
    """w_hh (D, G*H, P) as G tiles over units ``j`` and state ``k``, either being the column."""
    at = w_hh + (tl.cast(d, tl.int64) * G * H + j) * P + k
    valid = (j < H) & (k < P)
    out = (tl.load(at, mask=valid, other=0),)
    for g in tl.static_range(1, G):
        out = out + (tl.load(at + g * H * P, mask=valid, other=0),)
    return out


@triton.jit
def projection_weights(w_hr, j, k, d, H: tl.constexpr, P: tl.constexpr):
    """w_hr (D, P, H) over units ``j`` and state ``k``, whichever of them is the column."""
    at = w_hr + (tl.cast(d, tl.int64) * P + k) * H + j
    return tl.load(at, mask=(j < H) & (k < P), other=0)


@triton.jit
def load_mask(h_mask, rows, k, valid, d, B, like, P: tl.constexpr):
    """Recurrent dropout's factors, [BM, BP]; 1 where there is none."""
    mask = like * 0 + 1
    if h_mask is not None:
        at = h_mask + (d * B + rows).to(tl.int64) * P + k
        mask = tl.load(at, mask=valid, other=0).to(like.dtype)
    return mask


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_forward_sequence(
    gates, offsets, lengths, h0, c0, w_hh, b_hh, w_hr, ln_gates, ln_cell, h_mask,
    output, h_n, c_n, cells, hn, T, B, seed: tl.int64, zone_h: tl.int64, zone_c: tl.int64,
    D: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, PROJECTED: tl.constexpr,
    LN: tl.constexpr, LN_CELL: tl.constexpr, EPS: tl.constexpr, ZONEOUT: tl.constexpr,
    SAVE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    j = tl.arange(0, BH)
    k = tl.arange(0, BP)
    units = j[None, :]
    outs = k[None, :]
    steps = steps_of_tile(lengths, T, tl.program_id(0) * BM, PACKED)
    mine = (rows < B) & (outs < P)
    own = (d * B + rows).to(tl.int64)

    weights = whole_weights(w_hh, units, k[:, None], d, H, P, G)
    if PROJECTED:
        projection = projection_weights(w_hr, j[:, None], outs, d, H, P)
    zero = tl.zeros([BM, BH], dtype=ACC)
    ln = cell_norm_weights(ln_cell, units, d, zero, H, LN_CELL)
    mask = load_mask(h_mask, rows, outs, mine, d, B, tl.zeros([BM, BP], dtype=ACC), P)
    h = tl.load(h0 + own * P + outs, mask=mine, other=0)
    c = zero
    if MODE == "LSTM":
        c = tl.load(c0 + own * H + units, mask=(rows < B) & (units < H), other=0).to(ACC)

    start, size = span(offsets, time_of(0, steps, d == 1), T, B, PACKED)
    ahead = load_gates(gates, start, rows, units, (rows < size) & (units < H), d, D, G, H)
    for s in range(steps):
        t = time_of(s, steps, d == 1)
        start, size = span(offsets, t, T, B, PACKED)
        active = (rows < size) & (units < H)
        written = (rows < size) & (outs < P)
        gx = ahead
        start_next, size_next = span(offsets, time_of(s + 1, steps, d == 1), T, B, PACKED)
        valid_next = (rows < size_next) & (units < H)
        ahead = load_gates(gates, start_next, rows, units, valid_next, d, D, G, H)

        fed = h
        if h_mask is not None:
            fed = (h.to(ACC) * mask).to(h.dtype)
        u = (product(fed, weights[0], zero, PRECISION),)
        for g in tl.static_range(1, G):
            u = u + (product(fed, weights[g], zero, PRECISION),)
        if LN:
            u = gates_norm(u, ln_gates, units, active, d, H, G, EPS)
        u = add_bias(u, b_hh, units, d, H)
        activated, h_new, c_new = cell_forward(
            convert(gx, zero), u, h.to(ACC), c, ln, active, H, MODE, LN_CELL, EPS
        )
        if SAVE:
            store_gates(gates, activated, start, rows, units, active, d, D, G, H)
        row = ((start + rows) * D + d) * H + units
        if MODE == "LSTM":
            if ZONEOUT is not None:
                _, word = draw(seed, t, rows, units, d, B, D, max(H, P))
                keep_c = keep_weight(word, zone_c, c_new, ZONEOUT)
                c_new = keep_c * c_new + (1 - keep_c) * c
            c = tl.where(active, c_new, c)
            if SAVE:
                tl.store(cells + row, c_new, mask=active)
        if MODE == "GRU" and SAVE:
            tl.store(hn + row, u[2].to(hn.dtype.element_ty), mask=active)
        if PROJECTED:
            m = h_new.to(h.dtype)
            h_new = product(m, projection, tl.zeros([BM, BP], dtype=ACC), PRECISION)
        if ZONEOUT is not None:
            word, _ = draw(seed, t, rows, outs, d, B, D, max(H, P))
            keep = keep_weight(word, zone_h, h_new, ZONEOUT)
            h_new = keep * h_new + (1 - keep) * h.to(ACC)
        rounded = h_new.to(h.dtype)
        h = tl.where(written, rounded, h)
        tl.store(output + ((start + rows) * D + d) * P + outs, rounded, mask=written)
    tl.store(h_n + own * P + outs, h, mask=mine)
    if MODE == "LSTM":
        at = c_n + own * H + units
        tl.store(at, c.to(c_n.dtype.element_ty), mask=(rows < B) & (units < H))


@triton.jit
def load_saved(
    s, steps, grad_output, gates, cells, hn, output, h0, c0, offsets, rows, units, outs, zero,
    d, T, B, D, H: tl.constexpr, P: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """What backward step s reads: the output's gradient and the saved values, as stored."""
    _, start, size, _, _, start_before, size_before = backward_times(
        s, steps, offsets, d, T, B, PACKED
    )
    active = (rows < size) & (units < H)
    written = (rows < size) & (outs < P)
    out = tl.load(grad_output + ((start + rows) * D + d) * P + outs, mask=written, other=0)
    saved = load_gates(gates, start, rows, units, active, d, D, G, H)
    hn_tile = saved[0]
    h_prev = saved[0]
    c_prev = zero
    if MODE == "LSTM":
        c_prev = load_previous(
            cells, c0, start_before, size_before, rows, units, d, B, D, H, active
        )
    if MODE == "GRU":
        h_prev = load_previous(
            output, h0, start_before, size_before, rows, units, d, B, D, H, active
        )
        hn_tile = tl.load(hn + ((start + rows) * D + d) * H + units, mask=active, other=0)
    return out, saved, hn_tile, h_prev, c_prev


@triton.jit(do_not_specialize=_RUNTIME)
def rnn_backward_sequence(
    grad_output, grad_h_n, grad_c_n, gates, cells, hn, output, u_raw, offsets, lengths, h0, c0,
    w_hh, w_hr, ln_gates, ln_cell, h_mask,
    grad_gx, grad_u, grad_proj, grad_ln_cell, grad_h0, grad_c0,
    T, B, seed: tl.int64, zone_h: tl.int64, zone_c: tl.int64,
    D: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, PROJECTED: tl.constexpr,
    LN: tl.constexpr, LN_CELL: tl.constexpr, EPS: tl.constexpr, ZONEOUT: tl.constexpr,
    PACKED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    j = tl.arange(0, BH)
    k = tl.arange(0, BP)
    units = j[None, :]
    outs = k[None, :]
    steps = steps_of_tile(lengths, T, tl.program_id(0) * BM, PACKED)
    mine = (rows < B) & (outs < P)
    own_units = (rows < B) & (units < H)
    own = (d * B + rows).to(tl.int64)

    weights = whole_weights(w_hh, j[:, None], outs, d, H, P, G)
    if PROJECTED:
        projection = projection_weights(w_hr, units, k[:, None], d, H, P)
    zero = tl.zeros([BM, BH], dtype=ACC)
    zero_out = tl.zeros([BM, BP], dtype=ACC)
    ln = cell_norm_weights(ln_cell, units, d, zero, H, LN_CELL)
    mask = load_mask(h_mask, rows, outs, mine, d, B, zero_out, P)
    dh = zero_out
    if grad_h_n is not None:
        dh = tl.load(grad_h_n + own * P + outs, mask=mine, other=0).to(ACC)
    dc = zero
    if grad_c_n is not None:
        dc = tl.load(grad_c_n + own * H + units, mask=own_units, other=0).to(ACC)

    ahead = load_saved(
        0, steps, grad_output, gates, cells, hn, output, h0, c0, offsets, rows, units, outs, zero,
        d, T, B, D, H, P, G, MODE, PACKED,
    )  # fmt: skip
    for s in range(steps):
        t, start, size, _, _, _, _ = backward_times(s, steps, offsets, d, T, B, PACKED)
        active = (rows < size) & (units < H)
        written = (rows < size) & (outs < P)
        out, saved, hn_tile, h_prev, c_prev = ahead
        ahead = load_saved(
            s + 1, steps, grad_output, gates, cells, hn, output, h0, c0, offsets, rows, units,
            outs, zero, d, T, B, D, H, P, G, MODE, PACKED,
        )  # fmt: skip
        total = dh + out.to(ACC)
        new, carried = split_gradient(total, t, rows, outs, d, B, D, seed, zone_h, H, P, ZONEOUT)
        if PROJECTED:
            rounded = new.to(grad_gx.dtype.element_ty)
            tl.store(grad_proj + ((start + rows) * D + d) * P + outs, rounded, mask=written)
            new = product(rounded, projection, zero, PRECISION)
        keep = 1.0
        if ZONEOUT is not None and MODE == "LSTM":
            _, word = draw(seed, t, rows, units, d, B, D, max(H, P))
            keep = keep_weight(word, zone_c, new, ZONEOUT)
        pre, du, dh_prev, dc_prev, dln = cell_backward(
            convert(saved, zero), hn_tile.to(ACC), new, h_prev.to(ACC), c_prev, dc, keep,
            ln, active, H, MODE, LN_CELL, EPS,
        )  # fmt: skip
        store_gates(grad_gx, pre, start, rows, units, active, d, D, G, H)
        if LN:
            du = gates_norm_backward(
                du, u_raw, ln_gates, start, rows, units, active, d, D, H, G, EPS
            )
        if MODE == "GRU" or LN:
            store_gates(grad_u, du, start, rows, units, active, d, D, G, H)
        if LN_CELL:
            into = grad_ln_cell + ((start + rows) * D + d) * H + units
            tl.store(into, dln.to(grad_ln_cell.dtype.element_ty), mask=active)
        if MODE == "LSTM":
            dc = tl.where(active, dc_prev, dc)
        if MODE == "GRU":
            carried += dh_prev
        back = zero_out
        for g in tl.static_range(G):
            x = tl.where(active, du[g], 0).to(grad_gx.dtype.element_ty)
            back = product(x, weights[g], back, PRECISION)
        dh = tl.where(written, carried + back * mask, dh)
    tl.store(grad_h0 + own * P + outs, dh.to(grad_h0.dtype.element_ty), mask=mine)
    if MODE == "LSTM":
        tl.store(grad_c0 + own * H + units, dc.to(grad_c0.dtype.element_ty), mask=own_units)
