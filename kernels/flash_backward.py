"""Flash attention backward: each gradient summed by one program in one order, so deterministic.

With p the weights, dp = dO v^T and delta = rowsum(dO O) - d lse:
dV = p^T dO, ds = p (dp - delta), dQ = scale ds k, dK = scale ds^T q. Dropout scales p in dV and dp
by what it did to p; then rowsum(dO O) still is rowsum(p dp). Softcap: ds times 1 - tanh^2.
Programs own blocks of keys (dK and dV, over all query heads that share a key head), or of queries.
Shapes as in flash_forward.py; delta is as lse.
"""

import triton
import triton.language as tl

from .flash_tile import (
    RUNTIME,
    kept,
    load_norm,
    load_rows,
    load_walked,
    power,
    scores,
    sequence,
    store_rows,
    tiles_seen,
    walked,
)


@triton.jit(do_not_specialize=RUNTIME)
def attention_delta(
    out, grad_out, grad_lse, delta,
    out_b, out_h, out_s, grad_out_b, grad_out_h, grad_out_s,
    sq, H, DV: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BDV: tl.constexpr,
):  # fmt: skip
    """delta (B, H, sq) of all tokens, packed or not."""
    blocks = tl.cdiv(sq, BM)
    first = tl.program_id(0) % blocks * BM
    b = (tl.program_id(0) // blocks // H).to(tl.int64)
    h = (tl.program_id(0) // blocks % H).to(tl.int64)
    o = load_rows(out + b * out_b + h * out_h, first, sq, out_s, DV, BM, BDV, True, INDEX)
    at = grad_out + b * grad_out_b + h * grad_out_h
    g = load_rows(at, first, sq, grad_out_s, DV, BM, BDV, True, INDEX)
    total = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    i = first + tl.arange(0, BM)
    at = (b * H + h) * sq + i
    if grad_lse is not None:
        total -= tl.load(grad_lse + at, mask=i < sq, other=0)
    tl.store(delta + at, total, mask=i < sq)


@triton.jit
def _absorb_queries(
    dk, dv, keys, values, q, grad_out, norm, delta, q_s, grad_out_s, first_key, lengths, window,
    form, draw,
    first, before, gap, count,  # tiles first …, of which ``gap`` are left out after ``before``
    D: tl.constexpr, DV: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, TMA: tl.constexpr,
    CHECK: tl.constexpr,
):  # fmt: skip
    """Scores lie keys by queries here: their products then need no transposing."""
    j = first_key + tl.arange(0, BN)[:, None]
    sq, keep_scale = lengths[0], draw[2]
    for n in range(count):
        start = (first + n + tl.where(n < before, 0, gap)) * BM
        i = start + tl.arange(0, BM)[None, :]
        queries = load_walked(q, start, sq, q_s, D, BM, BD, CHECK, INDEX, TMA)
        product = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        s, t = scores(product, i, j, lengths, window, form, CHECK, SOFTCAP, ALIBI, MASK)
        first_norm, second_norm = load_norm(norm, i, i < sq)
        p = power(s - first_norm, MASK)
        if queries.dtype == tl.float32 and not DROPOUT:
            p *= second_norm  # 16 bits need it less, and with dropout registers are short
        dropped = p
        if DROPOUT:
            keep = tl.trans(kept(draw, start, first_key, BM, BN))
            dropped = tl.where(keep, p, 0.0)
        upstream = load_walked(grad_out, start, sq, grad_out_s, DV, BM, BDV, CHECK, INDEX, TMA)
        dv = tl.dot(dropped.to(upstream.dtype), upstream, dv, input_precision=PRECISION)
        dp = tl.dot(values, tl.trans(upstream), input_precision=PRECISION)
        if DROPOUT:
            dp = tl.where(keep, dp * keep_scale, 0.0)
        ds = p * (dp - tl.load(delta + i, mask=i < sq, other=0))
        if SOFTCAP:
            ds *= 1 - t * t
        dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=[name for name in RUNTIME if name != "GROUP"])
def attention_backward_keys(
    q, k, v, grad_out, norm, delta, mask, cu_q, cu_k, slopes, grad_k, grad_v,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, grad_out_b, grad_out_h, grad_out_s, lse_b, lse_h,
    mask_b, mask_h, mask_q, mask_k, slopes_b,
    grad_k_b, grad_k_h, grad_k_s, grad_v_b, grad_v_h, grad_v_s,
    sq, sk, left, right, scale, softcap, seed: tl.int64, threshold: tl.int64, keep_scale,
    rows, quads, sizes,
    H,
    GROUP: tl.constexpr,  # bounds the loop around all others: unknown, it would cost registers
    D: tl.constexpr, DV: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr, VARLEN: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys, over the queries that see them."""
    blocks = tl.cdiv(sk, BN)
    first_key = tl.program_id(0) % blocks * BN
    key_heads = H // GROUP
    b = (tl.program_id(0) // blocks // key_heads).to(tl.int64)
    key_head = (tl.program_id(0) // blocks % key_heads).to(tl.int64)
    start_q, sq = sequence(cu_q, b, sq, VARLEN)
    start_k, sk = sequence(cu_k, b, sk, VARLEN)
    if first_key >= sk:
        return
    k += b * k_b + key_head * k_h + start_k * k_s
    v += b * v_b + key_head * v_h + start_k * v_s
    offset = 0
    if BOTTOM_RIGHT:
        offset = sk - sq
    lengths, window = (sq, sk), (offset, left, right)
    first, full, full_end, end = tiles_seen(first_key, BN, (-offset, right, left), sq, BM)
    keys = load_rows(k, first_key, sk, k_s, D, BN, BD, True, INDEX)
    values = load_rows(v, first_key, sk, v_s, DV, BN, BDV, True, INDEX)
    dk = tl.zeros([BN, BD], dtype=tl.float32)
    dv = tl.zeros([BN, BDV], dtype=tl.float32)
    for g in range(GROUP):
        h = key_head * GROUP + g
        at = q + b * q_b + h * q_h + start_q * q_s
        queries_of = walked(at, sq, q_s, D, BM, BD, TMA)
        at = grad_out + b * grad_out_b + h * grad_out_h + start_q * grad_out_s
        upstream_of = walked(at, sq, grad_out_s, DV, BM, BDV, TMA)
        sums = b * lse_b + h * lse_h + start_q
        mask_of = norm  # for want of None, which tuples made in loops cannot hold
        if MASK is not None:
            mask_of = mask + (b * mask_b + h * mask_h)
        slope = 0.0
        if ALIBI:
            slope = tl.load(slopes + b * slopes_b + h).to(tl.float32)
        form = (scale, softcap, slope, mask_of, mask_q, mask_k)
        draw = (seed, threshold, keep_scale, (b * H + h) * rows, quads)
        dk, dv = _absorb_queries(
            dk, dv, keys, values, queries_of, upstream_of, norm + 2 * sums, delta + sums, q_s,
            grad_out_s, first_key, lengths, window, form, draw,
            full, 0, 0, full_end - full,
            D, DV, MASK, SOFTCAP, ALIBI, DROPOUT, PRECISION, INDEX, BM, BN, BD, BDV, TMA, False,
        )  # fmt: skip
        dk, dv = _absorb_queries(
            dk, dv, keys, values, queries_of, upstream_of, norm + 2 * sums, delta + sums, q_s,
            grad_out_s, first_key, lengths, window, form, draw,
            first, full - first, full_end - full, full - first + end - full_end,
            D, DV, MASK, SOFTCAP, ALIBI, DROPOUT, PRECISION, INDEX, BM, BN, BD, BDV, TMA, True,
        )  # fmt: skip
    if DROPOUT:
        dv *= keep_scale
    grad_k += b * grad_k_b + key_head * grad_k_h + start_k * grad_k_s
    grad_v += b * grad_v_b + key_head * grad_v_h + start_k * grad_v_s
    store_rows(grad_k, dk * scale, first_key, sk, grad_k_s, D, BN, BD, INDEX)
    store_rows(grad_v, dv, first_key, sk, grad_v_s, DV, BN, BDV, INDEX)


@triton.jit
def gradient_of_scores(
    product, dp, sums, first_query, first_key, lengths, window, form, draw,
    MASK: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Of a tile of scores, queries by keys, as the softmax takes them; and the softcap's tanh."""
    i = first_query + tl.arange(0, BM)[:, None]
    j = first_key + tl.arange(0, BN)[None, :]
    s, t = scores(product, i, j, lengths, window, form, CHECK, SOFTCAP, ALIBI, MASK)
    if DROPOUT:
        dp = tl.where(kept(draw, first_query, first_key, BM, BN), dp * draw[2], 0.0)
    first, second, delta = sums
    return power(s - first, MASK) * second * (dp - delta), t


@triton.jit
def load_sums(norm, delta, first, sq, BM: tl.constexpr):
    """What a block of queries' weights are made from, both of its numbers; and delta."""
    i = first + tl.arange(0, BM)[:, None]
    first, second = load_norm(norm, i, i < sq)
    return first, second, tl.load(delta + i, mask=i < sq, other=0)


@triton.jit
def _absorb_keys(
    dq, queries, upstream, sums, k, v, k_s, v_s, first_query, lengths, window, form, draw,
    first, before, gap, count,  # tiles first …, of which ``gap`` are left out after ``before``
    D: tl.constexpr, DV: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, TMA: tl.constexpr,
    CHECK: tl.constexpr,
):  # fmt: skip
    sk = lengths[1]
    for n in range(count):
        start = (first + n + tl.where(n < before, 0, gap)) * BN
        keys = load_walked(k, start, sk, k_s, D, BN, BD, CHECK, INDEX, TMA)
        values = load_walked(v, start, sk, v_s, DV, BN, BDV, CHECK, INDEX, TMA)
        product = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        dp = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
        ds, t = gradient_of_scores(
            product, dp, sums, first_query, start, lengths, window, form, draw,
            MASK, SOFTCAP, ALIBI, DROPOUT, BM, BN, CHECK,
        )  # fmt: skip
        if SOFTCAP:
            ds *= 1 - t * t
        dq = tl.dot(ds.to(keys.dtype), keys, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=RUNTIME)
def attention_backward_queries(
    q, k, v, grad_out, norm, delta, mask, cu_q, cu_k, slopes, grad_q,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, grad_out_b, grad_out_h, grad_out_s, lse_b, lse_h,
    mask_b, mask_h, mask_q, mask_k, slopes_b, grad_q_b, grad_q_h, grad_q_s,
    sq, sk, left, right, scale, softcap, seed: tl.int64, threshold: tl.int64, keep_scale,
    rows, quads, sizes,
    H, GROUP, D: tl.constexpr, DV: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr, VARLEN: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries, over the keys that they see."""
    blocks = tl.cdiv(sq, BM)
    first_query = (blocks - 1 - tl.program_id(0) % blocks) * BM
    b = (tl.program_id(0) // blocks // H).to(tl.int64)
    h = tl.program_id(0) // blocks % H
    key_head, h = (h // GROUP).to(tl.int64), h.to(tl.int64)
    start_q, sq = sequence(cu_q, b, sq, VARLEN)
    start_k, sk = sequence(cu_k, b, sk, VARLEN)
    if first_query >= sq:
        return
    q += b * q_b + h * q_h + start_q * q_s
    k += b * k_b + key_head * k_h + start_k * k_s
    v += b * v_b + key_head * v_h + start_k * v_s
    keys = walked(k, sk, k_s, D, BN, BD, TMA)
    values = walked(v, sk, v_s, DV, BN, BDV, TMA)
    grad_out += b * grad_out_b + h * grad_out_h + start_q * grad_out_s
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + b * slopes_b + h).to(tl.float32)
    if MASK is not None:
        mask += b * mask_b + h * mask_h
    offset = 0
    if BOTTOM_RIGHT:
        offset = sk - sq
    lengths, window = (sq, sk), (offset, left, right)
    form = (scale, softcap, slope, mask, mask_q, mask_k)
    draw = (seed, threshold, keep_scale, (b * H + h) * rows, quads)
    first, full, full_end, end = tiles_seen(first_query, BM, window, sk, BN)
    queries = load_rows(q, first_query, sq, q_s, D, BM, BD, True, INDEX)
    upstream = load_rows(grad_out, first_query, sq, grad_out_s, DV, BM, BDV, True, INDEX)
    at = b * lse_b + h * lse_h + start_q
    sums = load_sums(norm + 2 * at, delta + at, first_query, sq, BM)
    dq = tl.zeros([BM, BD], dtype=tl.float32)
    dq = _absorb_keys(
        dq, queries, upstream, sums, keys, values, k_s, v_s, first_query, lengths, window, form,
        draw, full, 0, 0, full_end - full,
        D, DV, MASK, SOFTCAP, ALIBI, DROPOUT, PRECISION, INDEX, BM, BN, BD, BDV, TMA, False,
    )  # fmt: skip
    dq = _absorb_keys(
        dq, queries, upstream, sums, keys, values, k_s, v_s, first_query, lengths, window, form,
        draw, first, full - first, full_end - full, full - first + end - full_end,
        D, DV, MASK, SOFTCAP, ALIBI, DROPOUT, PRECISION, INDEX, BM, BN, BD, BDV, TMA, True,
    )  # fmt: skip
    grad_q += b * grad_q_b + h * grad_q_h + start_q * grad_q_s
    store_rows(grad_q, dq * scale, first_query, sq, grad_q_s, D, BM, BD, INDEX)
