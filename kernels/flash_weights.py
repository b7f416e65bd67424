"""The weights of attention from what its forward pass kept of each row, each head's or their mean.

A program owns a tile of queries and keys; of the mean it walks the heads. Shapes: q (B, H, sq, D),
k (B, H / GROUP, sk, D), norm (B, H, sq, 2), weights (B, H, sq, sk) or, AVERAGE, (B, sq, sk).
"""

import triton
import triton.language as tl

from .flash_tile import RUNTIME, kept, load_norm, power, scores, tile_product, tiles_seen


@triton.jit
def _of_head(
    q, k, norm, mask, slopes, first_query, first_key, lengths, window, form, draw, q_s, k_s,
    D: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of one head's weights."""
    sq, sk = lengths
    scale, softcap, mask_q, mask_k = form
    i = first_query + tl.arange(0, BM)[:, None]
    j = first_key + tl.arange(0, BN)[None, :]
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes).to(tl.float32)
    product = tile_product(
        q, k, first_query, first_key, sq, sk, q_s, k_s, D, PRECISION, INDEX, BM, BN, BK
    )
    form = (scale, softcap, slope, mask, mask_q, mask_k)
    s, _ = scores(product, i, j, lengths, window, form, True, SOFTCAP, ALIBI, MASK)
    first, second = load_norm(norm, i, i < sq)
    p = power(s - first, MASK) * second
    if DROPOUT:
        keep_scale = draw[2]
        p = tl.where(kept(draw, first_query, first_key, BM, BN), p * keep_scale, 0.0)
    return p


@triton.jit(do_not_specialize=RUNTIME)
def attention_weights(
    q, k, norm, weights, mask, slopes,
    q_b, q_h, q_s, k_b, k_h, k_s, lse_b, lse_h, mask_b, mask_h, mask_q, mask_k, slopes_b,
    sq, sk, left, right, scale, softcap, seed: tl.int64, threshold: tl.int64, keep_scale,
    rows, quads, sizes,
    H, GROUP, D: tl.constexpr, AVERAGE: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    tiles_q, tiles_k = tl.cdiv(sq, BM), tl.cdiv(sk, BN)
    first_key = tl.program_id(0) % tiles_k * BN
    first_query = tl.program_id(0) // tiles_k % tiles_q * BM
    matrix = tl.program_id(0) // tiles_k // tiles_q
    b, first_head, heads = matrix // H, matrix % H, 1
    if AVERAGE:
        b, first_head, heads = matrix, 0, H
    b = b.to(tl.int64)
    offset = 0
    if BOTTOM_RIGHT:
        offset = sk - sq
    lengths, window = (sq, sk), (offset, left, right)
    form = (scale, softcap, mask_q, mask_k)
    total = tl.zeros([BM, BN], dtype=tl.float32)
    first, _full, _full_end, end = tiles_seen(first_query, BM, window, sk, BN)
    if (first * BN <= first_key) & (first_key < end * BN):
        for n in range(heads):
            h = first_head + n
            key_head, h = (h // GROUP).to(tl.int64), h.to(tl.int64)
            draw = (seed, threshold, keep_scale, (b * H + h) * rows, quads)
            total += _of_head(
                q + b * q_b + h * q_h, k + b * k_b + key_head * k_h,
                norm + 2 * (b * lse_b + h * lse_h),
                None if MASK is None else mask + b * mask_b + h * mask_h,
                slopes + b * slopes_b + h if ALIBI else None,
                first_query, first_key, lengths, window, form, draw, q_s, k_s, D, MASK, SOFTCAP,
                ALIBI, DROPOUT, PRECISION, INDEX, BM, BN, BK,
            )  # fmt: skip
    if AVERAGE:
        total /= H
    i = first_query + tl.arange(0, BM)[:, None]
    j = first_key + tl.arange(0, BN)[None, :]
    at = weights + ((matrix.to(tl.int64) * sq + i) * sk + j)
    tl.store(at, total.to(weights.dtype.element_ty), mask=(i < sq) & (j < sk))
