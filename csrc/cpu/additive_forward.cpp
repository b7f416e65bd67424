// Additive attention forward: exponentials of the queries; then, a block of keys at a time, theirs
// and the scores with every query; then softmax and context, a row at a time.
#include "additive_common.h"

namespace {

template <class T>
struct Forward {
  typedef Acc<T> A;
  typedef Vec<A> V;
  static constexpr int L = lanes<A>;
  static constexpr int64_t KEYS = most(16, L); // of a block
  static constexpr int64_t QUERIES = 8;        // rows of a task of softmax and context

  const AdditiveForwardArgs& a;
  const int64_t width, key_width; // whole vectors
  int64_t key_blocks, parts;
  A *v, *queries, *largest; // shared: exponentials of queries, and each row's largest |q|

  explicit Forward(const AdditiveForwardArgs& args)
      : a(args), width(round_up_to(a.D, L)), key_width(round_up_to(a.Tk, L)),
        key_blocks((a.Tk + KEYS - 1) / KEYS) {
    // Where keys alone make few tasks, parts of the queries make more.
    const int64_t blocks = most(1, a.B * key_blocks);
    parts = most(1, least((32 + blocks - 1) / blocks, a.Tq / 16));
  }

  void run() {
    const int64_t rows = a.B * a.Tq;
    Cutter counted(nullptr);
    const int64_t own_size = most(KEYS * width, QUERIES * key_width);
    auto cut = [&](Cutter& c) {
      v = c.take<A>(width);
      queries = c.take<A>(rows * width);
      largest = c.take<A>(rows);
      return c.take<A>(own_size * a.threads);
    };
    cut(counted);
    Memory memory(counted.used());
    Cutter cutter(memory.data());
    A* const own = cut(cutter);
    for (int64_t d = 0; d < a.D; d += L) store(v + d, load((const T*)a.v + d, a.D - d));
    Queue preparing, scoring, finishing;
    on_threads(threads_for(a), [&](const Worker& worker) {
      A* const mine = own + worker.index * own_size;
      preparing.drain(worker, (rows + 15) / 16, [&](int64_t t) {
        for (int64_t r = t * 16; r < least(rows, t * 16 + 16); ++r)
          largest[r] =
              exponentiate(row_of<T>(a.q, r / a.Tq, r % a.Tq), a.D, (A)0.5, queries + r * width);
      });
      worker.meet();
      scoring.drain(worker, a.B * key_blocks * parts, [&](int64_t t) {
        const int64_t part = t % parts, block = t / parts % key_blocks;
        score_block(t / parts / key_blocks, block * KEYS, a.Tq * part / parts,
                    a.Tq * (part + 1) / parts, mine);
      });
      worker.meet();
      const int64_t row_blocks = (a.Tq + QUERIES - 1) / QUERIES;
      finishing.drain(worker, a.B * row_blocks, [&](int64_t t) {
        const int64_t i = t % row_blocks * QUERIES;
        finish(t / row_blocks, i, least(QUERIES, a.Tq - i), mine);
      });
    });
  }

  A* weights_of(int64_t b, int64_t i) const { return (A*)a.weights + (b * a.Tq + i) * a.Tk; }

  // Scores of queries [i0, i1) with the keys of the block from j0 on that anyone may see.
  void score_block(int64_t b, int64_t j0, int64_t i0, int64_t i1, A* keys) const {
    const Range seen = seen_keys(a, b);
    const int64_t n = least(KEYS, seen.high - j0);
    if (n <= 0 || seen.low >= j0 + KEYS) return;
    A largest_key[KEYS / L];
    for (int64_t g = 0; g * L < n; ++g) {
      largest_key[g] = 0;
      for (int64_t j = g * L; j < least(n, g * L + L); ++j) {
        const A x = exponentiate(row_of<T>(a.k, b, j0 + j), a.D, (A)1, keys + j * width);
        largest_key[g] = x > largest_key[g] ? x : largest_key[g];
      }
    }
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t r = b * a.Tq + i;
      for (int64_t j = 0; j < n; j += L)
        with_way(way_for(largest[r], largest_key[j / L]), [&](auto way) {
          const V s = scores<decltype(way)::value>(b, i, j0 + j, n - j, keys + j * width);
          store(weights_of(b, i) + j0 + j, s, n - j);
        });
    }
  }

  // A query with up to L keys from j on, n of them.
  template <Way WAY>
  V scores(int64_t b, int64_t i, int64_t j, int64_t n, const A* keys) const {
    if constexpr (WAY == EXPONENTIALS) {
      return pairs<WAY>(queries + (b * a.Tq + i) * width, keys, width, n);
    } else {
      return pairs<WAY>(row_of<T>(a.q, b, i), row_of<T>(a.k, b, j), a.k.row, n);
    }
  }
  template <Way WAY, class X>
  V pairs(const X* q, const X* k, int64_t stride, int64_t n) const {
    const X* key[L];
    for (int l = 0; l < L; ++l) key[l] = k + least(l, n - 1) * stride;
    return sums_over<A>(a.D, [&](int l, int64_t d, int64_t left) __attribute__((always_inline)) {
      return tanh_of_sum<A, WAY>(load(q + d, left), load(key[l] + d, left)) * load(v + d, left);
    });
  }

  // Scores of n queries from i on to weights, and their context.
  void finish(int64_t b, int64_t i, int64_t n, A* rows) const {
    const Range seen = seen_keys(a, b);
    for (int64_t r = 0; r < n; ++r) {
      A* const p = rows + r * key_width;
      for (int64_t j = 0; j < key_width; j += L) store(p + j, splat((A)-__builtin_inf()));
      memcpy(p + seen.low, weights_of(b, i + r) + seen.low, sizeof(A) * (seen.high - seen.low));
      if (a.mask) {
        const bool* mask = a.mask + b * a.mask_batch + (i + r) * a.mask_query;
        for (int64_t j = seen.low; j < seen.high; ++j)
          if (!mask[j * a.mask_key]) p[j] = (A)-__builtin_inf();
      }
      soften(p);
      memcpy(weights_of(b, i + r), p, sizeof(A) * a.Tk);
    }
    weighted_sums<T>(n, seen.high - seen.low, rows + seen.low, key_width, 1,
                     row_of<T>(a.value, b, seen.low), a.value.row, a.Dv,
                     (T*)a.out + (b * a.Tq + i) * a.Dv, a.Dv);
  }

  // Softmax of a row in place; zeros where nothing takes part.
  void soften(A* p) const {
    V m = splat((A)-__builtin_inf()), total = {};
    for (int64_t j = 0; j < key_width; j += L) m = larger(m, load(p + j));
    A peak = largest_of<A>(m);
    if (peak == -__builtin_inf()) peak = 0;
    for (int64_t j = 0; j < key_width; j += L) {
      const V x = exponential((load(p + j) - peak) * exponent_unit(A()));
      total += x;
      store(p + j, x);
    }
    const A sum_of_all = sum<A>(total), factor = sum_of_all == 0 ? 0 : 1 / sum_of_all;
    for (int64_t j = 0; j < key_width; j += L) store(p + j, load(p + j) * factor);
  }
};

template <class T>
void forward(const AdditiveForwardArgs& args) {
  Forward<T>(args).run();
}

} // namespace

FASTSEQ_ENTRY(additive_forward, AdditiveForwardArgs, forward)
