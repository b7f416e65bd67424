"""Attention of the last few tokens of each sequence against a cache, contiguous or in pages.

The query heads that share a key head are rows of one tile, so that the cache is read once. Each
cache is split among programs, whose outputs a second kernel merges by their log-sum-exp.
Source: "Flash-Decoding for long-context inference", pytorch.org/blog/flash-decoding, 2023.
"""

import triton
import triton.language as tl

from .flash_tile import RUNTIME, absorb, lse_of, scores


@triton.jit(do_not_specialize=(*RUNTIME, "splits", "lse_part", "table_b"))
def attention_decode(
    q, k, v, out, lse, lengths, block_table, slopes,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s,
    out_part, out_b, out_h, out_s, lse_part,
    table_b, slopes_b, sq, left, right, scale, softcap, splits,
    H, GROUP, D: tl.constexpr, DV: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    PAGE: tl.constexpr,  # tokens of a page; 0: the cache is contiguous
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
):  # fmt: skip
    """out and lse of a split: rows are (query head of the group, query)."""
    blocks = tl.cdiv(GROUP * sq, BM)
    split = tl.program_id(0) % splits
    block = tl.program_id(0) // splits % blocks
    key_heads = H // GROUP
    key_head = (tl.program_id(0) // splits // blocks % key_heads).to(tl.int64)
    b = (tl.program_id(0) // splits // blocks // key_heads).to(tl.int64)
    rows = block * BM + tl.arange(0, BM)[:, None]
    present = rows < GROUP * sq
    i = rows % sq
    h = key_head * GROUP + rows // sq
    size = tl.load(lengths + b).to(tl.int32)
    c, cv = tl.arange(0, BD)[None, :], tl.arange(0, BDV)[None, :]
    queries = tl.load(q + b * q_b + h * q_h + i * q_s + c, mask=present & (c < D), other=0)
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + b * slopes_b + h, mask=present, other=0).to(tl.float32)
    k += key_head * k_h
    v += key_head * v_h
    offset = size - sq
    window = (offset, left, right)
    form = (scale, softcap, slope, None, 0, 0)
    first = tl.maximum(offset - left, 0) // BN
    each = tl.cdiv(tl.maximum(tl.cdiv(size, BN) - first, 0), splits)
    acc = tl.zeros([BM, BDV], dtype=tl.float32)
    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    l = tl.zeros([BM], dtype=tl.float32)
    for start in range(
        (first + split * each) * BN, tl.minimum((first + (split + 1) * each) * BN, size), BN
    ):
        token = start + tl.arange(0, BN)
        slot, place = token.to(tl.int64), b
        if PAGE > 0:
            at = block_table + b * table_b + token // PAGE
            place = tl.load(at, mask=token < size, other=0).to(tl.int64)
            slot = (token % PAGE).to(tl.int64)
        held = (token < size)[:, None]
        at = (place * k_b + slot * k_s)[:, None]
        keys = tl.load(k + at + c, mask=held & (c < D), other=0)
        product = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        s, _ = scores(
            product, i, token[None, :], (sq, size), window, form, True, SOFTCAP, ALIBI, None
        )
        at = (place * v_b + slot * v_s)[:, None]
        values = tl.load(v + at + cv, mask=held & (cv < DV), other=0)
        acc, m, l = absorb(acc, m, l, s, values, True, False, None, PRECISION)
    acc = acc / tl.where(l == 0, 1.0, l)[:, None]
    at = out + split * out_part + b * out_b + h * out_h + i * out_s + cv
    tl.store(at, acc.to(out.dtype.element_ty), mask=present & (cv < DV))
    at = lse + split * lse_part + (b * H + h) * sq + i
    tl.store(at, lse_of(m, l, None)[:, None], mask=present)


@triton.jit(do_not_specialize=["rows", "sq", "splits", "H"])
def attention_merge(
    parts, lse_parts, out, lse, out_b, out_h, out_s, rows, sq, splits,
    H, DV: tl.constexpr, BM: tl.constexpr, BDV: tl.constexpr,
):  # fmt: skip
    """out and lse from those of all splits: parts (splits, B, H, sq, DV), lse_parts without DV."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BDV)[None, :]
    acc = tl.zeros([BM, BDV], dtype=tl.float32)
    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    l = tl.zeros([BM], dtype=tl.float32)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * rows + r
        part_lse = tl.load(lse_parts + at, mask=r < rows, other=float("-inf"))
        part = tl.load(parts + at[:, None] * DV + c, mask=(r < rows)[:, None] & (c < DV), other=0)
        new_m = tl.maximum(m, part_lse)
        base = tl.where(new_m == float("-inf"), 0.0, new_m)
        weight, shrink = tl.exp(part_lse - base), tl.exp(m - base)
        acc = acc * shrink[:, None] + part * weight[:, None]
        l = l * shrink + weight
        m = new_m
    acc = acc / tl.where(l == 0, 1.0, l)[:, None]
    i, h, b = r % sq, r // sq % H, r // sq // H
    at = b.to(tl.int64) * out_b + h.to(tl.int64) * out_h + i.to(tl.int64) * out_s
    tl.store(
        out + at[:, None] + c, acc.to(out.dtype.element_ty), mask=(r < rows)[:, None] & (c < DV)
    )
    tl.store(lse + r, tl.where(l == 0, float("-inf"), m + tl.log(l)), mask=r < rows)
