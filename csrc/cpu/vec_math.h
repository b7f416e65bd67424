// exp, sigmoid and tanh on vectors, within about two units in the last place.
// Polynomials and rational functions: Cephes (S. Moshier), expf/exp/tanhf/tanh.
#pragma once

#include "vec.h"

namespace {

// 2^n for integral n in the exponent's range, given n plus the number whose last bit counts ones.
FASTSEQ_INLINE Vec<float> power_of_two(Vec<float> n_shifted) {
  return (Vec<float>)(((Ints<float>)n_shifted - 0x4b400000 + 127) << 23);
}
FASTSEQ_INLINE Vec<double> power_of_two(Vec<double> n_shifted) {
  return (Vec<double>)(((Ints<double>)n_shifted - 0x4338000000000000 + 1023) << 52);
}

// For x within the range of normal results; NaN stays NaN.
FASTSEQ_INLINE Vec<float> exp_clamped(Vec<float> x) {
  const Vec<float> shift = splat(12582912.0f);
  const Vec<float> shifted = x * 1.44269504088896341f + shift;
  const Vec<float> n = shifted - shift;
  const Vec<float> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * power_of_two(shifted);
}
FASTSEQ_INLINE Vec<double> exp_clamped(Vec<double> x) {
  const Vec<double> shift = splat(6755399441055744.0);
  const Vec<double> shifted = x * 1.4426950408889634073599 + shift;
  const Vec<double> n = shifted - shift;
  const Vec<double> r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  const Vec<double> rr = r * r;
  Vec<double> p = rr * 1.26177193074810590878e-4 + 3.02994407707441961300e-2;
  p = (p * rr + 9.99999999999999999910e-1) * r;
  Vec<double> q = rr * 3.00198505138664455042e-6 + 2.52448340349684104192e-3;
  q = q * rr + 2.27265548208155028766e-1;
  q = q * rr + 2.00000000000000000009;
  return (2.0 * (p / (q - p)) + 1.0) * power_of_two(shifted);
}

FASTSEQ_INLINE float exp_limit(float) {
  return 87.0f;
}
FASTSEQ_INLINE double exp_limit(double) {
  return 708.0;
}

// 1/x, for x and 1/x normal numbers.
template <class A>
FASTSEQ_INLINE Vec<A> reciprocal(Vec<A> x) {
#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) { // a division of this width takes 16 cycles
    const Vec<float> near = (Vec<float>)_mm512_rcp14_ps((__m512)x);
    return near + near * (1 - x * near);
  }
#endif
  return 1 / x;
}

template <class A>
FASTSEQ_INLINE Vec<A> sigmoid_of(Vec<A> x) {
  const Vec<A> limit = splat(exp_limit(A())), lowest = -limit;
  Vec<A> y = -x;
  y = y > limit ? limit : y;
  y = y < lowest ? lowest : y;
  return reciprocal<A>(1 + exp_clamped(y));
}
FASTSEQ_INLINE Vec<float> sigmoid(Vec<float> x) {
  return sigmoid_of<float>(x);
}
FASTSEQ_INLINE Vec<double> sigmoid(Vec<double> x) {
  return sigmoid_of<double>(x);
}

// tanh for |x| < 0.625, from x and x squared.
FASTSEQ_INLINE Vec<float> tanh_small(Vec<float> x, Vec<float> z) {
  Vec<float> p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z + -5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z + -3.33332819422e-1f;
  return p * z * x + x;
}
FASTSEQ_INLINE Vec<double> tanh_small(Vec<double> x, Vec<double> z) {
  Vec<double> p = z * -9.64399179425052238628e-1 + -9.92877231001918586564e1;
  p = p * z + -1.61468768441708447952e3;
  Vec<double> q = z + 1.12811678491632931402e2;
  q = q * z + 2.23548839060100448583e3;
  q = q * z + 4.84406305325125486048e3;
  return (p / q) * z * x + x;
}

template <class A>
FASTSEQ_INLINE Vec<A> tanh_of(Vec<A> x) {
  const Ints<A> sign = (Ints<A>)x & (Ints<A>)splat(A(-0.0));
  const Vec<A> magnitude = (Vec<A>)((Ints<A>)x ^ sign);
  const Vec<A> limit = splat(A(22)); // tanh is 1 in double from here on
  const Vec<A> clamped = magnitude > limit ? limit : magnitude;
  const Vec<A> large = 1 - 2 * reciprocal<A>(exp_clamped(clamped + clamped) + 1);
  const Vec<A> signed_large = (Vec<A>)((Ints<A>)large | sign);
  return magnitude < splat(A(0.625)) ? tanh_small(x, x * x) : signed_large;
}
FASTSEQ_INLINE Vec<float> tanh(Vec<float> x) {
  return tanh_of<float>(x);
}
FASTSEQ_INLINE Vec<double> tanh(Vec<double> x) {
  return tanh_of<double>(x);
}

// Exponentials: floats are kept in units of log2, doubles in natural ones.
FASTSEQ_INLINE float exponent_unit(float) {
  return 1.44269504088896341f;
}
FASTSEQ_INLINE double exponent_unit(double) {
  return 1;
}

template <class V>
FASTSEQ_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
FASTSEQ_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
}
#elif defined(__AVX2__) && FASTSEQ_VECTOR_BYTES == 32
FASTSEQ_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
}
#endif

// 0 where the result would not be a normal number, as for -infinity; x must not be far above 0.
FASTSEQ_INLINE Vec<float> exponential(Vec<float> x) {
  x = larger(splat(-127.0f), x); // 2^-127 is assembled as 0; NaN stays
  const Vec<float> shift = splat(12582912.0f), shifted = x + shift, r = x - (shifted - shift);
  Vec<float> p = r * 1.534581183431e-04f + 1.339993121816e-03f;
  p = p * r + 9.618488957753e-03f;
  p = p * r + 5.550328776969e-02f;
  p = p * r + 2.402264689063e-01f;
  p = p * r + 6.931472057373e-01f;
  p = p * r + 1.0f;
  return p * power_of_two(shifted);
}
FASTSEQ_INLINE Vec<double> exponential(Vec<double> x) {
  return exp_clamped(larger(splat(-709.2), x));
}

} // namespace
