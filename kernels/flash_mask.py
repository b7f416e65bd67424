"""Gradient of an added mask, of any shape that broadcasts to (B, H, sq, sk).

A program owns a tile of the mask and sums the gradients of all scores that the tile was added to,
making each anew: no matrix of scores, no atomics, one order. Masks of few tiles are summed in
``parts``, which the caller adds up.
"""

import triton
import triton.language as tl

from .flash_backward import gradient_of_scores, load_sums
from .flash_tile import RUNTIME, tile_product, tiles_seen


@triton.jit(do_not_specialize=(*RUNTIME, "B", "parts"))
def attention_backward_mask(
    q, k, v, grad_out, norm, delta, mask, slopes,
    grad_mask,  # (parts, *mask.shape)
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, grad_out_b, grad_out_h, grad_out_s, lse_b, lse_h,
    mask_b, mask_h, mask_q, mask_k, slopes_b,
    B, sq, sk, left, right, scale, softcap, seed: tl.int64, threshold: tl.int64, keep_scale,
    rows, quads, sizes, parts,
    H, GROUP, D: tl.constexpr, DV: tl.constexpr,
    # Which dimensions of the mask are 1 and stand for more.
    ONE_B: tl.constexpr, ONE_H: tl.constexpr, ONE_Q: tl.constexpr, ONE_K: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # For each dimension: its number of tiles, those of the mask, and those summed over.
    tiles_q, tiles_k = tl.cdiv(sq, BM), tl.cdiv(sk, BN)
    own_b, own_h, own_q, own_k = B, H, tiles_q, tiles_k
    sum_b, sum_h, sum_q, sum_k = 1, 1, 1, 1
    if ONE_B:
        own_b, sum_b = 1, B
    if ONE_H:
        own_h, sum_h = 1, H
    if ONE_Q:
        own_q, sum_q = 1, tiles_q
    if ONE_K:
        own_k, sum_k = 1, tiles_k
    place = tl.program_id(0)
    mine_k = place % own_k
    mine_q = place // own_k % own_q
    mine_h = place // own_k // own_q % own_h
    mine_b = place // own_k // own_q // own_h % own_b
    part = place // own_k // own_q // own_h // own_b
    offset = 0
    if BOTTOM_RIGHT:
        offset = sk - sq
    lengths, window = (sq, sk), (offset, left, right)
    total = tl.zeros([BM, BN], dtype=tl.float32)
    for n in range(part, sum_b * sum_h * sum_q * sum_k, parts):
        # All but the mine_… are 0 where the mask has the dimension.
        first_key = (mine_k + n % sum_k) * BN
        first_query = (mine_q + n // sum_k % sum_q) * BM
        h = mine_h + n // sum_k // sum_q % sum_h
        key_head, h = (h // GROUP).to(tl.int64), h.to(tl.int64)
        b = (mine_b + n // sum_k // sum_q // sum_h).to(tl.int64)
        first, _full, _full_end, end = tiles_seen(first_query, BM, window, sk, BN)
        if (first * BN <= first_key) & (first_key < end * BN):
            slope = 0.0
            if ALIBI:
                slope = tl.load(slopes + b * slopes_b + h).to(tl.float32)
            form = (scale, softcap, slope, mask + b * mask_b + h * mask_h, mask_q, mask_k)
            draw = (seed, threshold, keep_scale, (b * H + h) * rows, quads)
            of_head = b * q_b + h * q_h, b * k_b + key_head * k_h
            product = tile_product(
                q + of_head[0], k + of_head[1], first_query, first_key, sq, sk, q_s, k_s, D,
                PRECISION, INDEX, BM, BN, BK,
            )  # fmt: skip
            of_head = b * grad_out_b + h * grad_out_h, b * v_b + key_head * v_h
            dp = tile_product(
                grad_out + of_head[0], v + of_head[1], first_query, first_key, sq, sk, grad_out_s,
                v_s, DV, PRECISION, INDEX, BM, BN, BK,
            )  # fmt: skip
            at = b * lse_b + h * lse_h
            sums = load_sums(norm + 2 * at, delta + at, first_query, sq, BM)
            ds, _t = gradient_of_scores(
                product, dp, sums, first_query, first_key, lengths, window, form, draw,
                MASK, SOFTCAP, ALIBI, DROPOUT, BM, BN, True,
            )  # fmt: skip
            total += ds
    size_q, size_k = sq, sk
    if ONE_Q:
        size_q = 1
        total = tl.broadcast_to(tl.sum(total, 0)[None, :], [BM, BN])
    if ONE_K:
        size_k = 1
        total = tl.broadcast_to(tl.sum(total, 1)[:, None], [BM, BN])
    i = mine_q * BM + tl.arange(0, BM)[:, None]
    j = mine_k * BN + tl.arange(0, BN)[None, :]
    matrix = (part.to(tl.int64) * own_b + mine_b) * own_h + mine_h
    at = grad_mask + ((matrix * size_q + i) * size_k + j)
    tl.store(at, total.to(grad_mask.dtype.element_ty), mask=(i < size_q) & (j < size_k))
