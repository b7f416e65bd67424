// What a block of queries sees: which keys, and what is added to its scores.
#pragma once

#include "attention_mask.h"
#include "attention_rows.h"
#include "attention_tiles.h"
#include "work.h"

namespace {

using namespace fastseq;

// One sequence and one key head, with the query heads that share it.
struct Unit {
  int64_t b, head, group;                     // group: query heads
  int64_t q0, k0, sq, sk;                     // where its tokens start, and how many
  int64_t rows() const { return group * sq; } // head by head
};

static Unit unit_of(const AttentionArgs& a, int64_t index) {
  Unit u{index / a.Hk, index % a.Hk, a.Hq / a.Hk, 0, 0, a.Sq, a.Sk};
  if (a.cu_q) {
    u.q0 = a.cu_q[u.b], u.sq = a.cu_q[u.b + 1] - u.q0;
    u.k0 = a.cu_k[u.b], u.sk = a.cu_k[u.b + 1] - u.k0;
  }
  return u;
}

template <class T>
static T* tokens_at(const AttentionArgs& a, const Tokens& x, const Unit& u, int64_t head,
                    int64_t token) {
  return (T*)x.data + (a.cu_q ? 0 : u.b) * x.batch + head * x.head + token * x.token;
}

// Whether rows enter products as words where they lie.
template <class T>
static bool enters_raw(const Tokens& x, int64_t width) {
  constexpr int64_t word = Shape<T>::WORD;
  if (word == 1) return sizeof(T) == sizeof(Acc<T>);
  return width % word == 0 && x.token % word == 0 && x.head % word == 0 && x.batch % word == 0 &&
         (uintptr_t)x.data % (word * sizeof(T)) == 0;
}

// The upper and the lower half of factor * x.
FASTSEQ_INLINE void multiply(U32 x, uint32_t factor, U32* high, U32* low) {
#if defined(__AVX2__) && FASTSEQ_VECTOR_BYTES == 32
  const __m256i f = _mm256_set1_epi32((int)factor);
  const __m256i even = _mm256_mul_epu32((__m256i)x, f);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)x, 32), f);
  *high = (U32)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  *low = (U32)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
#elif defined(__AVX512F__) && FASTSEQ_VECTOR_BYTES == 64
  const __m512i f = _mm512_set1_epi32((int)factor);
  const __m512i even = _mm512_mul_epu32((__m512i)x, f);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)x, 32), f);
  *high = (U32)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  *low = (U32)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
#else
  uint32_t part[lanes<float>], up[lanes<float>];
  memcpy(part, &x, sizeof x);
  for (int i = 0; i < lanes<float>; ++i) up[i] = (uint32_t)(((uint64_t)factor * part[i]) >> 32);
  memcpy(high, up, sizeof x);
  *low = x * factor;
#endif
}

// Philox4x32-10: four words for each lane's 64-bit counter; the third counter word tells uses
// apart.
FASTSEQ_INLINE void philox_words(uint64_t seed, U32 low, U32 high, uint32_t third, U32 (&c)[4]) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  c[0] = low, c[1] = high, c[2] = U32{} + third, c[3] = U32{};
  for (int round = 0; round < 10; ++round) {
    U32 high_a, low_a, high_b, low_b;
    multiply(c[0], 0xD2511F53u, &high_a, &low_a);
    multiply(c[2], 0xCD9E8D57u, &high_b, &low_b);
    c[0] = high_b ^ c[1] ^ k0, c[1] = low_b;
    c[2] = high_a ^ c[3] ^ k1, c[3] = low_a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// In the first lanes of words: 0 below a threshold, else `kept`.
FASTSEQ_INLINE Vec<float> keep_from(U32 words, uint32_t threshold, float kept) {
  return words >= threshold ? splat(kept) : Vec<float>{};
}
FASTSEQ_INLINE Vec<double> keep_from(U32 words, uint32_t threshold, double kept) {
  double factor[lanes<double>];
  for (int i = 0; i < lanes<double>; ++i) factor[i] = words[i] >= threshold ? kept : 0;
  return load(factor);
}

template <class A>
using Index = decltype(Ints<A>{}[0] + Ints<A>{}[0]);

// Up to QUERIES rows of a unit; lanes past the last repeat it.
template <class T>
struct QueryBlock {
  typedef Acc<T> A;
  typedef Vec<A> V;
  static constexpr int L = lanes<A>, WIDTH = Shape<T>::WIDTH;
  static constexpr int QUERIES = WIDTH == 32 ? 96 : 48; // whole panels, and whole tiles of rows
  static constexpr int VECTORS = QUERIES / L;

  struct Range {
    int64_t low, high;         // keys that any lane sees
    int64_t all_low, all_high; // keys that every lane sees
  };

  const AttentionArgs* args;
  ScoreUnit<A> unit_of_scores;
  Unit unit;
  int64_t first, rows, panels, vectors; // rows of the unit
  int64_t low, high;                    // keys that any lane sees; low is a multiple of 4
  Range range[VECTORS];
  Ints<A> key_low[QUERIES / L], key_high[QUERIES / L], position[QUERIES / L];
  V slope[QUERIES / L];
  int64_t head[QUERIES], index[QUERIES], mask_at[QUERIES];
  uint64_t counter[QUERIES];

  void set(const AttentionArgs& a, const Unit& u, int64_t first_row) {
    args = &a;
    unit_of_scores = score_unit<A>(a);
    unit = u;
    first = first_row;
    rows = least(QUERIES, u.rows() - first);
    panels = (rows + WIDTH - 1) / WIDTH;
    vectors = (rows + L - 1) / L;
    low = u.sk, high = 0;
    const int64_t offset = a.bottom_right ? u.sk - u.sq : 0, quads = (a.max_k + 3) / 4;
    int64_t i = first % u.sq, h = u.head * u.group + first / u.sq;
    for (int64_t v = 0; v < panels * WIDTH / L; ++v) {
      Range& r = range[v] = {u.sk, 0, 0, u.sk};
      for (int64_t lane = v * L; lane < (v + 1) * L; ++lane) {
        head[lane] = h, index[lane] = i;
        int64_t from = a.window_left < 0 ? 0 : i + offset - a.window_left;
        int64_t to = a.window_right < 0 ? u.sk : i + offset + a.window_right + 1;
        from = least(most(from, 0), u.sk), to = most(least(to, u.sk), from);
        key_low[lane / L][lane % L] = from, key_high[lane / L][lane % L] = to;
        if (from < to) r.low = least(r.low, from), r.high = most(r.high, to);
        r.all_low = most(r.all_low, from), r.all_high = least(r.all_high, to);
        position[lane / L][lane % L] = i + u.sk - u.sq;
        if (a.alibi) slope[lane / L][lane % L] = a.alibi[u.b * a.alibi_batch + h];
        mask_at[lane] = u.b * a.mask.batch + h * a.mask.head + i * a.mask.query;
        counter[lane] = (uint64_t)((u.b * a.Hq + h) * a.max_q + i) * (uint64_t)quads;
        if (lane + 1 < rows && ++i == u.sq) i = 0, ++h;
      }
      r.low = r.low / 4 * 4;
      low = least(low, r.low), high = most(high, r.high);
    }
    low = low / 4 * 4;
  }

  // The keys that each vector of rows sees among n from j0 on, as offsets; in whole words.
  void local(int64_t j0, int64_t n, int64_t (&from)[VECTORS], int64_t (&to)[VECTORS]) const {
    for (int64_t v = 0; v < vectors; ++v) {
      from[v] = least(most(range[v].low - j0, 0), n);
      to[v] = most(least(range[v].high - j0, n), from[v]);
    }
  }

  // Calls use(row, rows, low, high) for the rows of adjacent vectors that see the same keys.
  template <class Use>
  void same_keys(const int64_t* low, const int64_t* high, const Use& use) const {
    for (int64_t v = 0, next; v < vectors; v = next) {
      next = v + 1;
      while (next < vectors && low[next] == low[v] && high[next] == high[v]) ++next;
      if (low[v] < high[v]) use(v * L, least(next * L, rows) - v * L, low[v], high[v]);
    }
  }

  // Finishes the raw scores s of rows [from, to), key j0 being row 0, and lanes of vector v, in
  // exponent units. keep_slope, if given, gets the derivative of the softcap.
  void finish(A* s, int64_t ld, int64_t j0, int64_t from, int64_t to, int64_t v,
              A* keep_slope) const {
    const A unit_ = exponent_unit(A()), scale = (A)args->scale;
    const A cap = (A)args->softcap;
    s += v * L;
    for (int64_t j = from; j < to; ++j) {
      V t = load(s + j * ld) * scale;
      if (cap > 0) {
        const V h = tanh(t / cap);
        t = cap * h;
        if (keep_slope) store(keep_slope + v * L + j * ld, 1 - h * h);
      }
      if (args->alibi) {
        const V distance = __builtin_convertvector(position[v] - (Index<A>)(j0 + j), V);
        t = fused(-slope[v], distance < 0 ? -distance : distance, t); // the same bits everywhere
      }
      store(s + j * ld, t * unit_);
    }
    switch (args->mask.type) {
    case MASK_NONE:
      break;
    case MASK_BOOL:
      add_mask<bool>(s, ld, j0, from, to, v);
      break;
    case MASK_F64:
      add_mask<double>(s, ld, j0, from, to, v);
      break;
    case MASK_F32:
      add_mask<float>(s, ld, j0, from, to, v);
      break;
    case MASK_BF16:
      add_mask<bf16>(s, ld, j0, from, to, v);
      break;
    case MASK_F16:
      add_mask<f16>(s, ld, j0, from, to, v);
      break;
    }
  }

  // -infinity where a lane does not see a key. Only rows near the edges of the range pay.
  void cut(A* s, int64_t ld, int64_t j0, int64_t from, int64_t to, int64_t v) const {
    const Range& r = range[v];
    const int64_t inside_from = least(most(r.all_low - j0, from), to);
    const int64_t inside_to = most(least(r.all_high - j0, to), inside_from);
    for (int64_t j = from; j < to; ++j) {
      if (j == inside_from) j = inside_to;
      if (j >= to) break;
      A* at = s + j * ld + v * L;
      const Ints<A> key = Ints<A>{} + (Index<A>)(j0 + j);
      const V x = load(at), none = splat((A)-__builtin_inf());
      store(at, (key >= key_low[v]) & (key < key_high[v]) ? x : none);
    }
  }

  // Both of these, as far as the unit of scores asks for.
  void complete(A* s, int64_t ld, int64_t j0, int64_t from, int64_t to, int64_t v,
                A* keep_slope = nullptr) const {
    if (!unit_of_scores.raw) finish(s, ld, j0, from, to, v, keep_slope);
    cut(s, ld, j0, from, to, v);
  }

  // Multiplies rows [from, to) of p by 0 or 1/(1 - dropout_p). from is a multiple of 4.
  template <class Use>
  void dropped(int64_t j0, int64_t from, int64_t to, int64_t v, const Use& use) const {
    const double p = args->dropout_p, scaled = p * 4294967296.0;
    const uint32_t threshold = scaled >= 4294967295.0 ? 0xffffffffu : (uint32_t)scaled;
    const A kept = p >= 1 ? (A)0 : (A)(1.0f / (float)(1 - p));
    for (int64_t j = from; j < to; j += 4) {
      U32 low, high, word[4];
      uint32_t halves[2][lanes<float>] = {};
      for (int i = 0; i < L; ++i) {
        const uint64_t at = counter[v * L + i] + (uint64_t)((j0 + j) / 4);
        halves[0][i] = (uint32_t)at, halves[1][i] = (uint32_t)(at >> 32);
      }
      memcpy(&low, halves[0], sizeof low);
      memcpy(&high, halves[1], sizeof high);
      philox_words(args->seed, low, high, 2, word);
      for (int q = 0; q < 4 && j + q < to; ++q) use(j + q, keep_from(word[q], threshold, kept));
    }
  }

private:
  template <class M>
  void add_mask(A* s, int64_t ld, int64_t j0, int64_t from, int64_t to, int64_t v) const {
    const M* mask = (const M*)args->mask.data;
    const int64_t* at = mask_at + v * L;
    const int64_t step = args->mask.key;
    const A unit_ = exponent_unit(A());
    auto add = [&](int64_t j, V value) {
      const V x = load(s + j * ld), none = splat((A)-__builtin_inf());
      if (sizeof(M) == 1)
        store(s + j * ld, value > 0 ? x : none);
      else
        store(s + j * ld, value < splat((A)LEFT_OUT) ? none : x + value * unit_);
    };
    auto across = [&](int64_t key) {
      A part[L];
      for (int i = 0; i < L; ++i) part[i] = mask_value<A>(mask + at[i] + key * step);
      return load(part);
    };
    bool shared = true;
    for (int i = 1; i < L; ++i) shared &= at[i] == at[0];
    if (step == 0) {
      const V value = across(0);
      for (int64_t j = from; j < to; ++j) add(j, value);
    } else if (shared) {
      for (int64_t j = from; j < to; ++j)
        add(j, splat(mask_value<A>(mask + at[0] + (j0 + j) * step)));
    } else if (step == 1) {
      if constexpr (sizeof(M) == 1)
        return leave_out<A>(mask + j0 + from, at, to - from, s + from * ld, ld);
      for (int64_t j = from; j < to; j += L) {
        V m[L];
        for (int i = 0; i < L; ++i) m[i] = mask_values<A>(mask + at[i] + j0 + j, to - j);
        transpose<A>(m);
        for (int i = 0; i < L && j + i < to; ++i) add(j + i, m[i]);
      }
    } else {
      for (int64_t j = from; j < to; ++j) add(j, across(j0 + j));
    }
  }
};

// The largest of rows [from, to) of x, for each lane of a vector.
template <class A>
FASTSEQ_INLINE Vec<A> largest_of(const A* x, int64_t ld, int64_t from, int64_t to) {
  Vec<A> m[2] = {load(x + from * ld), load(x + from * ld)};
  int64_t j = from;
  for (; j + 2 <= to; j += 2) {
    m[0] = larger(m[0], load(x + j * ld));
    m[1] = larger(m[1], load(x + (j + 1) * ld));
  }
  if (j < to) m[0] = larger(m[0], load(x + j * ld));
  return larger(m[0], m[1]);
}

// Scores in rows [from, to) of x become weights, relative to `base`. Returns their sum.
template <class A>
FASTSEQ_INLINE Vec<A> weigh(A* x, int64_t ld, int64_t from, int64_t to, A factor, Vec<A> base) {
  Vec<A> total = {};
  for (int64_t j = from; j < to; ++j) {
    const Vec<A> weight = exponential((load(x + j * ld) - base) * factor);
    total += weight;
    store(x + j * ld, weight);
  }
  return total;
}

// Rows [from, to) of x become words, from row from / 2 on; from is even.
template <class T>
FASTSEQ_INLINE void pair_rows(Acc<T>* x, int64_t ld, int64_t from, int64_t to) {
  if (Shape<T>::WORD == 1) return;
  for (int64_t j = from; j < to; j += 2)
    store(x + j / 2 * ld,
          word_of(load(x + j * ld), j + 1 < to ? load(x + (j + 1) * ld) : Vec<Acc<T>>{}));
}

// weigh and pair_rows in one pass.
template <class T>
FASTSEQ_INLINE Vec<Acc<T>> weigh_in_words(Acc<T>* x, int64_t ld, int64_t from, int64_t to,
                                          Acc<T> factor, Vec<Acc<T>> base) {
  typedef Vec<Acc<T>> V;
  if (Shape<T>::WORD == 1) return weigh<Acc<T>>(x, ld, from, to, factor, base);
  V total = {};
  const auto weight = [&](int64_t j) { return exponential((load(x + j * ld) - base) * factor); };
  for (int64_t j = from; j < to; j += 2) {
    const V first = weight(j), second = j + 1 < to ? weight(j + 1) : V{};
    total += first + second;
    store(x + j / 2 * ld, word_of(first, second));
  }
  return total;
}

// Rows of a tensor, one `stride` after the other.
template <class T>
struct Lines {
  const T* data;
  int64_t stride;
};

// The rows of a block's panels: where they lie, or copied to `room`, zeros after the last.
template <class T>
static Lines<T> rows_of(const AttentionArgs& a, const Tokens& x, const QueryBlock<T>& b,
                        int64_t width, T* room, int64_t stride) {
  const auto at = [&](int64_t row) {
    return tokens_at<T>(a, x, b.unit, b.head[row], b.unit.q0 + b.index[row]);
  };
  const int64_t rows = b.panels * Shape<T>::WIDTH;
  if (b.rows == rows && b.head[0] == b.head[rows - 1]) return {at(0), x.token};
  for (int64_t row = 0; row < rows; ++row) {
    memset(room + row * stride, 0, sizeof(T) * stride);
    if (row < b.rows) memcpy(room + row * stride, at(row), sizeof(T) * width);
  }
  return {room, stride};
}

// The same as panels of columns.
template <class T>
static void pack_rows_across(const QueryBlock<T>& b, Lines<T> rows, int64_t width, Acc<T>* to) {
  constexpr int W = Shape<T>::WIDTH;
  for (int64_t p = 0; p < b.panels; ++p, to += words_for<Format<T>>(width) * W)
    pack_across<T>(rows.data + p * W * rows.stride, rows.stride, width, to);
}

// Where a row stands in lse, and in what is like it.
template <class Block>
static int64_t place_of(const AttentionArgs& a, const Block& b, int64_t row) {
  const int64_t batch = a.cu_q ? 0 : b.unit.b;
  return (batch * a.Hq + b.head[row]) * a.Sq + b.unit.q0 + b.index[row];
}

// to (n, QUERIES) = rows of x by each vector of queries that sees any key of a strip.
template <class T>
static void transposed_product(const QueryBlock<T>& b, const int64_t* low, const int64_t* high,
                               int64_t n, int64_t words, const Acc<T>* x, int64_t ldx,
                               const Acc<T>* panels, Acc<T>* to) {
  typedef Product<T> P;
  constexpr int Q = QueryBlock<T>::QUERIES, R = Shape<T>::ROWS, W = Shape<T>::WIDTH, L = W / 2;
  for (int64_t r = 0; r < n; r += R) {
    const int64_t rows = least(R, n - r);
    const auto sees = [&](int64_t v) { return v < b.vectors && low[v] < r + rows && high[v] > r; };
    for (int64_t p = 0; p < b.panels; ++p) {
      const Acc<T>* w = panels + p * words * W;
      Acc<T>* c = to + r * Q + p * W;
      const bool first = sees(2 * p), second = sees(2 * p + 1);
      if (first && second)
        product_strip<P, 2, true>(rows, x + r * ldx, ldx, w, W, words, c, Q, false);
      else if (first || second)
        product_strip<P, 1, true>(rows, x + r * ldx, ldx, first ? w : w + L, W, words,
                                  first ? c : c + L, Q, false);
    }
  }
}

} // namespace
