// Attention backward: each thread takes a chunk of the keys of one head, and for every block of
// queries recomputes the weights once and sums all three gradients.
#include "attention_blocks.h"

namespace {

template <class T>
struct Backward {
  typedef Format<T> F;
  typedef Product<T> P;
  typedef Acc<T> A;
  typedef Vec<A> V;
  typedef QueryBlock<T> Block;
  typedef typename P::Storage Stored;
  static constexpr int L = lanes<A>, W = Shape<T>::WIDTH, WORD = Shape<T>::WORD;
  static constexpr int Q = Block::QUERIES;
  static constexpr int64_t KEYS = 64; // of a block; its scores and their gradients stay in L1

  const AttentionBackwardArgs& a;
  const int64_t words, words_v, width, width_v, row_stride;
  const bool raw_keys, raw_values;
  int64_t units, groups, group_batches, chunks, chunk_keys;
  int64_t mask_step[4]; // strides of the mask's gradient
  int64_t* first_block; // of each unit, (units + 1)

  explicit Backward(const AttentionBackwardArgs& args)
      : a(args), words(words_for<F>(a.D)), words_v(words_for<F>(a.Dv)), width(round_up_to(a.D, L)),
        width_v(round_up_to(a.Dv, L)), row_stride(round_up_to(most(a.D, a.Dv), W)),
        raw_keys(enters_raw<T>(a.k, a.D)), raw_values(enters_raw<T>(a.v, a.Dv)), units(a.B * a.Hk) {
  }

  struct Scratch {
    A *queries, *query_rows, *grads, *grad_rows; // across and along, as the products want them
    A* outs;                                     // across
    A *weights, *slopes, *pairs, *cap_slopes;    // (KEYS, Q)
    A *peak, *share, *delta, *grad_q, *grad_k, *grad_v;
    A *keys, *key_rows, *values;
    T* rows;
    void cut(Cutter& c, const Backward& f) {
      queries = c.take<A>(f.words * Q);
      query_rows = c.take<A>(Q / WORD * round_up_to(f.width, W));
      grads = c.take<A>(f.words_v * Q);
      outs = c.take<A>(f.words_v * Q);
      grad_rows = c.take<A>(Q / WORD * round_up_to(f.width_v, W));
      weights = c.take<A>(KEYS * Q);
      slopes = c.take<A>(KEYS * Q);
      pairs = c.take<A>(WORD == 1 ? 0 : KEYS / WORD * Q);
      cap_slopes = c.take<A>(f.a.softcap > 0 ? KEYS * Q : 0);
      peak = c.take<A>(Q);
      share = c.take<A>(Q);
      delta = c.take<A>(Q);
      grad_q = c.take<A>(Q * f.width);
      grad_k = c.take<A>(f.chunk_keys * f.width);
      grad_v = c.take<A>(f.chunk_keys * f.width_v);
      keys = c.take<A>(f.raw_keys ? 0 : f.chunk_keys * f.words);
      key_rows = c.take<A>(f.chunk_keys / WORD * round_up_to(f.width, W));
      values = c.take<A>(f.raw_values ? 0 : f.chunk_keys * f.words_v);
      rows = c.take<T>(Q * f.row_stride);
    }
  };

  int64_t blocks_of(const Unit& u) const { return (u.rows() + Q - 1) / Q; }

  void run() {
    Memory tables(sizeof(int64_t) * (units + 1));
    first_block = (int64_t*)tables.data();
    int64_t blocks = 0, longest = 0;
    for (int64_t i = 0; i < units; ++i) {
      const Unit u = unit_of(a, i);
      first_block[i] = blocks;
      blocks += blocks_of(u);
      longest = most(longest, u.sk);
    }
    first_block[units] = blocks;
    if (units == 0) return;

    // Units that share elements of the mask form a group, which one thread goes through in order.
    // So do their chunks of keys, where keys share an element.
    groups = units, group_batches = a.B;
    bool split = true;
    if (a.grad_mask) {
      int64_t step = 1;
      for (int d = 3; d >= 0; step *= a.mask_sizes[d--])
        mask_step[d] = a.mask_sizes[d] == 1 ? 0 : step;
      group_batches = a.mask_sizes[0] == 1 ? 1 : a.B;
      groups = group_batches * (a.mask_sizes[1] == 1 ? 1 : a.Hk);
      split = a.mask_sizes[3] > 1;
    }
    // The number of chunks depends on the shape alone, so that bits do not depend on the threads.
    chunks = split ? most(1, least((32 + groups - 1) / groups, longest / 256)) : 1;
    chunk_keys = round_up_to((longest + chunks - 1) / chunks, KEYS);

    Scratch counted;
    Cutter size(nullptr), shared(nullptr);
    counted.cut(size, *this);
    shared.take<A>(chunks > 1 ? chunks * blocks * Q * width : 0);
    Memory memory(shared.used() + size.used() * a.threads);
    A* const partials = (A*)memory.data();
    Queue work, sums;

    on_threads(a.threads, [&](const Worker& worker) {
      Scratch mine;
      Cutter own(memory.data() + shared.used() + size.used() * worker.index);
      mine.cut(own, *this);
      work.drain(worker, groups * chunks, [&](int64_t t) {
        const int64_t group = t / chunks, chunk = t % chunks, per_batch = groups / group_batches;
        for (int64_t b = 0; b < a.B; ++b)
          for (int64_t h = 0; h < a.Hk; ++h) {
            if (group_batches > 1 && b != group / per_batch) continue;
            if (per_batch > 1 && h != group % per_batch) continue;
            const int64_t i = b * a.Hk + h;
            chunk_of(unit_of(a, i), chunk * chunk_keys,
                     chunks > 1 ? partials + (chunk * blocks + first_block[i]) * Q * width
                                : nullptr,
                     mine);
          }
      });
      if (chunks == 1) return;
      worker.meet();
      sums.drain(worker, units, [&](int64_t i) {
        const Unit u = unit_of(a, i);
        for (int64_t block = 0; block < blocks_of(u); ++block) {
          Block b;
          b.set(a, u, block * Q);
          memset(mine.grad_q, 0, sizeof(A) * Q * width);
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            if (!sees(b, chunk * chunk_keys)) continue;
            const A* from = partials + (chunk * blocks + first_block[i] + block) * Q * width;
            for (int64_t c = 0; c < b.rows * width; c += L)
              store(mine.grad_q + c, load(mine.grad_q + c) + load(from + c));
          }
          write_queries(b, mine.grad_q);
        }
      });
    });
  }

  bool sees(const Block& b, int64_t first) const {
    return most(first, b.low) < least(first + chunk_keys, b.high);
  }

  // One chunk of a unit's keys, from `first` on, against all its queries.
  void chunk_of(const Unit& u, int64_t first, A* partial, Scratch& s) const {
    const int64_t n = least(chunk_keys, u.sk - first);
    if (n <= 0 && first > 0) return;
    const T* k = tokens_at<T>(a, a.k, u, u.head, u.k0 + first);
    const T* v = tokens_at<T>(a, a.v, u, u.head, u.k0 + first);
    const int64_t panel = chunk_keys / WORD * W;
    if (n > 0) {
      if (!raw_keys) pack_words<T>(k, a.k.token, n, a.D, s.keys, words);
      if (!raw_values) pack_words<T>(v, a.v.token, n, a.Dv, s.values, words_v);
      pack_panels<T>(k, a.k.token, n, a.D, s.key_rows, panel);
      memset(s.grad_k, 0, sizeof(A) * n * width);
      memset(s.grad_v, 0, sizeof(A) * n * width_v);
    }
    const Chunk c{first,
                  n,
                  raw_keys ? (const A*)k : s.keys,
                  raw_values ? (const A*)v : s.values,
                  raw_keys ? a.k.token / WORD : words,
                  raw_values ? a.v.token / WORD : words_v,
                  {s.key_rows, W, panel}};
    for (int64_t block = 0; block < blocks_of(u); ++block) {
      Block b;
      b.set(a, u, block * Q);
      A* const grad_q = partial ? partial + block * Q * width : s.grad_q;
      if (sees(b, first)) {
        memset(grad_q, 0, sizeof(A) * b.rows * width);
        load_queries(b, s);
        for (int64_t j0 = most(b.low, first); j0 < least(b.high, first + n); j0 += KEYS)
          key_block(b, c, j0, least(KEYS, least(b.high, first + n) - j0), grad_q, s);
      } else if (!partial) {
        memset(grad_q, 0, sizeof(A) * b.rows * width);
      }
      if (!partial) write_queries(b, grad_q);
    }
    for (int64_t j = 0; j < n; ++j) {
      T* grad_k = tokens_at<T>(a, a.grad_k, u, u.head, u.k0 + first + j);
      T* grad_v = tokens_at<T>(a, a.grad_v, u, u.head, u.k0 + first + j);
      for (int64_t d = 0; d < a.D; d += L)
        store(grad_k + d, load(s.grad_k + j * width + d) * (A)a.scale, a.D - d);
      for (int64_t d = 0; d < a.Dv; d += L)
        store(grad_v + d, load(s.grad_v + j * width_v + d), a.Dv - d);
    }
  }

  struct Chunk {
    int64_t first, n;
    const A *keys, *values; // words
    int64_t ld, ld_v;
    Panels<A> key_rows;
  };

  void write_queries(const Block& b, const A* grad_q) const {
    for (int64_t row = 0; row < b.rows; ++row) {
      T* to = tokens_at<T>(a, a.grad_q, b.unit, b.head[row], b.unit.q0 + b.index[row]);
      for (int64_t d = 0; d < a.D; d += L)
        store(to + d, load(grad_q + row * width + d) * (A)a.scale, a.D - d);
    }
  }

  // Packs a block's queries and gradients; what rows have in common with every key.
  void load_queries(const Block& b, Scratch& s) const {
    pack_both(b, a.q, a.D, s.rows, s.queries, s.query_rows);
    pack_both(b, a.grad_out, a.Dv, s.rows, s.grads, s.grad_rows);
    pack_rows_across(b, rows_of(a, a.out, b, a.Dv, s.rows, row_stride), a.Dv, s.outs);
    // Summed as the gradients of weights are: where one key has all the weight nothing is left.
    for (int64_t p = 0; p < b.panels; ++p)
      for (int n = 0; n < W; n += L) {
        const A *out = s.outs + p * words_v * W + n, *grad = s.grads + p * words_v * W + n;
        V dot = {};
        for (int64_t k = 0; k < words_v; ++k)
          dot = P::fma(dot, load(out + k * W), load(grad + k * W));
        store(s.delta + p * W + n, dot);
      }
    for (int64_t row = 0; row < b.panels * W; ++row) {
      s.peak[row] = (A)__builtin_inf(); // no weight where there is no query
      s.share[row] = 0;
      if (row >= b.rows) continue;
      const int64_t at = place_of(a, b, row);
      read_row(a, b.unit_of_scores, at, s.peak + row, s.share + row);
      if (a.grad_lse) s.delta[row] -= ((const A*)a.grad_lse)[at];
    }
  }
  void pack_both(const Block& b, const Tokens& x, int64_t size, T* room, A* across,
                 A* along) const {
    const Lines<T> rows = rows_of(a, x, b, size, room, row_stride);
    pack_rows_across(b, rows, size, across);
    pack_panels<T>(rows.data, rows.stride, b.panels * W, size, along, Q / WORD * W);
  }

  void key_block(const Block& b, const Chunk& c, int64_t j0, int64_t n, A* grad_q,
                 Scratch& s) const {
    constexpr int R = Shape<T>::ROWS;
    const int64_t at = j0 - c.first;
    int64_t low[Block::VECTORS], high[Block::VECTORS];
    b.local(j0, n, low, high);
    transposed_product<T>(b, low, high, n, words, c.keys + at * c.ld, c.ld, s.queries, s.weights);
    transposed_product<T>(b, low, high, n, words_v, c.values + at * c.ld_v, c.ld_v, s.grads,
                          s.slopes);
    for (int64_t v = 0; v < b.vectors; ++v) differentiate(b, j0, low[v], high[v], n, v, s);
    for (int64_t r = 0; r < n; r += R) {
      const int64_t rows = least(R, n - r);
      int64_t from = b.vectors, to = 0; // vectors that see any of these keys
      for (int64_t v = 0; v < b.vectors; ++v)
        if (low[v] < r + rows && high[v] > r) from = least(from, v), to = v + 1;
      if (from >= to) continue;
      const int64_t q = from * L / WORD;
      const int64_t K = (least(to * L, b.rows) + WORD - 1) / WORD - q;
      product<P, true>(rows, width_v, K, s.weights + r * Q + q, Q,
                       {s.grad_rows + q * W, W, Q / WORD * W}, s.grad_v + (at + r) * width_v,
                       width_v, true);
      product<P, true>(rows, width, K, s.slopes + r * Q + q, Q,
                       {s.query_rows + q * W, W, Q / WORD * W}, s.grad_k + (at + r) * width, width,
                       true);
    }
    const A* across = WORD == 2 ? s.pairs : s.slopes;
    b.same_keys(low, high, [&](int64_t row, int64_t rows, int64_t from, int64_t to) {
      const int64_t k = from / WORD, K = (to + WORD - 1) / WORD - k;
      Panels<A> keys = c.key_rows;
      keys.data += (at / WORD + k) * W;
      product<P, false>(rows, width, K, across + k * Q + row, Q, keys, grad_q + row * width, width,
                        true);
    });
  }

  // Scores to (dropped) weights, and gradients of weights to gradients of raw scores over scale,
  // in lanes of vector v, both in words. Rows that it does not see become 0.
  FASTSEQ_APART void differentiate(const Block& b, int64_t j0, int64_t from, int64_t to, int64_t n,
                                   int64_t v, Scratch& s) const {
    A *w = s.weights + v * L, *g = s.slopes + v * L;
    for (int64_t j = 0; j < n; j += WORD) {
      if (j == from) j = round_up_to(to, WORD);
      if (j < n) put(s, j, v, {}, {});
    }
    if (from == to) return;
    b.complete(s.weights, Q, j0, from, to, v, a.softcap > 0 ? s.cap_slopes : nullptr);
    const A factor = b.unit_of_scores.factor;
    const V peak = load(s.peak + v * L), share = load(s.share + v * L);
    const V delta = load(s.delta + v * L);
    const auto weight = [&](int64_t j) __attribute__((always_inline)) {
      return exponential((load(w + j * Q) - peak) * factor) * share;
    };
    if (a.dropout_p == 0 && !a.grad_mask && a.softcap == 0) {
      for (int64_t j = from; j < to; j += WORD) {
        Rows p = {}, d = {};
        for (int i = 0; i < WORD && j + i < to; ++i) {
          p.of[i] = weight(j + i);
          d.of[i] = p.of[i] * (load(g + (j + i) * Q) - delta);
        }
        put(s, j, v, p, d);
      }
      return;
    }
    const auto in_place = [&](int64_t j, V kept) {
      const V p = weight(j);
      store(w + j * Q, p * kept);
      store(g + j * Q, p * (load(g + j * Q) * kept - delta));
    };
    if (a.dropout_p > 0)
      b.dropped(j0, from, to, v, in_place);
    else
      for (int64_t j = from; j < to; ++j) in_place(j, splat((A)1));
    if (a.grad_mask) add_to_mask(b, j0, from, to, v, g);
    if (a.softcap > 0)
      for (int64_t j = from; j < to; ++j)
        store(g + j * Q, load(g + j * Q) * load(s.cap_slopes + j * Q + v * L));
    if (WORD == 1) return;
    for (int64_t j = from; j < to; j += WORD) {
      Rows p = {}, d = {};
      for (int i = 0; i < WORD && j + i < to; ++i)
        p.of[i] = load(w + (j + i) * Q), d.of[i] = load(g + (j + i) * Q);
      put(s, j, v, p, d);
    }
  }

  // Lanes of vector v of a word's rows, from row j on, as the products want them: pairs of queries
  // along a row, and of keys for the queries' gradient. In place, if vectors come in order.
  struct Rows {
    V of[WORD];
  };
  FASTSEQ_INLINE_MEMBER void put(Scratch& s, int64_t j, int64_t v, Rows weights,
                                 Rows slopes) const {
    for (int i = 0; i < WORD; ++i) {
      store((Stored*)(s.weights + (j + i) * Q) + v * L, weights.of[i]);
      store((Stored*)(s.slopes + (j + i) * Q) + v * L, slopes.of[i]);
    }
    if (WORD == 2) store(s.pairs + j / 2 * Q + v * L, word_of(slopes.of[0], slopes.of[WORD - 1]));
  }

  void add_to_mask(const Block& b, int64_t j0, int64_t from, int64_t to, int64_t v,
                   const A* g) const {
    A* at[L];
    const int64_t valid = least(L, b.rows - v * L);
    bool shared = true;
    for (int i = 0; i < L; ++i) {
      const int64_t row = v * L + i;
      at[i] = (A*)a.grad_mask + b.unit.b * mask_step[0] + b.head[row] * mask_step[1] +
              b.index[row] * mask_step[2];
      shared &= at[i] == at[0];
    }
    if (mask_step[3] == 0) {
      V total = {};
      for (int64_t j = from; j < to; ++j) total += load(g + j * Q);
      for (int i = 0; i < valid; ++i) *at[i] += total[i];
    } else if (shared) {
      for (int64_t j = from; j < to; ++j) at[0][j0 + j] += sum<A>(load(g + j * Q));
    } else {
      for (int64_t j = from; j < to; j += L) {
        V m[L];
        for (int i = 0; i < L; ++i) m[i] = j + i < to ? load(g + (j + i) * Q) : V{};
        transpose<A>(m);
        for (int i = 0; i < valid; ++i) {
          A* to_row = at[i] + j0 + j;
          store(to_row, load(to_row, to - j) + m[i], to - j);
        }
      }
    }
  }
};

template <class T>
void backward(const AttentionBackwardArgs& args) {
  Backward<T>(args).run();
}

} // namespace

FASTSEQ_ENTRY(attention_backward, AttentionBackwardArgs, backward)
