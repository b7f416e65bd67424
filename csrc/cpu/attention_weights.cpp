// The weights of attention from the log-sum-exp, each head's or their mean.
#include "attention_blocks.h"

namespace {

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
    A *queries, *base, *scores, *sums, *keys;
    T* rows;
    void cut(Cutter& c, const Weights& w) {
      blocks = c.take<Block>(w.heads);
      queries = c.take<A>(w.heads * w.words * Q);
      base = c.take<A>(w.heads * Q);
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
    Scratch counted;
    Cutter size(nullptr);
    counted.cut(size, *this);
    Memory memory(size.used() * a.threads);
    Queue work;
    on_threads(a.threads, [&](const Worker& worker) {
      Scratch mine;
      Cutter own(memory.data() + size.used() * worker.index);
      mine.cut(own, *this);
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
      for (int64_t row = 0; row < block.panels * W; ++row) {
        const A lse = *lse_at<A>(a, (A*)a.lse, block, least(row, block.rows - 1));
        // A query that sees no key has weights of zero, whatever is subtracted.
        s.base[h * Q + row] = lse == -__builtin_inf() ? (A)0 : lse * exponent_unit(A());
      }
    }
  }

  void block_of_keys(int64_t part, int64_t j0, int64_t n, Scratch& s) const {
    memset(s.sums, 0, sizeof(A) * KEYS * Q);
    for (int64_t h = 0; h < heads; ++h) {
      const Block& b = s.blocks[h];
      int64_t low[Block::PANELS], high[Block::PANELS], seen = 0;
      for (int64_t p = 0; p < b.panels; ++p) {
        b.local(p, j0, n, &low[p], &high[p]);
        seen += high[p] - low[p];
      }
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
      for (int64_t p = 0; p < b.panels; ++p)
        for (int64_t v = p * 2; v < p * 2 + 2; ++v)
          add(b, j0, low[p], high[p], v, s.base + h * Q, s);
    }
    write(s.blocks[0], part, j0, n, s.sums);
  }

  // Scores of lanes of vector v become weights, and join the sums.
  void add(const Block& b, int64_t j0, int64_t from, int64_t to, int64_t v, const A* bases,
           Scratch& s) const {
    if (from == to || v * L >= b.rows) return;
    const A factor = b.complete(s.scores, Q, j0, from, to, v);
    A *x = s.scores + v * L, *sums = s.sums + v * L;
    const V base = load(bases + v * L);
    if (a.dropout_p == 0) {
      for (int64_t j = from; j < to; ++j)
        store(sums + j * Q, load(sums + j * Q) + exponential(load(x + j * Q) * factor - base));
      return;
    }
    b.dropped(j0, from, to, v, [&](int64_t j, V kept) {
      const V weight = exponential(load(x + j * Q) * factor - base) * kept;
      store(sums + j * Q, load(sums + j * Q) + weight);
    });
  }

  void write(const Block& b, int64_t part, int64_t j0, int64_t n, const A* sums) const {
    const A share = a.average ? (A)1 / (A)a.Hq : (A)1;
    const int64_t parts = a.Hq / heads;
    T* const to = (T*)a.weights + ((b.unit.b * parts + part) * a.Sq + b.first) * a.Sk + j0;
    for (int64_t v = 0; v * L < b.rows; ++v)
      for (int64_t j = 0; j < n; j += L) {
        V m[L];
        for (int i = 0; i < L; ++i) m[i] = load(sums + (j + i) * Q + v * L);
        transpose<A>(m);
        for (int i = 0; i < L && v * L + i < b.rows; ++i)
          store(to + (v * L + i) * a.Sk + j, m[i] * share, n - j);
      }
  }
};

template <class T>
void weights(const AttentionWeightsArgs& args) {
  Weights<T>(args).run();
}

} // namespace

FASTSEQ_ENTRY(attention_weights, AttentionWeightsArgs, weights)
