"""Flash attention forward: a program for each block of queries of a head walks the visible keys.

Source: Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning",
2023. Shapes: q (B, H, sq, D), k (B, H / GROUP, sk, D), v (…, DV), lse (B, H, sq), norm (…, 2), see
flash_tile.load_norm; with VARLEN one row of tokens, cut by cu_q and cu_k, and sq, sk are the
longest.
"""

import triton
import triton.language as tl

from .flash_tile import (
    RUNTIME,
    absorb,
    kept,
    load_rows,
    load_walked,
    scores,
    sequence,
    store_rows,
    store_sums,
    tiles_seen,
    walked,
)


@triton.jit
def _absorb_tiles(
    acc, m, l, q, k, v, k_s, v_s, first_query, lengths, window, form, draw,
    first, before, gap, count,  # tiles first …, of which ``gap`` are left out after ``before``
    D: tl.constexpr, DV: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, TMA: tl.constexpr,
    CHECK: tl.constexpr,
):  # fmt: skip
    i = first_query + tl.arange(0, BM)[:, None]
    sk = lengths[1]
    for n in range(count):
        start = (first + n + tl.where(n < before, 0, gap)) * BN
        j = start + tl.arange(0, BN)[None, :]
        keys = load_walked(k, start, sk, k_s, D, BN, BD, CHECK, INDEX, TMA)
        product = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        s, _ = scores(product, i, j, lengths, window, form, CHECK, SOFTCAP, ALIBI, MASK)
        keep = True
        if DROPOUT:
            keep = kept(draw, first_query, start, BM, BN)
        values = load_walked(v, start, sk, v_s, DV, BN, BDV, CHECK, INDEX, TMA)
        acc, m, l = absorb(acc, m, l, s, values, keep, DROPOUT, MASK, PRECISION)
    return acc, m, l


@triton.jit(do_not_specialize=RUNTIME)
def attention_forward(
    q, k, v, out, lse, norm, mask, cu_q, cu_k, slopes,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, out_b, out_h, out_s, lse_b, lse_h,
    mask_b, mask_h, mask_q, mask_k, slopes_b,
    sq, sk, left, right, scale, softcap, seed: tl.int64, threshold: tl.int64, keep_scale,
    rows, quads,  # of a head and of a query, in dropout's counters
    sizes,  # for the tuner alone
    H, GROUP, D: tl.constexpr, DV: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr, VARLEN: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(sq, BM)
    # The longest rows of a causal triangle go first, so that the short ones fill the end.
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
    acc = tl.zeros([BM, BDV], dtype=tl.float32)
    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    l = tl.zeros([BM], dtype=tl.float32)
    acc, m, l = _absorb_tiles(
        acc, m, l, queries, keys, values, k_s, v_s, first_query, lengths, window, form, draw,
        full, 0, 0, full_end - full,
        D, DV, MASK, SOFTCAP, ALIBI, DROPOUT, PRECISION, INDEX, BM, BN, BD, BDV, TMA, False,
    )  # fmt: skip
    acc, m, l = _absorb_tiles(
        acc, m, l, queries, keys, values, k_s, v_s, first_query, lengths, window, form, draw,
        first, full - first, full_end - full, full - first + end - full_end,
        D, DV, MASK, SOFTCAP, ALIBI, DROPOUT, PRECISION, INDEX, BM, BN, BD, BDV, TMA, True,
    )  # fmt: skip
    if DROPOUT:
        acc *= keep_scale
    acc = acc / tl.where(l == 0, 1.0, l)[:, None]
    out += b * out_b + h * out_h + start_q * out_s
    store_rows(out, acc, first_query, sq, out_s, DV, BM, BDV, INDEX)
    i = first_query + tl.arange(0, BM)
    at = b * lse_b + h * lse_h + start_q + i
    store_sums(lse, norm, at, m, l, i < sq, MASK)
