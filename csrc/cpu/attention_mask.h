// Masks of attention, of any type and strides.
#pragma once

#include "../attention_args.h"
#include "product.h"
#include "vec_math.h"

namespace {

using namespace fastseq;

FASTSEQ_INLINE float as_number(bf16 x) {
  return load(&x, 1)[0];
}
FASTSEQ_INLINE float as_number(f16 x) {
  return load(&x, 1)[0];
}
FASTSEQ_INLINE float as_number(float x) {
  return x;
}
FASTSEQ_INLINE double as_number(double x) {
  return x;
}
FASTSEQ_INLINE float as_number(bool x) {
  return x;
}

// Adjacent elements of a mask, n of them.
template <class A, class M>
FASTSEQ_INLINE Vec<A> mask_values(const M* p, int64_t n) {
  if constexpr (sizeof(M) == sizeof(A) || (sizeof(M) == 2 && sizeof(A) == 4)) {
    return load(p, n);
  } else {
    if constexpr (sizeof(M) == 1)
      if (n >= lanes<A>) {
        typedef uint8_t Bytes __attribute__((vector_size(lanes<A>)));
        Bytes bytes;
        memcpy(&bytes, p, sizeof bytes);
        return __builtin_convertvector(__builtin_convertvector(bytes, Ints<A>), Vec<A>);
      }
    A part[lanes<A>] = {};
    for (int i = 0; i < lanes<A> && i < n; ++i) part[i] = (A)as_number(p[i]);
    return load(part);
  }
}
template <class A, class M>
FASTSEQ_INLINE A mask_value(const M* p) {
  return (A)as_number(*p);
}

// An added mask below this, as torch.finfo(torch.float32).min is, leaves the key out like
// -infinity: in float32 it would swallow the score, and its log-sum-exp lose the number of keys.
constexpr double LEFT_OUT = -2.3e38;

// Adds n elements of a mask, from `at` on, to as many scores.
template <class A, class M>
static void add_mask_row(const M* mask, int64_t step, int64_t n, A* s) {
  for (int64_t j = 0; j < n; ++j) {
    const A value = mask_value<A>(mask + j * step);
    if (sizeof(M) > 1 ? value < (A)LEFT_OUT : value == 0)
      s[j] = (A)-__builtin_inf();
    else if (sizeof(M) > 1)
      s[j] += value * exponent_unit(A());
  }
}
template <class A>
static void add_mask(const Mask& mask, int64_t at, int64_t n, A* s) {
  switch (mask.type) {
  case MASK_NONE:
    break;
  case MASK_BOOL:
    return add_mask_row((const bool*)mask.data + at, mask.key, n, s);
  case MASK_F64:
    return add_mask_row((const double*)mask.data + at, mask.key, n, s);
  case MASK_F32:
    return add_mask_row((const float*)mask.data + at, mask.key, n, s);
  case MASK_BF16:
    return add_mask_row((const bf16*)mask.data + at, mask.key, n, s);
  case MASK_F16:
    return add_mask_row((const f16*)mask.data + at, mask.key, n, s);
  }
}

// Puts -infinity into s (n, lanes) where mask[at[lane] + row] is false.
template <class A>
FASTSEQ_INLINE void leave_out(const bool* mask, const int64_t* at, int64_t n, A* s, int64_t ld) {
  constexpr int L = lanes<A>;
  const Vec<A> none = splat((A)-__builtin_inf());
  for (int64_t j = 0; j < n; j += L) {
#if defined(__AVX512BW__) && FASTSEQ_VECTOR_BYTES == 64
    if constexpr (sizeof(A) == 4) { // a bit a row, and then a bit a lane
      const __mmask16 rows = n - j < L ? (1 << (n - j)) - 1 : 0xffff;
      uint16_t of_lanes[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        const __m128i bytes = _mm_maskz_loadu_epi8(rows, mask + at[i] + j);
        of_lanes[i] = _mm_test_epi8_mask(bytes, bytes);
      }
      __m256i bits;
      memcpy(&bits, of_lanes, sizeof bits);
      for (int i = 0; i < L && j + i < n; ++i, bits = _mm256_srli_epi16(bits, 1)) {
        const __mmask16 seen = _mm256_movepi16_mask(_mm256_slli_epi16(bits, 15));
        _mm512_mask_storeu_ps(s + (j + i) * ld, (__mmask16)~seen, (__m512)none);
      }
      continue;
    }
#endif
    Vec<A> m[L];
    for (int i = 0; i < L; ++i) m[i] = mask_values<A>(mask + at[i] + j, n - j);
    transpose<A>(m);
    for (int i = 0; i < L && j + i < n; ++i)
      store(s + (j + i) * ld, m[i] > 0 ? load(s + (j + i) * ld) : none);
  }
}

} // namespace
