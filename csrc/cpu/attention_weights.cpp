// The weights of attention, each head's or their mean: from the log-sum-exp, or, where the scores
// of a block of queries fit a cache, together with the output.
#include "attention_blocks.h"

namespace {

// Writes keys [j0, j0 + n) of a block's weights, `sums` (n, QUERIES) over the heads of a part.
template <class T>
static void write_weights(const AttentionWeightsArgs& a, const QueryBlock<T>& b, int64_t part,
                          int64_t j0, int64_t n, const Acc<T>* sums) {
  typedef Acc<T> A;
  constexpr int L = lanes<A>, Q = QueryBlock<T>::QUERIES;
  const A share = a.average ? (A)1 / (A)a.Hq : (A)1;
  const int64_t parts = a.average ? 1 : a.Hq;
  T* const to = (T*)a.weights + ((b.unit.b * parts + part) * a.Sq + b.first) * a.Sk + j0;
  for (int64_t v = 0; v * L < b.rows; ++v)
    for (int64_t j = 0; j < n; j += L) {
      Vec<A> m[L];
      for (int i = 0; i < L; ++i) m[i] = load(sums + (j + i) * Q + v * L);
      transpose<A>(m);
      for (int i = 0; i < L && v * L + i < b.rows; ++i)
        store(to + (v * L + i) * a.Sk + j, m[i] * share, n - j);
    }
}

template <class T>
struct Weights {
  typedef Acc<T> A;
  typedef Vec<A> V;
  typedef QueryBlock<T> Block;
  static constexpr int L = lanes<A>, W = Shape<T>::WIDTH, Q = Block::QUERIES;
  static constexpr int64_t KEYS = 128;       // of a block
  static constexpr int64_t CHUNK = 4 * KEYS; // of a task, whose queries are packed once

  const AttentionWeightsArgs& a;
  const int64_t words, query_stride, heads; // heads: of a task
  const bool raw_keys;                      // whether keys enter products as they lie in memory

  explicit Weights(const AttentionWeightsArgs& args)
      : a(args), words(words_for<Format<T>>(a.D)), query_stride(round_up_to(a.D, 2 * L)),
        heads(a.average ? a.Hq : 1), raw_keys(enters_raw<T>(a.k, a.D)) {}

  struct Scratch {
    Block* blocks; // of each head
    A *queries, *peak, *share, *scores, *sums, *keys;
    T* rows;
    void cut(Cutter& c, const Weights& w) {
      blocks = c.take<Block>(w.heads);
      queries = c.take<A>(w.heads * w.words * Q);
      peak = c.take<A>(w.heads * Q);
      share = c.take<A>(w.heads * Q);
      scores = c.take<A>(KEYS * Q);
      sums = c.take<A>(KEYS * Q);
      keys = c.take<A>(w.raw_keys ? 0 : KEYS * w.words);
      rows = c.take<T>(Q * w.query_stride);
    }
  };

  void run() const {
    if (a.Sk == 0) return;
    const int64_t blocks = (a.Sq + Q - 1) / Q, chunks = (a.Sk + CHUNK - 1) / CHUNK;
    const int64_t parts = heads ? a.Hq / heads : 0;
    Queue work;
    on_threads_with<Scratch>(a.threads, *this, [&](const Worker& worker, Scratch& mine) {
      work.drain(worker, a.B * parts * blocks * chunks, [&](int64_t t) {
        const int64_t chunk = t % chunks, block = t / chunks % blocks;
        const int64_t part = t / chunks / blocks % parts, b = t / chunks / blocks / parts;
        begin(b, part * heads, block * Q, mine);
        const int64_t end = least((chunk + 1) * CHUNK, a.Sk);
        for (int64_t j0 = chunk * CHUNK; j0 < end; j0 += KEYS)
          block_of_keys(part, j0, least(KEYS, end - j0), mine);
      });
    });
  }

  // The queries of each head from row `first` on, packed, and their log-sum-exps.
  void begin(int64_t b, int64_t head, int64_t first, Scratch& s) const {
    for (int64_t h = 0; h < heads; ++h) {
      Block& block = s.blocks[h];
      block.set(a, Unit{b, head + h, 1, 0, 0, a.Sq, a.Sk}, first);
      pack_rows_across(block, rows_of(a, a.q, block, a.D, s.rows, query_stride), a.D,
                       s.queries + h * Q * words);
      for (int64_t row = 0; row < block.panels * W; ++row)
        read_row(a, block.unit_of_scores, place_of(a, block, least(row, block.rows - 1)),
                 s.peak + h * Q + row, s.share + h * Q + row);
    }
  }

  void block_of_keys(int64_t part, int64_t j0, int64_t n, Scratch& s) const {
    memset(s.sums, 0, sizeof(A) * KEYS * Q);
    for (int64_t h = 0; h < heads; ++h) {
      const Block& b = s.blocks[h];
      int64_t low[Block::VECTORS], high[Block::VECTORS], seen = 0;
      b.local(j0, n, low, high);
      for (int64_t v = 0; v < b.vectors; ++v) seen += high[v] - low[v];
      if (seen == 0) continue;
      const int64_t group = a.Hq / a.Hk;
      const A* keys = s.keys;
      int64_t ld = words;
      const T* k = tokens_at<T>(a, a.k, b.unit, b.unit.head / group, j0);
      if (raw_keys)
        keys = (const A*)k, ld = a.k.token / Shape<T>::WORD;
      else
        pack_words<T>(k, a.k.token, n, a.D, s.keys, words);
      transposed_product<T>(b, low, high, n, words, keys, ld, s.queries + h * Q * words, s.scores);
      for (int64_t v = 0; v < b.vectors; ++v) add(b, j0, low[v], high[v], v, h * Q, s);
    }
    write_weights(a, s.blocks[0], part, j0, n, s.sums);
  }

  // Scores of lanes of vector v become weights, and join the sums.
  void add(const Block& b, int64_t j0, int64_t from, int64_t to, int64_t v, int64_t first,
           Scratch& s) const {
    if (from == to) return;
    b.complete(s.scores, Q, j0, from, to, v);
    A *x = s.scores + v * L, *sums = s.sums + v * L;
    const A factor = b.unit_of_scores.factor;
    const V peak = load(s.peak + first + v * L), share = load(s.share + first + v * L);
    const auto join = [&](int64_t j, V kept) {
      const V weight = exponential((load(x + j * Q) - peak) * factor) * share;
      store(sums + j * Q, load(sums + j * Q) + weight * kept);
    };
    if (a.dropout_p > 0) return b.dropped(j0, from, to, v, join);
    for (int64_t j = from; j < to; ++j) join(j, splat((A)1));
  }
};

// All keys of a block of queries at once, one head after the other.
template <class T>
struct WholeRows {
  typedef Acc<T> A;
  typedef Vec<A> V;
  typedef QueryBlock<T> Block;
  static constexpr int L = lanes<A>, W = Shape<T>::WIDTH, WORD = Shape<T>::WORD;
  static constexpr int Q = Block::QUERIES;
  static constexpr int64_t KEYS = 128; // of one product

  const AttentionWeightsArgs& a;
  const int64_t words, width_v, query_stride, heads; // heads: of a task
  const bool raw_keys, raw_values;                   // whether they enter products as they lie

  explicit WholeRows(const AttentionWeightsArgs& args)
      : a(args), words(words_for<Format<T>>(a.D)), width_v(round_up_to(a.Dv, L)),
        query_stride(round_up_to(a.D, 2 * L)), heads(a.average ? a.Hq : 1),
        raw_keys(enters_raw<T>(a.k, a.D)),
        raw_values(WORD == 1 && sizeof(T) == sizeof(A) && a.Dv % L == 0) {}

  int64_t panel() const { return (a.Sk + WORD - 1) / WORD * W; } // of values

  struct Scratch {
    A *queries, *scores, *sums, *out, *inverse, *keys, *values;
    T* rows;
    void cut(Cutter& c, const WholeRows& w) {
      const int64_t size = round_up_to(w.a.Sk, L) * Q;
      queries = c.take<A>(w.words * Q);
      scores = c.take<A>(size);
      sums = c.take<A>(size);
      out = c.take<A>(Q * w.width_v);
      inverse = c.take<A>(Q);
      keys = c.take<A>(w.raw_keys ? 0 : w.a.Sk * w.words);
      values = c.take<A>(w.raw_values ? 0 : w.panel() * ((w.a.Dv + W - 1) / W));
      rows = c.take<T>(Q * w.query_stride);
    }
  };

  void run() const {
    const int64_t blocks = (a.Sq + Q - 1) / Q, parts = heads ? a.Hq / heads : 0;
    Queue work;
    on_threads_with<Scratch>(a.threads, *this, [&](const Worker& worker, Scratch& mine) {
      work.drain(worker, a.B * parts * blocks, [&](int64_t t) {
        const int64_t part = t / blocks % parts, b = t / blocks / parts;
        memset(mine.sums, 0, sizeof(A) * a.Sk * Q);
        Block block;
        for (int64_t h = 0; h < heads; ++h) {
          block.set(a, Unit{b, part * heads + h, 1, 0, 0, a.Sq, a.Sk}, t % blocks * Q);
          one_head(block, mine);
        }
        write_weights(a, block, part, 0, a.Sk, mine.sums);
      });
    });
  }

  void one_head(const Block& b, Scratch& s) const {
    pack_rows_across(b, rows_of(a, a.q, b, a.D, s.rows, query_stride), a.D, s.queries);
    const int64_t head = b.unit.head / (a.Hq / a.Hk);
    const T* k = tokens_at<T>(a, a.k, b.unit, head, 0);
    const T* v = tokens_at<T>(a, a.v, b.unit, head, 0);
    if (!raw_keys) pack_words<T>(k, a.k.token, a.Sk, a.D, s.keys, words);
    if (!raw_values) pack_panels<T>(v, a.v.token, a.Sk, a.Dv, s.values, panel());
    const A* const keys = raw_keys ? (const A*)k : s.keys;
    const int64_t ld = raw_keys ? a.k.token / WORD : words;
    const Panels<A> values =
        raw_values ? Panels<A>{(const A*)v, a.v.token, W} : Panels<A>{s.values, W, panel()};

    int64_t low[Block::VECTORS], high[Block::VECTORS];
    for (int64_t j0 = 0; j0 < a.Sk; j0 += KEYS) {
      const int64_t n = least(KEYS, a.Sk - j0);
      b.local(j0, n, low, high);
      transposed_product<T>(b, low, high, n, words, keys + j0 * ld, ld, s.queries,
                            s.scores + j0 * Q);
    }
    b.local(0, a.Sk, low, high);
    for (int64_t v = 0; v < b.vectors; ++v) soften(b, low[v], high[v], v, s);
    memset(s.out, 0, sizeof(A) * b.rows * width_v);
    b.same_keys(low, high, [&](int64_t row, int64_t rows, int64_t from, int64_t to) {
      for (int64_t j = from; j < to; j += KEYS) {
        Panels<A> part = values;
        part.data += j / WORD * values.ld;
        product<Product<T>, false>(rows, width_v, (least(KEYS, to - j) + WORD - 1) / WORD,
                                   s.scores + j / WORD * Q + row, Q, part, s.out + row * width_v,
                                   width_v, true);
      }
    });
    for (int64_t row = 0; row < b.rows; ++row) {
      T* out = tokens_at<T>(a, a.out, b.unit, b.head[row], b.index[row]);
      for (int64_t c = 0; c < a.Dv; c += L)
        store(out + c, load(s.out + row * width_v + c) * s.inverse[row], a.Dv - c);
    }
  }

  // Scores of lanes of vector v become words of weights, and these join the sums.
  FASTSEQ_APART void soften(const Block& b, int64_t from, int64_t to, int64_t v, Scratch& s) const {
    store(s.inverse + v * L, V{});
    if (from == to) return;
    b.complete(s.scores, Q, 0, from, to, v);
    A *x = s.scores + v * L, *sums = s.sums + v * L;
    const A factor = b.unit_of_scores.factor;
    const V top = largest_of(x, Q, from, to);
    const V base = top == -__builtin_inf() ? V{} : top; // no key: every weight becomes 0
    const V total = weigh(x, Q, from, to, factor, base);
    const V inverse = total == 0 ? V{} : 1 / total;
    store(s.inverse + v * L, inverse);
    if (a.dropout_p > 0)
      b.dropped(0, from, to, v,
                [&](int64_t j, V kept) { store(x + j * Q, load(x + j * Q) * kept); });
    for (int64_t j = from; j < to; ++j)
      store(sums + j * Q, load(sums + j * Q) + load(x + j * Q) * inverse);
    pair_rows<T>(x, Q, from, to);
  }
};

template <class T>
void weights(const AttentionWeightsArgs& args) {
  if (args.out.data) return WholeRows<T>(args).run();
  Weights<T>(args).run();
}

} // namespace

FASTSEQ_ENTRY(attention_weights, AttentionWeightsArgs, weights)
