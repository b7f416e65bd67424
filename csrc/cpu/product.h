// Products of a few rows by a packed weight: the part of a scan that costs time.
//
// A weight is packed in panels of NACC vectors of output columns: [panel][k][NACC][lanes]. A tile
// keeps rows x NACC accumulators in registers while k runs. Every output is summed over k in one
// order, whatever the tile and the number of threads, so bits do not depend on either.
#pragma once

#include "vec.h"

namespace {

// How storage type T enters the product: k runs over words; a word is one element in the acc type,
// or, where the processor multiplies bfloat16 pairs, two adjacent elements.
template <class T>
struct Format {
  typedef T Storage;
  typedef Acc<T> A;
  typedef Acc<T> Exchange; // the type that the next step's operand is written in
  static constexpr int PER_WORD = 1;
  static FASTSEQ_INLINE_MEMBER Vec<A> fma(Vec<A> c, A b, Vec<A> w) { return c + b * w; }
  static FASTSEQ_INLINE_MEMBER Vec<A> fma(Vec<A> c, Vec<A> b, Vec<A> w) { return c + b * w; }
  // Words k … k + lanes of a row that holds `left` elements from p on.
  static FASTSEQ_INLINE_MEMBER Vec<A> words(const T* p, int64_t left) { return load(p, left); }
  // One word of each of n columns, from the next `left` rows.
  static FASTSEQ_INLINE_MEMBER Vec<A> column_words(const T* p, int64_t, int64_t, int64_t n) {
    return load(p, n);
  }
};

#if defined(FASTSEQ_BF16_DOT)
template <>
struct Format<bf16> {
  typedef bf16 Storage;
  typedef float A;
  typedef bf16 Exchange;
  static constexpr int PER_WORD = 2;
  static FASTSEQ_INLINE_MEMBER Vec<float> fma(Vec<float> c, float b, Vec<float> w) {
    uint32_t pair;
    memcpy(&pair, &b, 4);
    return fma(c, (Vec<float>)(U32{} + pair), w);
  }
  static FASTSEQ_INLINE_MEMBER Vec<float> fma(Vec<float> c, Vec<float> b, Vec<float> w) {
#if defined(__AVX512BF16__)
    return (Vec<float>)_mm512_dpbf16_ps((__m512)c, (__m512bh)b, (__m512bh)w);
#else
    const U32 x = (U32)b, y = (U32)w;
    c += (Vec<float>)(x & 0xffff0000u) * (Vec<float>)(y & 0xffff0000u);
    return c + (Vec<float>)(x << 16) * (Vec<float>)(y << 16);
#endif
  }
  static FASTSEQ_INLINE_MEMBER Vec<float> words(const bf16* p, int64_t left) {
    constexpr int count = 2 * lanes<float>;
    bf16 part[count] = {};
    memcpy(part, p, sizeof(bf16) * (left < count ? left : count));
    Vec<float> v;
    memcpy(&v, part, sizeof v);
    return v;
  }
  static FASTSEQ_INLINE_MEMBER Vec<float> column_words(const bf16* p, int64_t stride, int64_t left,
                                                       int64_t n) {
    U32 bits = (U32)load(p, n) >> 16;
    if (left > 1) bits |= (U32)load(p + stride, n);
    return (Vec<float>)bits;
  }
};
#endif

template <class F>
constexpr int64_t words_for(int64_t k) {
  return (k + F::PER_WORD - 1) / F::PER_WORD;
}

// Row strides of product operands: an odd number of cache lines, so that rows fall in different
// sets.
template <class A>
constexpr int64_t padded_stride(int64_t n) {
  const int64_t line = 64 / sizeof(A);
  return ((n + line - 1) / line | 1) * line;
}

// Rows of a full tile: as many accumulators as registers allow.
constexpr int tile_rows(int nacc) {
#if FASTSEQ_VECTOR_BYTES == 64
  return nacc == 4 ? 6 : 8;
#else
  return nacc == 4 ? 3 : 4;
#endif
}

// acc[r][n] (+)= sum over k of x[r][k] * w[k][n], for ROWS rows and PANELS adjacent panels. With
// every k a line of what is needed next is fetched: all at once would keep the loads waiting.
template <class F, int ROWS, int NACC, int PANELS, bool FETCH = false>
FASTSEQ_INLINE void tile(const typename F::A* x, int64_t ldx, const typename F::A* w,
                         int64_t panel_size, int64_t K, typename F::A* acc, int64_t acc_panel,
                         bool resume, const char* next = nullptr) {
  typedef typename F::A A;
  constexpr int L = lanes<A>;
  Vec<A> c[PANELS][ROWS][NACC];
#pragma GCC unroll 8
  for (int q = 0; q < PANELS; ++q)
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < NACC; ++n)
        c[q][r][n] = resume ? load(acc + q * acc_panel + (r * NACC + n) * L) : Vec<A>{};
  int64_t k = 0;
  do { // K is never 0
    if constexpr (FETCH) __builtin_prefetch(next + 64 * k, 0, 2);
    if constexpr (ROWS > NACC) { // whichever operand is fewer stays in registers
      Vec<A> v[NACC];
#pragma GCC unroll 8
      for (int n = 0; n < NACC; ++n) v[n] = load(w + (k * NACC + n) * L);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < NACC; ++n) c[0][r][n] = F::fma(c[0][r][n], x[r * ldx + k], v[n]);
    } else {
#pragma GCC unroll 8
      for (int q = 0; q < PANELS; ++q)
#pragma GCC unroll 8
        for (int n = 0; n < NACC; ++n) {
          const Vec<A> v = load(w + q * panel_size + (k * NACC + n) * L);
#pragma GCC unroll 8
          for (int r = 0; r < ROWS; ++r) c[q][r][n] = F::fma(c[q][r][n], x[r * ldx + k], v);
        }
    }
  } while (++k < K);
#pragma GCC unroll 8
  for (int q = 0; q < PANELS; ++q)
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < NACC; ++n) store(acc + q * acc_panel + (r * NACC + n) * L, c[q][r][n]);
}

// acc (rows, NACC, lanes) = the product of rows x (stride ldx) by one panel. K counts words.
// ahead(row) is called well before the row's product is done, to fetch what will be needed then;
// `far`: the weight is larger than a cache that the processor fetches from in time by itself.
template <class F, int NACC, class Ahead>
static void panel_product(const typename F::A* x, int64_t ldx, int64_t rows,
                          const typename F::A* panel, int64_t K, typename F::A* acc, bool far,
                          const Ahead& ahead) {
  constexpr int L = lanes<typename F::A>, R = tile_rows(NACC);
  // Enough of the panel to pay for the accumulators' trip, little enough to stay in L1.
  const int64_t step = rows > R ? 16384 / (NACC * FASTSEQ_VECTOR_BYTES) : K;
  int64_t k = 0;
  do {
    const int64_t count = K - k < step ? K - k : step;
    const typename F::A* w = panel + k * NACC * L;
    if (k == 0)
      for (int64_t r = 0; r < (rows < R ? rows : R); ++r) ahead(r);
    const char* next = (const char*)(far ? w + count * NACC * L : w);
    int64_t r = 0;
#define FASTSEQ_TILE(ROWS)                                                                         \
  if (k == 0)                                                                                      \
    for (int64_t q = r + R; q < r + R + ROWS && q < rows; ++q) ahead(q);                           \
  tile<F, ROWS, NACC, 1, true>(x + r * ldx + k, ldx, w, 0, count, acc + r * NACC * L, 0, k > 0,    \
                               next);                                                              \
  r += ROWS, next += far ? 64 * count : 0
    while (rows - r >= R) {
      FASTSEQ_TILE(R);
    }
    if (R > 4 && rows - r >= 4) {
      FASTSEQ_TILE(4);
    }
    if (rows - r >= 2) {
      FASTSEQ_TILE(2);
    }
    if (rows > r) {
      FASTSEQ_TILE(1);
    }
#undef FASTSEQ_TILE
    k += step;
  } while (k < K);
}

// One row by two adjacent panels: twice the independent sums, to hide the adder's latency.
template <class F, int NACC>
static void panel_pair_product(const typename F::A* x, const typename F::A* panels, int64_t K,
                               typename F::A* acc) {
  constexpr int L = lanes<typename F::A>;
  tile<F, 1, NACC, 2>(x, 0, panels, K * NACC * L, K, acc, NACC * L, false);
}

// In place: row i of the L x L matrix becomes column i.
template <class A>
FASTSEQ_INLINE void transpose(Vec<A> (&m)[lanes<A>]) {
  constexpr int L = lanes<A>;
#pragma GCC unroll 8
  for (int s = 1; s < L; s *= 2) {
    Ints<A> low, high;
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) {
      low[j] = j & s ? L + j - s : j;
      high[j] = j & s ? L + j : j + s;
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if (!(i & s)) {
        const Vec<A> a = m[i], b = m[i + s];
        m[i] = __builtin_shuffle(a, b, low);
        m[i + s] = __builtin_shuffle(a, b, high);
      }
  }
}

// One row x by `columns` rows of an unpacked w, k elements each: a vector of dot products. Sums run
// over k in another order than tiles do, so the choice between them may depend on sizes only.
template <class F, class X>
static Vec<typename F::A> dots(const X* x, const typename F::Storage* w, int64_t ldw,
                               int64_t columns, int64_t k_size) {
  typedef typename F::A A;
  constexpr int L = lanes<A>;
  if (columns <= 0) return Vec<A>{};
  Vec<A> sums[L] = {};
  const typename F::Storage* rows[L];
  for (int i = 0; i < L; ++i) rows[i] = w + (i < columns ? i : 0) * ldw;
  int64_t k = 0;
  for (; k + L <= k_size; k += L) {
    const Vec<A> v = load(x + k);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) sums[i] += v * load(rows[i] + k);
  }
  if (k < k_size) {
    const Vec<A> v = load(x + k, k_size - k);
    for (int i = 0; i < L; ++i) sums[i] += v * load(rows[i] + k, k_size - k);
  }
  const Vec<A> total = sum_lanes<A>(sums);
  return columns < L ? total * ones_upto<A>(columns) : total;
}

// Packs vector n of a panel from `columns` rows of w (outputs, k): the transpose of a strip.
template <class F, int NACC>
static void pack_strip(const typename F::Storage* w, int64_t ldw, int64_t columns, int64_t k_size,
                       typename F::A* out) {
  typedef typename F::A A;
  constexpr int L = lanes<A>;
  const int64_t K = words_for<F>(k_size);
  for (int64_t k = 0; k < K; k += L) {
    Vec<A> m[L];
    for (int i = 0; i < L; ++i)
      m[i] = i < columns ? F::words(w + i * ldw + k * F::PER_WORD, k_size - k * F::PER_WORD)
                         : Vec<A>{};
    transpose<A>(m);
    for (int i = 0; i < L && k + i < K; ++i) store(out + (k + i) * NACC * L, m[i]);
  }
}

// Panel p of w (outputs, k) for the forward product of gated cells: vector g holds gate g of one
// vector of units.
template <class F, int NACC>
static void pack_gated(const typename F::Storage* w, int64_t units, int64_t k_size, int64_t p,
                       typename F::A* out) {
  constexpr int L = lanes<typename F::A>;
  for (int g = 0; g < NACC; ++g)
    pack_strip<F, NACC>(w + (g * units + p * L) * k_size, k_size, units - p * L, k_size,
                        out + g * L);
}

// Panel p of w (outputs, k): NACC vectors of adjacent outputs.
template <class F, int NACC>
static void pack_linear(const typename F::Storage* w, int64_t outputs, int64_t k_size, int64_t p,
                        typename F::A* out) {
  constexpr int L = lanes<typename F::A>;
  for (int n = 0; n < NACC; ++n) {
    const int64_t first = (p * NACC + n) * L;
    pack_strip<F, NACC>(w + first * k_size, k_size, outputs - first, k_size, out + n * L);
  }
}

// Panel p of the product by w (k, outputs) itself, as backward needs.
template <class F, int NACC>
static void pack_transposed(const typename F::Storage* w, int64_t outputs, int64_t k_size,
                            int64_t p, typename F::A* out) {
  constexpr int L = lanes<typename F::A>;
  for (int64_t k = 0; k < k_size; k += F::PER_WORD)
    for (int n = 0; n < NACC; ++n, out += L) {
      const int64_t first = (p * NACC + n) * L;
      store(out, F::column_words(w + k * outputs + first, outputs, k_size - k,
                                 outputs > first ? outputs - first : 0));
    }
}

} // namespace
