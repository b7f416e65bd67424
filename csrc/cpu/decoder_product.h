// Products of a decoder's few rows by packed weights, which are read once for all rows.
#pragma once

#include "../decoder_args.h"
#include "product.h"
#include "vec_math.h"
#include "work.h"

namespace {

using namespace fastseq;

constexpr int L = lanes<float>;
constexpr int NACC = 4;           // vectors of a panel
constexpr int COLUMNS = NACC * L; // of a panel
constexpr int64_t GROUP = 48;     // rows whose operand and sums stay in cache together
typedef Vec<float> V;
typedef Ints<float> I;

// Rows as the formats take them: words of inputs, and for int8 what a unit is worth.
struct Operand {
  float* words;
  int64_t stride; // in words
  float* scales;  // (rows)
};

// A format tells how a row of numbers becomes words, how words are multiplied, and what number a
// sum is.
struct FloatFormat : Format<float> {
  static FASTSEQ_INLINE_MEMBER void put(const Operand& to, int64_t row, const float* x, int64_t n) {
    memcpy(to.words + row * to.stride, x, sizeof(float) * n);
  }
  static FASTSEQ_INLINE_MEMBER V value(V sum, const Packed&, int64_t, float) { return sum; }
};

// Two bfloat16 weights a word, which become float32 on their way to the product: processors that
// multiply bfloat16 pairs do it at half the rate, and only memory's traffic counts here.
struct BfloatFormat : FloatFormat {
  static constexpr int PER_WORD = 2;
  static FASTSEQ_INLINE_MEMBER void put(const Operand& to, int64_t row, const float* x, int64_t n) {
    FloatFormat::put(to, row, x, n);
    to.words[row * to.stride + n] = 0; // what may come with the last input
  }
};

// Four int8 a word. Inputs are scaled row by row to -127 … 127, weights output by output; sums are
// exact integers, kept in the accumulators as they are.
struct Int8Format {
  typedef float A;
  static constexpr int PER_WORD = 4;
#if defined(__AVX512VNNI__)
  static constexpr int OFFSET = 128; // the instruction multiplies unsigned by signed numbers
  static FASTSEQ_INLINE_MEMBER V fma(V c, float b, V w) {
    return (V)_mm512_dpbusd_epi32((__m512i)c, (__m512i)_mm512_set1_ps(b), (__m512i)w);
  }
#else
  static constexpr int OFFSET = 0;
  static FASTSEQ_INLINE_MEMBER V fma(V c, float b, V w) {
    int32_t four;
    memcpy(&four, &b, 4);
    const I x = I{} + four, y = (I)w;
#if defined(__AVX512BW__) && FASTSEQ_VECTOR_BYTES == 64
#define FASTSEQ_SIXTEEN(op, ...) _mm512_##op##_epi16(__VA_ARGS__)
    typedef __m512i S;
#elif defined(__AVX2__) && FASTSEQ_VECTOR_BYTES == 32
#define FASTSEQ_SIXTEEN(op, ...) _mm256_##op##_epi16(__VA_ARGS__)
    typedef __m256i S;
#elif defined(__SSE2__) && FASTSEQ_VECTOR_BYTES == 16
#define FASTSEQ_SIXTEEN(op, ...) _mm_##op##_epi16(__VA_ARGS__)
    typedef __m128i S;
#endif
#if defined(FASTSEQ_SIXTEEN) // bytes 0 and 2, then 1 and 3, as numbers of 16 bits
    const auto even = [](I v) { return FASTSEQ_SIXTEEN(srai, FASTSEQ_SIXTEEN(slli, (S)v, 8), 8); };
    const auto odd = [](I v) { return FASTSEQ_SIXTEEN(srai, (S)v, 8); };
    return (V)((I)c + (I)FASTSEQ_SIXTEEN(madd, even(x), even(y)) +
               (I)FASTSEQ_SIXTEEN(madd, odd(x), odd(y)));
#undef FASTSEQ_SIXTEEN
#else
    I sum = (I)c + (x >> 24) * (y >> 24);
    for (int shift = 8; shift < 32; shift += 8) sum += (x << shift >> 24) * (y << shift >> 24);
    return (V)sum;
#endif
  }
#endif
  static FASTSEQ_INLINE_MEMBER void put(const Operand& to, int64_t row, const float* x, int64_t n) {
    V most = {};
    for (int64_t i = 0; i < n; i += L) {
      const V v = load(x + i, n - i);
      most = larger(most, v < 0 ? -v : v);
    }
    float largest = 0;
    for (int i = 0; i < L; ++i) largest = most[i] > largest ? most[i] : largest;
    const float unit = largest > 0 ? 127 / largest : 0;
    int8_t* const out = (int8_t*)(to.words + row * to.stride);
    const V shift = splat(12582912.0f); // its last bit counts ones: rounds to nearest
    for (int64_t i = 0; i < n; i += L) {
      const V rounded = load(x + i, n - i) * unit + shift;
      const I numbers = (I)rounded - 0x4b400000 + OFFSET;
      for (int j = 0; j < L && i + j < n; ++j) out[i + j] = (int8_t)numbers[j];
    }
    for (int64_t i = n; i % 4; ++i) out[i] = 0; // times a weight of 0
    to.scales[row] = largest / 127;
  }
  static FASTSEQ_INLINE_MEMBER V value(V sum, const Packed& m, int64_t column, float scale) {
    const int64_t width = round_up_to(m.outputs, COLUMNS);
    I whole = (I)sum;
    if (OFFSET) whole -= OFFSET * __builtin_convertvector(load(m.scales + width + column), I);
    return __builtin_convertvector(whole, V) * (load(m.scales + column) * scale);
  }
};

template <int N>
struct Rows {
  static constexpr int value = N;
};

// One tile of rows by a whole panel, a little at a time, while what comes next is fetched.
template <class F, int ROWS>
FASTSEQ_INLINE void few_rows(const Operand& x, int64_t row, const float* panel, int64_t K,
                             float* sums) {
  constexpr int64_t STEP = 16, AHEAD = 4096 / (int64_t)sizeof(float);
  const float* words = x.words + row * x.stride;
  for (int64_t k = 0; k < K; k += STEP) {
    const int64_t count = least(STEP, K - k);
    const float* w = panel + k * COLUMNS;
    for (int64_t i = 0; i < count * COLUMNS; i += 16) __builtin_prefetch(w + AHEAD + i, 0, 2);
    tile<F, ROWS, NACC, 1>(words + k, x.stride, w, 0, count, sums, 0, k > 0);
  }
}

// The same for any rows by a panel of bfloat16, which is widened a little at a time.
static void wide_rows(const Operand& x, int64_t first, int64_t rows, const float* panel, int64_t K,
                      float* sums) {
  constexpr int64_t STEP = 32, AHEAD = 4096 / (int64_t)sizeof(float);
  constexpr int R = tile_rows(NACC);
  alignas(64) float wide[2 * STEP * COLUMNS];
  for (int64_t k = 0; k < K; k += STEP) {
    const int64_t count = least(STEP, K - k);
    for (int64_t i = 0; i < count; ++i)
      for (int n = 0; n < NACC; ++n) {
        const float* pairs = panel + (k + i) * COLUMNS + n * L;
        __builtin_prefetch(pairs + AHEAD, 0, 2);
        V both[2];
        load_block((const bf16*)pairs, both);
        for (int j = 0; j < 2; ++j) store(wide + (2 * i + j) * COLUMNS + n * L, both[j]);
      }
    const float* inputs = x.words + first * x.stride + 2 * k;
    int64_t r = 0;
    const auto next = [&](auto size) __attribute__((always_inline)) {
      constexpr int ROWS = decltype(size)::value;
      for (; rows - r >= ROWS; r += ROWS)
        tile<FloatFormat, ROWS, NACC, 1>(inputs + r * x.stride, x.stride, wide, 0, 2 * count,
                                         sums + r * COLUMNS, 0, k > 0);
    };
    next(Rows<R>());
    if (R > 4) next(Rows<4>());
    next(Rows<2>());
    next(Rows<1>());
  }
}

// sums (count, COLUMNS) of the rows from `first` on by a panel of K words.
template <class F>
static void sum_panel(const Operand& x, int64_t first, int64_t count, const float* panel, int64_t K,
                      float* sums) {
  if constexpr (F::PER_WORD == 2) return wide_rows(x, first, count, panel, K, sums);
  if (count == 1) return few_rows<F, 1>(x, first, panel, K, sums);
  if (count == 2) return few_rows<F, 2>(x, first, panel, K, sums);
  if constexpr (tile_rows(NACC) >= 4)
    if (count == 4) return few_rows<F, 4>(x, first, panel, K, sums);
  panel_product<F, NACC>(x.words + first * x.stride, x.stride, count, panel, K, sums, true,
                         [](int64_t) {});
}

// Calls done(row, column, v) with every vector of x · panel p, the bias added.
template <class F, class Done>
FASTSEQ_INLINE void panel_times(const Operand& x, int64_t rows, const Packed& m, int64_t p,
                                float* sums, const Done& done) {
  const int64_t K = words_for<F>(m.inputs);
  const float* panel = (const float*)m.words + p * K * COLUMNS;
  for (int64_t first = 0; first < rows; first += GROUP) {
    const int64_t count = least(GROUP, rows - first);
    sum_panel<F>(x, first, count, panel, K, sums);
    for (int64_t r = 0; r < count; ++r)
      for (int n = 0; n < NACC; ++n) {
        const int64_t column = p * COLUMNS + n * L;
        const V sum = load(sums + (r * NACC + n) * L);
        const float scale = F::PER_WORD == 4 ? x.scales[first + r] : 1;
        done(first + r, column, F::value(sum, m, column, scale) + load(m.bias + column));
      }
  }
}

// erf within 2e-7 (Abramowitz and Stegun, 7.1.26).
FASTSEQ_INLINE V error_function(V x) {
  const I sign = (I)x & (I)splat(-0.0f);
  const V size = (V)((I)x ^ sign);
  const V t = 1 / (1 + size * 0.3275911f);
  V p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const V y = 1 - p * t * exponential(size * size * -1.44269504088896341f);
  return (V)((I)y | sign);
}

FASTSEQ_INLINE V activate(Activation kind, V x) {
  switch (kind) {
  case RELU:
    return x < 0 ? V{} : x; // NaN stays
  case SILU:
    return x * sigmoid(x);
  case GELU:
    return x * 0.5f * (1 + error_function(x * 0.70710678118654752f));
  default:
    return x * 0.5f * (1 + tanh((x + x * x * x * 0.044715f) * 0.79788456080286536f));
  }
}

// y = (x - mean) / deviation * weight + bias; y may be x.
FASTSEQ_INLINE void normalise(const float* x, const NormWeights& norm, int64_t n, double eps,
                              float* y) {
  V total = {};
  for (int64_t i = 0; i < n; i += L) total += load(x + i, n - i);
  const float mean = sum<float>(total) / n;
  V squares = {};
  for (int64_t i = 0; i < n; i += L) {
    const V v = (load(x + i, n - i) - mean) * (n - i < L ? ones_upto<float>(n - i) : splat(1.0f));
    squares += v * v;
  }
  const float factor = 1 / __builtin_sqrtf(sum<float>(squares) / n + (float)eps);
  for (int64_t i = 0; i < n; i += L) {
    const V v = (load(x + i, n - i) - mean) * factor;
    store(y + i, v * load(norm.weight + i, n - i) + load(norm.bias + i, n - i), n - i);
  }
}

} // namespace
