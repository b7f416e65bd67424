"""The recurrent cells on tiles, forward and backward: what all the recurrent kernels share.

Tiles are [BM, BN]: BM sequences (``rows``, a column of indices) by BN units (``units``, a row of
indices); gates come as tuples of G tiles. Everything here is in the accumulation type (float32, or
float64 for float64). Gate order is torch's: LSTM i, f, g, o; GRU r, z, n.
"""

import triton
import triton.language as tl

from .elementary import sigmoid, tanh


@triton.jit
def steps_of_tile(lengths, T, row, PACKED: tl.constexpr):
    """Steps that the tile starting at ``row`` has: its first sequence is its longest."""
    if PACKED:
        steps = tl.load(lengths + row).to(tl.int32)
    else:
        steps = T
    return steps


@triton.jit
def time_of(s, steps, backwards):
    """Time of a tile's s-th step, walking its own sequences forwards or backwards in time."""
    return tl.where(backwards, steps - 1 - s, s)


@triton.jit
def span(offsets, t, T, B, PACKED: tl.constexpr):
    """First row and number of rows of time t; no rows outside 0 … T - 1 (asked for -2 … T + 1)."""
    if PACKED:
        start = tl.load(offsets + t + 2)
        size = (tl.load(offsets + t + 3) - start).to(tl.int32)
    else:
        start = tl.cast(t, tl.int64) * B
        size = tl.where((t >= 0) & (t < T), B, 0)
    return start, size


@triton.jit
def backward_times(s, steps, offsets, d, T, B, PACKED: tl.constexpr):
    """Time of a tile's s-th backward step; and first row and rows of it, of the time just done, and
    of the time that comes before it in the forward pass."""
    t = time_of(s, steps, d == 0)
    towards = tl.where(d == 0, -1, 1)
    start, size = span(offsets, t, T, B, PACKED)
    start_done, size_done = span(offsets, t - towards, T, B, PACKED)
    start_before, size_before = span(offsets, t + towards, T, B, PACKED)
    return t, start, size, start_done, size_done, start_before, size_before


@triton.jit
def load_previous(values, initial, start, size, rows, units, d, B, D, W, valid):
    """What a step started from: ``values`` (N, D, W) a time before, else ``initial`` (D, B, W)."""
    had = valid & (rows < size)
    old = tl.load(values + ((start + rows) * D + d) * W + units, mask=had, other=0)
    first = tl.load(initial + (d * B + rows).to(tl.int64) * W + units, mask=valid & ~had, other=0)
    return tl.where(had, old, first.to(old.dtype))


@triton.jit
def draw(seed, t, rows, units, d, B, D, W):
    """Words 0 and 1 of Philox4x32-10 for each element: they decide zoneout of h and of c."""
    e = ((tl.cast(t, tl.int64) * B + rows) * D + d) * W + units
    low = (e & 0xFFFFFFFF).to(tl.uint32)
    high = (e >> 32).to(tl.uint32)
    zero = low * 0
    word0, word1, _, _ = tl.philox(seed, low, high, zero, zero)
    return word0, word1


@triton.jit
def keep_weight(word, zone, like, ZONEOUT: tl.constexpr):
    """Weight of the new state against the old. zone: a threshold of 2^32, or 2^53 z (mean)."""
    if ZONEOUT == "random":
        keep = tl.where(word.to(tl.int64) >= zone, 1.0, 0.0).to(like.dtype)
    else:
        weight = (1.0 - tl.cast(zone, tl.float64) * (2.0**-53)).to(like.dtype)
        keep = tl.zeros_like(like) + weight
    return keep


@triton.jit
def normalize(x, valid, COUNT: tl.constexpr, EPS: tl.constexpr):
    """(x - mean) / std over whole rows of a tuple of tiles, 0 outside ``valid``; and 1 / std."""
    total = tl.sum(tl.where(valid, x[0], 0), 1)
    for g in tl.static_range(1, len(x)):
        total += tl.sum(tl.where(valid, x[g], 0), 1)
    mean = (total / COUNT)[:, None]
    centred = (tl.where(valid, x[0] - mean, 0),)
    for g in tl.static_range(1, len(x)):
        centred = centred + (tl.where(valid, x[g] - mean, 0),)
    squares = tl.sum(centred[0] * centred[0], 1)
    for g in tl.static_range(1, len(x)):
        squares += tl.sum(centred[g] * centred[g], 1)
    rstd = 1 / tl.sqrt(squares / COUNT + EPS)[:, None]
    normalized = (centred[0] * rstd,)
    for g in tl.static_range(1, len(x)):
        normalized = normalized + (centred[g] * rstd,)
    return normalized, rstd


@triton.jit
def normalize_backward(grad, normalized, rstd, COUNT: tl.constexpr):
    """Gradient of ``normalize``'s input given that of its output (0 outside the valid part)."""
    total = tl.sum(grad[0], 1)
    along = tl.sum(grad[0] * normalized[0], 1)
    for g in tl.static_range(1, len(grad)):
        total += tl.sum(grad[g], 1)
        along += tl.sum(grad[g] * normalized[g], 1)
    total = (total / COUNT)[:, None]
    along = (along / COUNT)[:, None]
    out = ((grad[0] - total - normalized[0] * along) * rstd,)
    for g in tl.static_range(1, len(grad)):
        out = out + ((grad[g] - total - normalized[g] * along) * rstd,)
    return out


@triton.jit
def cell_forward(
    gx,  # G tiles: input side of the gates
    u,  # G tiles: recurrent side of the gates
    h_prev,  # GRU
    c_prev,  # LSTM
    ln,  # (gamma, beta) of the cell's layer norm, [1, BN] each; only read with LN_CELL
    valid,
    H: tl.constexpr,
    MODE: tl.constexpr,
    LN_CELL: tl.constexpr,  # the tile then holds whole rows
    EPS: tl.constexpr,
):
    """Activated gates (a tuple), the new state before zoneout and projection, and the new cell."""
    if MODE == "LSTM":
        i = sigmoid(gx[0] + u[0])
        f = sigmoid(gx[1] + u[1])
        g = tanh(gx[2] + u[2])
        o = sigmoid(gx[3] + u[3])
        gates = (i, f, g, o)
        c = f * c_prev + i * g
        if LN_CELL:
            x, _ = normalize((c,), valid, H, EPS)
            h = o * tanh(x[0] * ln[0] + ln[1])
        else:
            h = o * tanh(c)
    elif MODE == "GRU":
        r = sigmoid(gx[0] + u[0])
        z = sigmoid(gx[1] + u[1])
        n = tanh(gx[2] + r * u[2])
        gates = (r, z, n)
        h = (1 - z) * n + z * h_prev
        c = h
    else:
        h = gx[0] + u[0]
        if MODE == "RNN_TANH":
            h = tanh(h)
        else:
            h = tl.where(h < 0, 0, h)
        gates = (h,)
        c = h
    return gates, h, c


@triton.jit
def cell_backward(
    gates,  # G tiles: activated gates
    hn,  # GRU: recurrent part of the n gate
    dh,  # gradient of the new state before zoneout and projection
    h_prev,  # GRU
    c_prev,  # LSTM
    dc,  # LSTM: gradient of the cell after zoneout
    keep_c,  # LSTM: weight of the new cell against the old
    ln,
    valid,
    H: tl.constexpr,
    MODE: tl.constexpr,
    LN_CELL: tl.constexpr,
    EPS: tl.constexpr,
):
    """Gradients of the gates' input and recurrent side (tuples), h_prev (GRU), c_prev, LN_cell."""
    if MODE == "LSTM":
        i, f, g, o = gates
        c = f * c_prev + i * g
        if LN_CELL:
            x, rstd = normalize((c,), valid, H, EPS)
            th = tanh(x[0] * ln[0] + ln[1])
            dln = dh * o * (1 - th * th)
            dx = normalize_backward((tl.where(valid, dln * ln[0], 0),), x, rstd, H)
            dm = dx[0]
        else:
            th = tanh(c)
            dln = dh * o * (1 - th * th)
            dm = dln
        dm += dc * keep_c
        pre = (
            dm * g * i * (1 - i),
            dm * c_prev * f * (1 - f),
            dm * i * (1 - g * g),
            dh * th * o * (1 - o),
        )
        du = pre
        dc_prev = dc * (1 - keep_c) + dm * f
        dh_prev = dln
    elif MODE == "GRU":
        r, z, n = gates
        dn = (dh - dh * z) * (1 - n * n)
        dz = dh * (h_prev - n) * z * (1 - z)
        dr = dn * hn * r * (1 - r)
        pre = (dr, dz, dn)
        du = (dr, dz, dn * r)
        dh_prev = dh * z
        dc_prev = dh_prev
        dln = dh_prev
    else:
        a = gates[0]
        if MODE == "RNN_TANH":
            da = dh * (1 - a * a)
        else:
            da = tl.where(a <= 0, 0, dh)  # of a NaN the gradient passes
        pre = (da,)
        du = pre
        dh_prev = da
        dc_prev = da
        dln = da
    return pre, du, dh_prev, dc_prev, dln


@triton.jit
def product(a, w, acc, PRECISION: tl.constexpr):
    """acc + a @ w, [.., BM, BK] by [.., BK, BN]. Fewer than 16 rows: multiply and reduce."""
    if a.shape[len(a.shape) - 2] < 16:
        axis: tl.constexpr = len(a.shape) - 1
        acc += tl.sum(tl.expand_dims(a, axis + 1).to(acc.dtype) * tl.expand_dims(w, axis - 1), axis)
    else:
        acc = tl.dot(a, w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc
