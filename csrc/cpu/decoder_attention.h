// Attention of one query of one head to keys that lie anywhere.
#pragma once

#include "product.h"
#include "vec_math.h"

namespace {

// out (D) = softmax(scale · q · keys) · values. key(j) and value(j) are where the j-th of n stand;
// weights is room for n and a vector more.
template <class Key, class Value>
FASTSEQ_INLINE void attend(const float* q, int64_t D, int64_t n, float scale, const Key& key,
                           const Value& value, float* weights, float* out) {
  constexpr int L = lanes<float>;
  typedef Vec<float> V;
  const int64_t whole = D / L * L;
  V most = splat(-__builtin_inff());
  for (int64_t j = 0; j < n; j += L) {
    V sums[L];
    const float* k[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      sums[i] = V{};
      k[i] = key(j + i < n ? j + i : n - 1);
    }
    for (int64_t d = 0; d < whole; d += L) {
      const V x = load(q + d);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) sums[i] += x * load(k[i] + d);
    }
    if (whole < D) {
      const V x = load(q + whole, D - whole);
      for (int i = 0; i < L; ++i) sums[i] += x * load(k[i] + whole, D - whole);
    }
    const V score = sum_lanes<float>(sums) * (scale * exponent_unit(float())); // a lane a key
    store(weights + j, score);
    most = larger(most, score); // the last key, repeated, changes nothing
  }
  float maximum = most[0];
  for (int i = 1; i < L; ++i) maximum = most[i] > maximum ? most[i] : maximum;
  V total = {};
  for (int64_t j = 0; j < n; j += L) {
    V weight = exponential(load(weights + j) - maximum);
    if (n - j < L) weight *= ones_upto<float>(n - j);
    store(weights + j, weight);
    total += weight;
  }
  const float share = 1 / sum<float>(total);
  int64_t d = 0;
  for (; d + 4 * L <= D; d += 4 * L) {
    V sums[4] = {};
    for (int64_t j = 0; j < n; ++j) {
      const float* v = value(j) + d;
      for (int i = 0; i < 4; ++i) sums[i] += load(v + i * L) * weights[j];
    }
    for (int i = 0; i < 4; ++i) store(out + d + i * L, sums[i] * share);
  }
  for (; d < D; d += L) {
    V sums = {};
    for (int64_t j = 0; j < n; ++j) sums += load(value(j) + d, D - d) * weights[j];
    store(out + d, sums * share, D - d);
  }
}

// Rotary positions (arXiv 2104.09864): halves of a head are paired.
FASTSEQ_INLINE void rotate(float* x, const float* sine, const float* cosine, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] - b * sine[i];
    x[half + i] = a * sine[i] + b * cosine[i];
  }
}

} // namespace
