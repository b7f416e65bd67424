"""One time step on a tile whose state lives in memory: what surrounds the recurrent product.

Used by the step kernels (a launch per step) and the persistent kernel (all steps in one launch).
State between steps, each element read and written by the program that owns it:
    h (D, B, P) the state; c (D, B, H) the cell, accumulation type;
    fed (2, D, B, P) the state as the next product reads it (recurrent dropout applied), written to
    the half that this step does not read, for every program of the same batch tile reads it;
    dh (D, B, P), dc (D, B, H) gradients carried back, accumulation type.
``rows`` is a column of sequence indices, ``units`` a row of unit indices; strides are int64.
"""

import triton
import triton.language as tl

from .rnn_cell import (
    cell_backward,
    cell_forward,
    draw,
    keep_weight,
    load_previous,
    normalize,
    normalize_backward,
)


@triton.jit
def wait(counter, count):
    """Until ``counter`` reaches ``count``; what was stored before its additions is then visible."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < count:
        pass


@triton.jit
def arrive(counter):
    """Counts this program in (None: nothing waits), once its stores so far are visible."""
    if counter is not None:
        tl.debug_barrier()  # all threads' stores come before the one thread's release
        tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def load_gates(gates, start, rows, units, valid, d, D, G: tl.constexpr, H: tl.constexpr):
    """G tiles of ``gates`` (N, D, G, H), stored type."""
    at = ((start + rows) * D + d) * (G * H) + units
    out = (tl.load(gates + at, mask=valid, other=0),)
    for g in tl.static_range(1, G):
        out = out + (tl.load(gates + at + g * H, mask=valid, other=0),)
    return out


@triton.jit
def store_gates(gates, tiles, start, rows, units, valid, d, D, G: tl.constexpr, H: tl.constexpr):
    at = ((start + rows) * D + d) * (G * H) + units
    for g in tl.static_range(G):
        tl.store(gates + at + g * H, tiles[g].to(gates.dtype.element_ty), mask=valid)


@triton.jit
def convert(tiles, like):
    """The tiles in ``like``'s type."""
    out = (tiles[0].to(like.dtype),)
    for g in tl.static_range(1, len(tiles)):
        out = out + (tiles[g].to(like.dtype),)
    return out


@triton.jit
def norm_weights(ln_gates, units, d, like, H: tl.constexpr, G: tl.constexpr):
    """gamma (D, G*H) as G tiles [1, BN]."""
    at = ln_gates + d * (G * H) + units
    out = (tl.load(at, mask=units < H, other=0).to(like.dtype),)
    for g in tl.static_range(1, G):
        out = out + (tl.load(at + g * H, mask=units < H, other=0).to(like.dtype),)
    return out


@triton.jit
def gates_norm(u, ln_gates, units, valid, d, H: tl.constexpr, G: tl.constexpr, EPS: tl.constexpr):
    """Layer norm of the recurrent product over all gates of whole rows."""
    normalized, _ = normalize(u, valid, G * H, EPS)
    gamma = norm_weights(ln_gates, units, d, u[0], H, G)
    out = (normalized[0] * gamma[0],)
    for g in tl.static_range(1, G):
        out = out + (normalized[g] * gamma[g],)
    return out


@triton.jit
def gates_norm_backward(
    du, u_raw, ln_gates, start, rows, units, valid, d, D,
    H: tl.constexpr, G: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    raw = convert(load_gates(u_raw, start, rows, units, valid, d, D, G, H), du[0])
    normalized, rstd = normalize(raw, valid, G * H, EPS)
    gamma = norm_weights(ln_gates, units, d, du[0], H, G)
    grad = (tl.where(valid, du[0] * gamma[0], 0),)
    for g in tl.static_range(1, G):
        grad = grad + (tl.where(valid, du[g] * gamma[g], 0),)
    return normalize_backward(grad, normalized, rstd, G * H)


@triton.jit
def cell_norm_weights(ln_cell, units, d, like, H: tl.constexpr, LN_CELL: tl.constexpr):
    """(gamma, beta) of the cell's layer norm (D, 2, H), [1, BN] each."""
    ln = (like, like)
    if LN_CELL:
        at = ln_cell + d * (2 * H) + units
        ln = (
            tl.load(at, mask=units < H, other=0).to(like.dtype),
            tl.load(at + H, mask=units < H, other=0).to(like.dtype),
        )
    return ln


@triton.jit
def add_bias(u, b_hh, units, d, H: tl.constexpr):
    """u plus GRU's recurrent bias (D, 3H), where there is one."""
    if b_hh is not None:
        at = b_hh + d * (3 * H) + units
        inside = units < H
        u = (
            u[0] + tl.load(at, mask=inside, other=0).to(u[0].dtype),
            u[1] + tl.load(at + H, mask=inside, other=0).to(u[0].dtype),
            u[2] + tl.load(at + 2 * H, mask=inside, other=0).to(u[0].dtype),
        )
    return u


@triton.jit
def store_state(
    h_new,  # [BM, BN] before zoneout
    output,  # (N, D, P)
    h,
    fed,
    h_mask,  # (D, B, P) or None
    counter,
    start,
    t,
    s,
    rows,
    units,
    active,
    d,
    B,
    D,
    seed,
    zone_h,
    H: tl.constexpr,
    P: tl.constexpr,
    ZONEOUT: tl.constexpr,
):
    """Zoneout of h, then h_t to the next step's product, to the state and to the output."""
    state = (d * B + rows).to(tl.int64) * P + units
    if ZONEOUT is not None:
        h_prev = tl.load(h + state, mask=active, other=0).to(h_new.dtype)
        word, _ = draw(seed, t, rows, units, d, B, D, max(H, P))
        keep = keep_weight(word, zone_h, h_new, ZONEOUT)
        h_new = keep * h_new + (1 - keep) * h_prev
    rounded = h_new.to(output.dtype.element_ty)
    half = ((s + 1) % 2) * tl.cast(B, tl.int64) * (D * P)
    if h_mask is not None:
        mask = tl.load(h_mask + state, mask=active, other=0).to(h_new.dtype)
        tl.store(
            fed + half + state, (rounded.to(h_new.dtype) * mask).to(rounded.dtype), mask=active
        )
    else:
        tl.store(fed + half + state, rounded, mask=active)
    arrive(counter)
    tl.store(h + state, rounded, mask=active)
    tl.store(output + ((start + rows) * D + d) * P + units, rounded, mask=active)


@triton.jit
def load_forward(
    gates, h, c, like, start, rows, units, active, d, B, D,
    H: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """What a forward step needs beside the product: gx, h_prev (GRU) as stored, c_prev (LSTM)."""
    gx = load_gates(gates, start, rows, units, active, d, D, G, H)
    own = (d * B + rows).to(tl.int64) * H + units
    h_prev = gx[0]
    c_prev = like
    if MODE == "LSTM":
        c_prev = tl.load(c + own, mask=active, other=0)
    if MODE == "GRU":
        h_prev = tl.load(h + own, mask=active, other=0)
    return gx, h_prev, c_prev


@triton.jit
def finish_forward(
    u,  # G tiles: the recurrent side, normalized and biased
    gx,
    h_prev,
    c_prev,
    ln,
    gates,
    h,
    c,
    fed,
    h_mask,
    output,
    cells,
    hn,
    m,  # (D, B, H) the state before its projection, or None
    counter,  # of this step's finished tiles, or None
    start,
    t,
    s,
    rows,
    units,
    active,
    d,
    B,
    D,
    seed,
    zone_h,
    zone_c,
    H: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    MODE: tl.constexpr,
    LN_CELL: tl.constexpr,
    EPS: tl.constexpr,
    ZONEOUT: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Point-wise part of a forward step and everything it stores."""
    acc = u[0]
    activated, h_new, c_new = cell_forward(
        convert(gx, acc), u, h_prev.to(acc.dtype), c_prev, ln, active, H, MODE, LN_CELL, EPS
    )
    # The state first: with a counter, other programs wait for nothing else.
    own = (d * B + rows).to(tl.int64) * H + units
    if m is not None:
        tl.store(m + own, h_new.to(m.dtype.element_ty), mask=active)
    else:
        store_state(
            h_new, output, h, fed, h_mask, counter, start, t, s, rows, units, active, d, B, D,
            seed, zone_h, H, P, ZONEOUT,
        )  # fmt: skip
    if SAVE:
        store_gates(gates, activated, start, rows, units, active, d, D, G, H)
    row = ((start + rows) * D + d) * H + units
    if MODE == "LSTM":
        if ZONEOUT is not None:
            _, word = draw(seed, t, rows, units, d, B, D, max(H, P))
            keep = keep_weight(word, zone_c, c_new, ZONEOUT)
            c_new = keep * c_new + (1 - keep) * c_prev
        tl.store(c + own, c_new, mask=active)
        if SAVE:
            tl.store(cells + row, c_new, mask=active)
    if MODE == "GRU" and SAVE:
        tl.store(hn + row, u[2].to(hn.dtype.element_ty), mask=active)


@triton.jit
def load_gradient(grad_output, dh, start, rows, units, active, d, B, D, P: tl.constexpr):
    """Gradient of h_t but for the product: what is carried, and the output's as stored."""
    state = (d * B + rows).to(tl.int64) * P + units
    carried = tl.load(dh + state, mask=(rows < B) & (units < P), other=0)
    out = tl.load(grad_output + ((start + rows) * D + d) * P + units, mask=active, other=0)
    return carried, out


@triton.jit
def gradient_of_state(fed_back, carried, out, h_mask, rows, units, d, B, P: tl.constexpr):
    """Gradient of h_t: carried, sent back by the following step's product, and the output's."""
    if h_mask is not None:
        state = (d * B + rows).to(tl.int64) * P + units
        mask = tl.load(h_mask + state, mask=(rows < B) & (units < P), other=0)
        fed_back *= mask.to(fed_back.dtype)
    return carried + fed_back + out.to(fed_back.dtype)


@triton.jit
def split_gradient(
    total, t, rows, units, d, B, D, seed, zone_h,
    H: tl.constexpr, P: tl.constexpr, ZONEOUT: tl.constexpr,
):  # fmt: skip
    """Zoneout of the gradient of h_t: the new state's part, and what is carried to h_{t-1}."""
    carried = tl.zeros_like(total)
    new = total
    if ZONEOUT is not None:
        word, _ = draw(seed, t, rows, units, d, B, D, max(H, P))
        keep = keep_weight(word, zone_h, total, ZONEOUT)
        carried = total * (1 - keep)
        new = total * keep
    return new, carried


@triton.jit
def load_backward(
    gates, hn, output, h0, cells, c0, dc, like,
    start, start_before, size_before, rows, units, active, d, B, D,
    H: tl.constexpr, P: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """What a backward step needs beside the product, as stored: gates, hn, h_prev, c_prev, dc."""
    saved = load_gates(gates, start, rows, units, active, d, D, G, H)
    hn_tile = saved[0]
    h_prev = saved[0]
    c_prev = like
    dc_tile = like
    if MODE == "LSTM":
        c_prev = load_previous(
            cells, c0, start_before, size_before, rows, units, d, B, D, H, active
        )
        dc_tile = tl.load(dc + (d * B + rows).to(tl.int64) * H + units, mask=active, other=0)
    if MODE == "GRU":
        h_prev = load_previous(
            output, h0, start_before, size_before, rows, units, d, B, D, H, active
        )
        hn_tile = tl.load(hn + ((start + rows) * D + d) * H + units, mask=active, other=0)
    return saved, hn_tile, h_prev, c_prev, dc_tile


@triton.jit
def finish_backward(
    new,  # [BM, BN] gradient of the new state, before zoneout and projection
    carried,  # gradient that zoneout carries to h_prev
    total,  # gradient of h_t: where a sequence has ended (not ``active``), that of its h0
    saved,
    hn_tile,
    h_prev,
    c_prev,
    dc_tile,
    u_raw,  # (N, D, G, H) with LN, else None
    ln_gates,  # (D, G*H)
    ln,  # (gamma, beta) of the cell's norm
    dh,  # None where the projection's tiles keep it
    dc,
    grad_gx,  # (N, D, G, H)
    grad_u,  # (N, D, G, H): apart from grad_gx for GRU and with LN
    grad_ln_cell,  # (N, D, H)
    counter,  # of this step's finished tiles, or None
    start,
    t,
    rows,
    units,
    active,
    d,
    B,
    D,
    seed,
    zone_c,
    H: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    MODE: tl.constexpr,
    LN: tl.constexpr,
    LN_CELL: tl.constexpr,
    EPS: tl.constexpr,
    ZONEOUT: tl.constexpr,
):
    """Point-wise part of a backward step and everything it stores."""
    keep = 1.0
    if ZONEOUT is not None and MODE == "LSTM":
        _, word = draw(seed, t, rows, units, d, B, D, max(H, P))
        keep = keep_weight(word, zone_c, new, ZONEOUT)
    pre, du, dh_prev, dc_prev, dln = cell_backward(
        convert(saved, new), hn_tile.to(new.dtype), new, h_prev.to(new.dtype), c_prev, dc_tile,
        keep, ln, active, H, MODE, LN_CELL, EPS,
    )  # fmt: skip
    if LN:
        du = gates_norm_backward(du, u_raw, ln_gates, start, rows, units, active, d, D, H, G, EPS)
    store_gates(grad_u, du, start, rows, units, active, d, D, G, H)
    arrive(counter)
    if MODE == "GRU" or LN:
        store_gates(grad_gx, pre, start, rows, units, active, d, D, G, H)
    own = (d * B + rows).to(tl.int64) * H + units
    if MODE == "LSTM":
        tl.store(dc + own, dc_prev, mask=active)
        if LN_CELL:
            at = ((start + rows) * D + d) * H + units
            tl.store(grad_ln_cell + at, dln.to(grad_ln_cell.dtype.element_ty), mask=active)
    if MODE == "GRU":
        carried += dh_prev
    if dh is not None:
        tl.store(dh + own, tl.where(active, carried, total), mask=(rows < B) & (units < H))


@triton.jit
def backward_point(
    fed_back, carried, out, saved, hn_tile, h_prev, c_prev, dc_tile, h_mask, grad_gx, grad_u,
    dh, dc, counter, start, t, rows, units, active, d, B, D, seed, zone_h, zone_c,
    H: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, ZONEOUT: tl.constexpr,
):  # fmt: skip
    """Point-wise part of a step without layer norm and projection; fed_back = W_hh^T grad_u."""
    total = gradient_of_state(fed_back, carried, out, h_mask, rows, units, d, B, H)
    new, kept = split_gradient(total, t, rows, units, d, B, D, seed, zone_h, H, H, ZONEOUT)
    finish_backward(
        new, kept, total, saved, hn_tile, h_prev, c_prev, dc_tile, None, None, None, dh, dc,
        grad_gx, grad_u, None, counter, start, t, rows, units, active, d, B, D, seed, zone_c,
        H, H, G, MODE, False, False, 0.0, ZONEOUT,
    )  # fmt: skip
