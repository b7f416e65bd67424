// Vectors of one instruction set, on the compiler's vector extensions.
//
// Each kernel file is compiled once per instruction set with FASTSEQ_ISA (its name) and
// FASTSEQ_VECTOR_BYTES. Everything here has internal linkage: a function compiled for AVX must
// never be the copy that the linker keeps for a machine without it.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FASTSEQ_INLINE_MEMBER inline __attribute__((always_inline))
#define FASTSEQ_INLINE static FASTSEQ_INLINE_MEMBER
// For loops that want all registers, which what is inlined around them would hold.
#define FASTSEQ_APART __attribute__((noinline))

namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// The type that sums, cell states and point-wise maths are kept in.
template <class T>
struct AccOf {
  typedef float type;
};
template <>
struct AccOf<double> {
  typedef double type;
};
template <class T>
using Acc = typename AccOf<T>::type;

template <class A>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(FASTSEQ_VECTOR_BYTES)));
  typedef int32_t ints __attribute__((vector_size(FASTSEQ_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(FASTSEQ_VECTOR_BYTES)));
  typedef int64_t ints __attribute__((vector_size(FASTSEQ_VECTOR_BYTES)));
};
template <class A>
using Vec = typename VecOf<A>::type;
template <class A>
using Ints = typename VecOf<A>::ints;
template <class A>
constexpr int lanes = FASTSEQ_VECTOR_BYTES / sizeof(A);

typedef uint32_t U32 __attribute__((vector_size(FASTSEQ_VECTOR_BYTES)));
typedef uint16_t U16 __attribute__((vector_size(FASTSEQ_VECTOR_BYTES / 2)));

template <class A>
FASTSEQ_INLINE Vec<A> splat(A x) {
  return x - Vec<A>{};
}

FASTSEQ_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  memcpy(&v, p, sizeof v);
  return v;
}
FASTSEQ_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  memcpy(&v, p, sizeof v);
  return v;
}
// GCC converts vectors half by half; these take one instruction or two.
FASTSEQ_INLINE U32 widen(U16 half) {
#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
  return (U32)_mm512_cvtepu16_epi32((__m256i)half);
#elif defined(__AVX2__) && FASTSEQ_VECTOR_BYTES == 32
  return (U32)_mm256_cvtepu16_epi32((__m128i)half);
#else
  return __builtin_convertvector(half, U32);
#endif
}
FASTSEQ_INLINE U16 narrow(U32 x) {
#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
  return (U16)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__) && FASTSEQ_VECTOR_BYTES == 32
  return (U16)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)x),
                               _mm256_extracti128_si256((__m256i)x, 1)); // below 2^16: exact
#else
  return __builtin_convertvector(x, U16);
#endif
}

FASTSEQ_INLINE Vec<float> load(const bf16* p) {
  U16 half;
  memcpy(&half, p, sizeof half);
  return (Vec<float>)(widen(half) << 16);
}

FASTSEQ_INLINE void store(float* p, Vec<float> v) {
  memcpy(p, &v, sizeof v);
}
FASTSEQ_INLINE void store(double* p, Vec<double> v) {
  memcpy(p, &v, sizeof v);
}
#if defined(__AVX512BF16__) && FASTSEQ_VECTOR_BYTES == 64
FASTSEQ_INLINE void store(bf16* p, Vec<float> v) { // what is below float's normal numbers becomes 0
  const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &half, sizeof half);
}
#else
FASTSEQ_INLINE void store(bf16* p, Vec<float> v) {
  U32 bits = (U32)v;
  U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; // to nearest, ties to even
  rounded = v != v ? (U32{} + 0x7fc0) : rounded;
  U16 half = narrow(rounded);
  memcpy(p, &half, sizeof half);
}
#endif

#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
FASTSEQ_INLINE Vec<float> load(const f16* p) {
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
FASTSEQ_INLINE void store(f16* p, Vec<float> v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, 0));
}
#elif defined(__F16C__)
FASTSEQ_INLINE Vec<float> load(const f16* p) {
  float wide[lanes<float>];
  for (int i = 0; i < lanes<float>; i += 8)
    _mm256_storeu_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + i))));
  return load(wide);
}
FASTSEQ_INLINE void store(f16* p, Vec<float> v) {
  float wide[lanes<float>];
  store(wide, v);
  for (int i = 0; i < lanes<float>; i += 8)
    _mm_storeu_si128((__m128i*)(p + i), _mm256_cvtps_ph(_mm256_loadu_ps(wide + i), 0));
}
#else
FASTSEQ_INLINE float widen(f16 x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  uint32_t bits = rest << 13;
  float value;
  if (rest >= 0x7c00) {
    bits |= 0x7f800000; // infinity or NaN
  } else {
    memcpy(&value, &bits, 4);
    value *= 0x1p112f; // moves the exponent's bias, and normalises what was subnormal
    memcpy(&bits, &value, 4);
  }
  bits |= sign;
  memcpy(&value, &bits, 4);
  return value;
}
FASTSEQ_INLINE f16 narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint16_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  uint16_t half;
  if (bits > 0x7f800000) {
    half = 0x7e00;
  } else if (bits >= 0x477ff000) {
    half = 0x7c00; // rounds to infinity
  } else if (bits < 0x38800000) {
    float value; // subnormal: adding 0.5 aligns the last kept bit with that of the sum
    memcpy(&value, &bits, 4);
    value += 0.5f;
    memcpy(&bits, &value, 4);
    half = (uint16_t)(bits - 0x3f000000);
  } else {
    half = (uint16_t)((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13);
  }
  return f16{(uint16_t)(half | sign)};
}
FASTSEQ_INLINE Vec<float> load(const f16* p) {
  float wide[lanes<float>];
  for (int i = 0; i < lanes<float>; ++i) wide[i] = widen(p[i]);
  return load(wide);
}
FASTSEQ_INLINE void store(f16* p, Vec<float> v) {
  float wide[lanes<float>];
  store(wide, v);
  for (int i = 0; i < lanes<float>; ++i) p[i] = narrow(wide[i]);
}
#endif

// The first n lanes only; the others are zero. n may exceed the number of lanes.
template <class T>
FASTSEQ_INLINE Vec<Acc<T>> load(const T* p, int64_t n) {
  constexpr int L = lanes<Acc<T>>;
  if (__builtin_expect(n >= L, 1)) return load(p);
  T part[L] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}
template <class T>
FASTSEQ_INLINE void store(T* p, Vec<Acc<T>> v, int64_t n) {
  constexpr int L = lanes<Acc<T>>;
  if (__builtin_expect(n >= L, 1)) return store(p, v);
  T part[L];
  store(part, v);
  for (int i = 0; i < n; ++i) p[i] = part[i];
}

// Two rows of one word each: the lower half is the first.
FASTSEQ_INLINE Vec<float> word_of(Vec<float> first, Vec<float> second) {
#if defined(__AVX512BF16__) && FASTSEQ_VECTOR_BYTES == 64
  static constexpr auto in_turns = [] {
    struct {
      uint16_t of[32];
    } lanes{};
    for (int i = 0; i < 32; ++i) lanes.of[i] = (uint16_t)(i % 2 * 16 + i / 2);
    return lanes;
  }();
  const __m512bh halves = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return (Vec<float>)_mm512_permutexvar_epi16(_mm512_loadu_si512(in_turns.of), (__m512i)halves);
#else
  bf16 halves[2][lanes<float>];
  store(halves[0], first);
  store(halves[1], second);
  return (Vec<float>)(((U32)load(halves[0]) >> 16) | (U32)load(halves[1]));
#endif
}
FASTSEQ_INLINE Vec<double> word_of(Vec<double> first, Vec<double>) {
  return first;
}

// A block is what one load of memory-bound work widens to: a vector, or, of bfloat16, two, its even
// and its odd elements, which take an instruction each where elements in order take two.
template <class T>
constexpr int block_vectors = 1;
template <>
constexpr int block_vectors<bf16> = 2;
template <class T>
constexpr int block_elements = block_vectors<T> * lanes<Acc<T>>;

template <class T>
FASTSEQ_INLINE void load_block(const T* p, Vec<Acc<T>> (&v)[1]) {
  v[0] = load(p);
}
FASTSEQ_INLINE void load_block(const bf16* p, Vec<float> (&v)[2]) {
  U32 words;
  memcpy(&words, p, sizeof words);
  v[0] = (Vec<float>)(words << 16);
  v[1] = (Vec<float>)(words & 0xffff0000u);
}
template <class T>
FASTSEQ_INLINE void store_block(T* p, const Vec<Acc<T>> (&v)[1]) {
  store(p, v[0]);
}
FASTSEQ_INLINE void store_block(bf16* p, const Vec<float> (&v)[2]) {
  const Vec<float> words = word_of(v[0], v[1]);
  memcpy(p, &words, sizeof words);
}
// The first n elements only; the others are zero. n may exceed a block.
template <class T, int N>
FASTSEQ_INLINE void load_block(const T* p, int64_t n, Vec<Acc<T>> (&v)[N]) {
  if (__builtin_expect(n >= block_elements<T>, 1)) return load_block(p, v);
  T part[block_elements<T>] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  load_block(part, v);
}
template <class T, int N>
FASTSEQ_INLINE void store_block(T* p, int64_t n, const Vec<Acc<T>> (&v)[N]) {
  if (__builtin_expect(n >= block_elements<T>, 1)) return store_block(p, v);
  T part[block_elements<T>];
  store_block(part, v);
  for (int i = 0; i < n; ++i) p[i] = part[i];
}

// Lanes of two vectors a and b (those of b count from L on): of a where S is not in a lane's index,
// of b where it is; `other` are the same vectors' lanes with S turned over. Tables, since GCC
// builds such indices at run time.
template <class A, int S>
struct Folding {
  static constexpr int L = lanes<A>;
  decltype(Ints<A>{}[0] + 0) own[L] = {}, other[L] = {};
  constexpr Folding() {
    for (int j = 0; j < L; ++j) {
      own[j] = j & S ? L + j : j;
      other[j] = own[j] ^ S;
    }
  }
};
template <class A, int S>
FASTSEQ_INLINE void fold_lanes(Vec<A> (&m)[lanes<A>]) {
  static constexpr Folding<A, S> table;
  Ints<A> own, other;
  memcpy(&own, table.own, sizeof own);
  memcpy(&other, table.other, sizeof other);
#pragma GCC unroll 16
  for (int i = 0; i < lanes<A>; i += 2 * S)
    m[i] = __builtin_shuffle(m[i], m[i + S], own) + __builtin_shuffle(m[i], m[i + S], other);
  if constexpr (2 * S < lanes<A>) fold_lanes<A, 2 * S>(m);
}
// Lane j: the sum of the lanes of m[j].
template <class A>
FASTSEQ_INLINE Vec<A> sum_lanes(Vec<A> (&m)[lanes<A>]) {
  fold_lanes<A, 1>(m);
  return m[0];
}

// a·b + c, rounded once where the processor can. The compiler fuses products into sums by itself,
// but in one copy of a loop this way and in another that, and bits must not depend on it.
template <class V>
FASTSEQ_INLINE V fused(V a, V b, V c) {
#if defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
  if constexpr (sizeof(a[0]) == 4) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (sizeof(a[0]) == 8) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && FASTSEQ_VECTOR_BYTES == 32
  if constexpr (sizeof(a[0]) == 4) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (sizeof(a[0]) == 8) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#endif
  return a * b + c;
}

// The value that storing as T and loading again gives.
template <class T>
FASTSEQ_INLINE Vec<Acc<T>> round_to(Vec<Acc<T>> v) {
  if (sizeof(T) == sizeof(Acc<T>)) return v;
  T stored[lanes<Acc<T>>];
  store(stored, v);
  return load(stored);
}

// Ones in the first n lanes, zeros after.
template <class A>
FASTSEQ_INLINE Vec<A> ones_upto(int64_t n) {
  A part[lanes<A>];
  for (int i = 0; i < lanes<A>; ++i) part[i] = i < n;
  return load(part);
}

template <class A>
FASTSEQ_INLINE A sum(Vec<A> v) {
  A part[lanes<A>];
  store(part, v);
  for (int width = lanes<A> / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}

} // namespace
