// exp, sigmoid and tanh on vectors, within about two units in the last place.
// Polynomials and rational functions: Cephes (S. Moshier), expf/exp/tanhf/tanh.
#pragma once

#include "vec.h"

namespace {

constexpr float LOG2_E = 1.44269504088896341f, LOG2_E_REST = 1.92596299e-8f;
constexpr float SHIFT = 12582912; // added, it leaves the nearest integer in a float's last bits

// 2^n for integral n in the exponent's range, given n plus the number whose last bit counts ones.
FASTSEQ_INLINE Vec<float> power_of_two(Vec<float> n_shifted) {
  return (Vec<float>)(((Ints<float>)n_shifted - 0x4b400000 + 127) << 23);
}
FASTSEQ_INLINE Vec<double> power_of_two(Vec<double> n_shifted) {
  return (Vec<double>)(((Ints<double>)n_shifted - 0x4338000000000000 + 1023) << 52);
}

// For x within the range of normal results; NaN stays NaN.
FASTSEQ_INLINE Vec<float> exp_clamped(Vec<float> x) {
  const Vec<float> shifted = x * LOG2_E + SHIFT;
  const Vec<float> n = shifted - SHIFT;
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

// a / b, for b and 1/b normal numbers.
FASTSEQ_INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
  const Vec<float> inverse = (Vec<float>)_mm512_rcp14_ps((__m512)b), near = a * inverse;
  return near + (a - near * b) * inverse;
#else
  return a / b;
#endif
}

// Of two; b where one is NaN.
template <class V>
FASTSEQ_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
FASTSEQ_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}
#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
FASTSEQ_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
}
FASTSEQ_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_min_ps((__m512)a, (__m512)b);
}
#elif defined(__AVX2__) && FASTSEQ_VECTOR_BYTES == 32
FASTSEQ_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
}
FASTSEQ_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b);
}
#endif

// (2^r - 1) / r for |r| <= 1/2
FASTSEQ_INLINE Vec<float> power_slope(Vec<float> r) {
  Vec<float> p = r * 1.545316294512e-04f + 1.339086336467e-03f;
  p = p * r + 9.618082557278e-03f;
  p = p * r + 5.550357114219e-02f;
  p = p * r + 2.402265076057e-01f;
  return p * r + 6.931471880262e-01f;
}

// 2^x for floats, e^x for doubles: scores are kept in units of log2 or natural ones. 0 where the
// result would not be a normal number, as for -infinity; x must not be far above 0.
FASTSEQ_INLINE Vec<float> exponential(Vec<float> x) {
#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126), _CMP_NLT_UQ);
  const Vec<float> n = x + SHIFT - SHIFT, r = x - n;
  return (Vec<float>)_mm512_maskz_scalef_ps(normal, (__m512)(power_slope(r) * r + 1.0f), (__m512)n);
#else
  x = larger(splat(-127.0f), x); // 2^-127 is assembled as 0; NaN stays
  const Vec<float> shifted = x + SHIFT, r = x - (shifted - SHIFT);
  return (power_slope(r) * r + 1.0f) * power_of_two(shifted);
#endif
}
FASTSEQ_INLINE Vec<double> exponential(Vec<double> x) {
  return exp_clamped(larger(splat(-709.2), x));
}
FASTSEQ_INLINE float exponent_unit(float) {
  return LOG2_E;
}
FASTSEQ_INLINE double exponent_unit(double) {
  return 1;
}

// Natural, of normal numbers above 0; NaN stays.
FASTSEQ_INLINE Vec<float> logarithm(Vec<float> x) {
  const Ints<float> bits = (Ints<float>)x;
  Vec<float> m = (Vec<float>)((bits & 0x007fffff) | 0x3f000000); // 0.5 … 1
  const Ints<float> small = m < splat(0.70710678f);              // -1 or 0
  const Vec<float> e = __builtin_convertvector(((bits >> 23) & 255) - 126 + small, Vec<float>);
  m = (small ? m + m : m) - 1;
  Vec<float> p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const Vec<float> z = m * m;
  return (m + (p * m * z - 2.12194440e-4f * e - 0.5f * z)) + 0.693359375f * e + (x - x);
}
FASTSEQ_INLINE Vec<double> logarithm(Vec<double> x) {
  for (int i = 0; i < lanes<double>; ++i) x[i] = __builtin_log(x[i]);
  return x;
}

// e^x = power (1 + rise), both precise; for |x| <= 87.
struct Powers {
  Vec<float> power, rise;
};
FASTSEQ_INLINE Powers natural_power(Vec<float> x) {
  const Vec<float> shifted = x * LOG2_E + SHIFT;
  const Vec<float> r = (x * LOG2_E - (shifted - SHIFT)) + x * LOG2_E_REST;
  return {power_of_two(shifted), power_slope(r) * r};
}

// 1 / (1 + e^-x); 0 where that would not be a normal number, as for -infinity.
FASTSEQ_INLINE Vec<float> sigmoid(Vec<float> x) {
  const Powers e = natural_power(-smaller(splat(87.0f), x));
  const Vec<float> y = reciprocal<float>(1 + (e.power * e.rise + e.power));
  return x < -87.0f ? Vec<float>{} : y;
}
FASTSEQ_INLINE Vec<double> sigmoid(Vec<double> x) {
  const Vec<double> y = 1 / (1 + exp_clamped(-smaller(splat(708.0), x)));
  return x < -708.0 ? Vec<double>{} : y;
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

// With m = e^-2|x| - 1, which stays precise near 0: |tanh x| = -m / (2 + m).
FASTSEQ_INLINE Vec<float> tanh(Vec<float> x) {
  const Ints<float> sign_bit = (Ints<float>)splat(-0.0f), sign = (Ints<float>)x & sign_bit;
  const Vec<float> minus = larger(splat(-22.0f), (Vec<float>)((Ints<float>)x | sign_bit));
  const Powers e = natural_power(minus + minus);
  const Vec<float> m = e.power * e.rise + (e.power - 1);
  return (Vec<float>)((Ints<float>)quotient(0 - m, 2 + m) | sign);
}
FASTSEQ_INLINE Vec<double> tanh(Vec<double> x) {
  const Ints<double> sign = (Ints<double>)x & (Ints<double>)splat(-0.0);
  const Vec<double> magnitude = (Vec<double>)((Ints<double>)x ^ sign);
  const Vec<double> limit = splat(22.0); // tanh is 1 from here on
  const Vec<double> clamped = magnitude > limit ? limit : magnitude;
  const Vec<double> large = 1 - 2 / (exp_clamped(clamped + clamped) + 1);
  const Vec<double> signed_large = (Vec<double>)((Ints<double>)large | sign);
  return magnitude < splat(0.625) ? tanh_small(x, x * x) : signed_large;
}

} // namespace
