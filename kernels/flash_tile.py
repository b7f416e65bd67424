"""What the attention kernels share: visible tiles, scores, dropout, a step of the online softmax.

Numbers travel in tuples: ``lengths`` (sq, sk), ``window`` (offset, left, right), ``form`` (scale,
softcap, slope, mask, its strides over queries and keys) and ``draw`` (seed, threshold, keep_scale,
row, quads), dropout's.

A tile of scores lies either way round: ``i`` (queries) and ``j`` (keys) are indices within their
sequence, one a column, the other a row. Scores are in units of log 2, so that exp2 serves. Under an
added mask they are natural: finfo.min, which masks often hold, would overflow in other units.
"""

import triton
import triton.language as tl

from .elementary import tanh

# Numbers that differ from call to call or from model to model: not worth a kernel each.
RUNTIME = (
    "sq", "sk", "left", "right", "seed", "threshold", "rows", "quads", "sizes", "H", "GROUP",
    "lse_b", "lse_h",
)  # fmt: skip
LOG2E = tl.constexpr(1.4426950408889634)
LEFT_OUT = tl.constexpr(-2.3e38)  # as in the reference: such a mask leaves the key out


@triton.jit
def sequence(cu_seqlens, b, length, VARLEN: tl.constexpr):
    """First token of sequence b in its row, and how many it has."""
    start = tl.cast(0, tl.int64)
    size = length
    if VARLEN:
        start = tl.load(cu_seqlens + b).to(tl.int64)
        size = (tl.load(cu_seqlens + b + 1).to(tl.int64) - start).to(tl.int32)
    return start, size


@triton.jit
def walked(
    base, count, stride, W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """A (count, W) matrix for load_walked: with TMA a descriptor, by which tiles come unasked."""
    matrix = base
    if TMA:
        matrix = tl.make_tensor_descriptor(
            base, [tl.maximum(count, 1), W], [tl.cast(stride, tl.int64), 1], [ROWS, COLUMNS]
        )
    return matrix


@triton.jit
def load_walked(
    matrix, first, count, stride, W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHECK: tl.constexpr, INDEX: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """As load_rows, of what ``walked`` made."""
    if TMA:
        x = matrix.load([first, 0])
    else:
        x = load_rows(matrix, first, count, stride, W, ROWS, COLUMNS, CHECK, INDEX)
    return x


@triton.jit
def load_rows(
    base, first, count, stride, W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHECK: tl.constexpr,  # whether rows may lie at or beyond count
    INDEX: tl.constexpr,  # type of offsets within a tile
):  # fmt: skip
    """Rows first … of a (count, W) matrix as a [ROWS, COLUMNS] tile, 0 beyond."""
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, COLUMNS)[None, :]
    at = base + tl.cast(first, tl.int64) * stride + (r.to(INDEX) * stride + c)
    if CHECK and COLUMNS > W:
        x = tl.load(at, mask=(first + r < count) & (c < W), other=0)
    elif CHECK:
        x = tl.load(at, mask=first + r < count, other=0)
    elif COLUMNS > W:
        x = tl.load(at, mask=c < W, other=0)
    else:
        x = tl.load(at)
    return x


@triton.jit
def store_rows(
    base, x, first, count, stride, W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """The other way."""
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, COLUMNS)[None, :]
    at = base + tl.cast(first, tl.int64) * stride + (r.to(INDEX) * stride + c)
    tl.store(at, x.to(base.dtype.element_ty), mask=(first + r < count) & (c < W))


@triton.jit
def tile_product(
    a, b, first_a, first_b, count_a, count_b, a_s, b_s, W: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """a b^T of rows first_a … of a (count_a, W) and first_b … of b, BK columns at a time."""
    rows_a, rows_b = tl.arange(0, BM)[:, None], tl.arange(0, BN)[:, None]
    a += tl.cast(first_a, tl.int64) * a_s + rows_a.to(INDEX) * a_s
    b += tl.cast(first_b, tl.int64) * b_s + rows_b.to(INDEX) * b_s
    total = tl.zeros([BM, BN], dtype=tl.float32)
    for start in range(0, W, BK):
        c = start + tl.arange(0, BK)[None, :]
        x = tl.load(a + c, mask=(first_a + rows_a < count_a) & (c < W), other=0)
        y = tl.load(b + c, mask=(first_b + rows_b < count_b) & (c < W), other=0)
        total = tl.dot(x, tl.trans(y), total, input_precision=PRECISION)
    return total


@triton.jit
def tiles_seen(start, SIZE: tl.constexpr, window, count, TILE: tl.constexpr):
    """Tiles of the other side, of ``count`` items, that items start … start + SIZE - 1 see.

    Item a sees b where -left <= b - a - offset <= right. Tiles first … end - 1 are seen in part,
    full … full_end - 1 of them wholly, by every item.
    """
    offset, left, right = window
    last = start + SIZE - 1
    first = tl.maximum(start + offset - left, 0) // TILE
    end = tl.cdiv(tl.maximum(tl.minimum(last + offset + right + 1, count), 0), TILE)
    end = tl.maximum(end, first)
    full = tl.cdiv(tl.maximum(last + offset - left, 0), TILE)
    full = tl.minimum(tl.maximum(full, first), end)
    full_end = tl.maximum(tl.minimum(start + offset + right + 1, count), 0) // TILE
    full_end = tl.minimum(tl.maximum(full_end, full), end)
    return first, full, full_end, end


@triton.jit
def scores(
    product,  # q k^T
    i, j, lengths, window, form,
    CHECK: tl.constexpr,  # whether some of the tile's keys may not be seen
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Scores, -inf where a key may not be seen; and the tanh of the softcap, for its derivative."""
    sq, sk = lengths
    scale, softcap, slope, mask, mask_q, mask_k = form
    unit: tl.constexpr = 1.0 if MASK == "added" else LOG2E
    t = product
    if SOFTCAP:
        t = tanh(product * (scale / softcap))
        s = t * (softcap * unit)
    else:
        s = product * (scale * unit)
    if ALIBI:
        s -= (slope * unit) * tl.abs(i + (sk - sq) - j).to(tl.float32)
    if MASK is not None:
        at = mask + (i.to(tl.int64) * mask_q + j.to(tl.int64) * mask_k)
        added = tl.load(at, mask=(i < sq) & (j < sk), other=0)
        if MASK == "added":
            bias = added.to(tl.float32)
            s = tl.where(bias < LEFT_OUT, float("-inf"), s + bias)
        else:
            s = tl.where(added, s, float("-inf"))
    if CHECK:
        offset, left, right = window
        distance = j - i - offset
        seen = (distance <= right) & (distance >= -left) & (j < sk)
        s = tl.where(seen, s, float("-inf"))
    return s, t


@triton.jit
def power(s, MASK: tl.constexpr):
    """e to the power of a difference of scores."""
    if MASK == "added":
        s = s * LOG2E
    return tl.exp2(s)


@triton.jit
def load_norm(norm, at, present):
    """Of rows: weights are power(s - the first) times the second, which is 1 but for rounding."""
    first = tl.load(norm + 2 * at, mask=present, other=float("inf"))
    return first, tl.load(norm + (2 * at + 1), mask=present, other=0)


@triton.jit
def store_sums(lse, norm, at, m, l, present, MASK: tl.constexpr):
    """Of rows whose largest scores are m, and l the sums of the weights over them."""
    none = l == 0
    if MASK == "added":
        first = m + tl.log(l)
    else:
        first = m + tl.log2(l)
    second = power(first - m, MASK) / l
    tl.store(lse + at, lse_of(m, l, MASK), mask=present)
    tl.store(norm + 2 * at, tl.where(none, float("inf"), first), mask=present)
    tl.store(norm + (2 * at + 1), tl.where(none, 0.0, second), mask=present)


@triton.jit
def lse_of(m, l, MASK: tl.constexpr):
    """The natural log-sum-exp from the largest score m, and l, the sum of the weights over it."""
    if MASK != "added":
        m = m / LOG2E
    return tl.where(l == 0, float("-inf"), m + tl.log(l))


@triton.jit
def kept(draw, first_query, first_key, BM: tl.constexpr, BN: tl.constexpr):
    """Which weights of a [BM, BN] tile dropout keeps: four keys share a counter.

    Counter (row + query)·quads + key // 4 of Philox's stream 2; word key % 4.
    """
    seed, threshold, _, row, quads = draw
    query = row + first_query + tl.arange(0, BM)
    counter = query[:, None] * quads + (first_key // 4 + tl.arange(0, BN // 4))[None, :]
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = low * 0
    word0, word1, word2, word3 = tl.philox(seed, low, high, zero + 2, zero)
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return tl.reshape(words, [BM, BN]) >= tl.cast(threshold, tl.uint32)


@triton.jit
def absorb(acc, m, l, s, v, keep, DROPOUT: tl.constexpr, MASK: tl.constexpr, P: tl.constexpr):
    """A step of the online softmax: scores s [BM, BN] and values v [BN, DV] join acc, m and l.

    P is the precision of float32 products. acc is not divided by l, nor scaled for dropout.
    """
    new_m = tl.maximum(m, tl.max(s, 1))
    base = tl.where(new_m == float("-inf"), 0.0, new_m)  # no key seen so far
    p = power(s - base[:, None], MASK)
    shrink = power(m - base, MASK)
    l = l * shrink + tl.sum(p, 1)
    if DROPOUT:
        p = tl.where(keep, p, 0.0)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=P)
    return acc, new_m, l
