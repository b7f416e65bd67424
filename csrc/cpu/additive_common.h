// Additive attention's tanh(a + b) for many pairs of an a and a b, and sums over rows.
//
//   tanh(a + b) = 1 - 1 / (1/2 + e^2a/2 · e^2b)
//
// takes one exponential for each a and each b, and for each pair a product and a reciprocal. It is
// absolutely exact to a unit or two in the last place of 1 as long as neither exponential leaves
// the range; where all |a + b| are small, a polynomial is exact relatively, and as quick.
#pragma once

#include "../additive_args.h"
#include "product.h"
#include "vec_math.h"
#include "work.h"

namespace {

using namespace fastseq;

enum Way { SMALL, EXPONENTIALS, DIRECT };

FASTSEQ_INLINE float largest_exponentiated(float) {
  return 20; // e^2a e^2b stays far within the range, and so does its reciprocal
}
FASTSEQ_INLINE double largest_exponentiated(double) {
  return 170;
}

// The way for pairs whose |a| and |b| are at most these.
template <class A>
FASTSEQ_INLINE Way way_for(A a, A b) {
  const A limit = largest_exponentiated(A());
  if (a + b <= (A)0.6) return SMALL;
  return a <= limit && b <= limit ? EXPONENTIALS : DIRECT;
}

// Calls use with the way as a constant.
template <Way WAY>
struct WayIs {
  static constexpr Way value = WAY;
};
template <class Use>
FASTSEQ_INLINE void with_way(Way way, const Use& use) {
  if (way == SMALL) return use(WayIs<SMALL>());
  if (way == EXPONENTIALS) return use(WayIs<EXPONENTIALS>());
  use(WayIs<DIRECT>());
}

// 1/x to 11 bits at least.
FASTSEQ_INLINE Vec<float> rough_reciprocal(Vec<float> x) {
#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_rcp14_ps((__m512)x);
#elif defined(__AVX2__) && FASTSEQ_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_rcp_ps((__m256)x);
#else
  return 1 / x;
#endif
}

// 1 - 1/x for x of at least 1/2.
FASTSEQ_INLINE Vec<float> one_minus_reciprocal(Vec<float> x) {
  const Vec<float> r = rough_reciprocal(x);
  return (1 - r) - r * (1 - x * r); // Newton's step doubles the bits
}
FASTSEQ_INLINE Vec<double> one_minus_reciprocal(Vec<double> x) {
  return 1 - 1 / x;
}

// tanh of a pair's sum; by EXPONENTIALS, a and b stand for e^2a/2 and e^2b.
template <class A, Way WAY>
FASTSEQ_INLINE Vec<A> tanh_of_sum(Vec<A> a, Vec<A> b) {
  if (WAY == EXPONENTIALS) return one_minus_reciprocal(a * b + (A)0.5);
  const Vec<A> x = a + b;
  return WAY == SMALL ? tanh_small(x, x * x) : tanh(x);
}

template <class V>
FASTSEQ_INLINE V magnitude(V x) {
  return larger(x, -x);
}

template <class A>
FASTSEQ_INLINE A largest_of(Vec<A> x) {
  A largest = x[0];
  for (int i = 1; i < lanes<A>; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// to = factor · e^2x over a row, in whole vectors; returns the largest |x|.
template <class T>
static Acc<T> exponentiate(const T* x, int64_t width, Acc<T> factor, Acc<T>* to) {
  typedef Acc<T> A;
  constexpr int L = lanes<A>;
  Vec<A> largest = {};
  for (int64_t d = 0; d < width; d += L) {
    const Vec<A> value = load(x + d, width - d);
    largest = larger(largest, magnitude(value));
    store(to + d, exp_clamped(value + value) * factor);
  }
  return largest_of<A>(largest);
}

// Lane i: the sum of term(i, d, left) over d, where `left` elements are left from d on.
template <class A, class Term>
FASTSEQ_INLINE Vec<A> sums_over(int64_t width, const Term& term) {
  constexpr int L = lanes<A>;
  Vec<A> sums[L] = {};
  int64_t d = 0;
  for (; d + L <= width; d += L)
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) sums[i] += term(i, d, L);
  if (d < width)
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) sums[i] += term(i, d, width - d);
  return sum_lanes<A>(sums);
}

// The products of a row with up to L rows, n of them.
template <class T>
static Vec<Acc<T>> dot_products(const T* row, const T* rows, int64_t stride, int64_t n,
                                int64_t width) {
  const T* at[lanes<Acc<T>>];
  for (int i = 0; i < lanes<Acc<T>>; ++i) at[i] = rows + least(i, n - 1) * stride;
  return sums_over<Acc<T>>(width,
                           [&](int i, int64_t d, int64_t left) __attribute__((always_inline)) {
                             return load(row + d, left) * load(at[i] + d, left);
                           });
}

// ROWS rows of weighted_sums, COLUMNS vectors of each, or the first `left` elements of one.
template <class T, int ROWS, int COLUMNS>
static void weighted_tile(int64_t terms, const Acc<T>* w, int64_t row, int64_t term, const T* x,
                          int64_t stride, int64_t left, T* to, int64_t to_stride) {
  typedef Acc<T> A;
  constexpr int L = lanes<A>;
  if (COLUMNS > 1) left = COLUMNS * L;
  Vec<A> sums[ROWS][COLUMNS] = {};
  for (int64_t k = 0; k < terms; ++k)
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) {
      const Vec<A> value = load(x + k * stride + c * L, left - c * L);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) sums[r][c] += value * w[r * row + k * term];
    }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) store(to + r * to_stride + c * L, sums[r][c], left - c * L);
}

// Rows of `to`: the sums over k of w[r · row + k · term] times row k of x.
template <class T>
static void weighted_sums(int64_t rows, int64_t terms, const Acc<T>* w, int64_t row, int64_t term,
                          const T* x, int64_t stride, int64_t width, T* to, int64_t to_stride) {
  constexpr int L = lanes<Acc<T>>;
  for (; rows >= 4; rows -= 4, w += 4 * row, to += 4 * to_stride) {
    int64_t d = 0;
    for (; d + 2 * L <= width; d += 2 * L)
      weighted_tile<T, 4, 2>(terms, w, row, term, x + d, stride, 0, to + d, to_stride);
    for (; d < width; d += L)
      weighted_tile<T, 4, 1>(terms, w, row, term, x + d, stride, width - d, to + d, to_stride);
  }
  for (; rows > 0; --rows, w += row, to += to_stride) {
    int64_t d = 0;
    for (; d + 8 * L <= width; d += 8 * L)
      weighted_tile<T, 1, 8>(terms, w, row, term, x + d, stride, 0, to + d, to_stride);
    for (; d < width; d += L)
      weighted_tile<T, 1, 1>(terms, w, row, term, x + d, stride, width - d, to + d, to_stride);
  }
}

template <class T>
FASTSEQ_INLINE const T* row_of(const Rows& x, int64_t b, int64_t i) {
  return (const T*)x.data + b * x.batch + i * x.row;
}

// The keys that queries of sequence b may see: where they share a mask, what it leaves.
struct Range {
  int64_t low, high;
};
static Range seen_keys(const AdditiveArgs& a, int64_t b) {
  Range seen{0, a.Tk};
  if (!a.mask || a.mask_query) return seen;
  const bool* mask = a.mask + b * a.mask_batch;
  while (seen.high > 0 && !mask[(seen.high - 1) * a.mask_key]) --seen.high;
  while (seen.low < seen.high && !mask[seen.low * a.mask_key]) ++seen.low;
  return seen;
}

// Threads that pay for themselves.
static int threads_for(const AdditiveArgs& a) {
  return (int)least(a.threads, 1 + a.B * (a.Tq + 1) * a.Tk * (a.D + a.Dv) / (1 << 16));
}

} // namespace
