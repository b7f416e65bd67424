// Attention forward: online softmax over blocks of keys, for one block of queries at a time.
#include "attention_blocks.h"

namespace {

// What the products read of one unit's keys and values.
template <class A>
struct Prepared {
  const A* keys; // words, (sk, ld)
  int64_t ld;
  Panels<A> values;
};

template <class T>
struct Forward {
  typedef Format<T> F;
  typedef Product<T> P;
  typedef Acc<T> A;
  typedef Vec<A> V;
  typedef QueryBlock<T> Block;
  static constexpr int L = lanes<A>, W = Shape<T>::WIDTH, WORD = Shape<T>::WORD;
  static constexpr int64_t KEYS = 128; // of a block; its scores should stay in L1

  const AttentionArgs& a;
  const int64_t words, width_v, query_stride;
  const bool raw_keys; // whether keys enter products as they lie in memory
  bool raw_values;
  int64_t units, chunks;
  int64_t* first_block; // of each unit, (units + 1)
  int64_t* first_key;   // of each unit in the memory of prepared keys, (units + 1)

  explicit Forward(const AttentionArgs& args)
      : a(args), words(words_for<F>(a.D)), width_v(round_up_to(a.Dv, L)),
        query_stride(round_up_to(a.D, 2 * L)), raw_keys(enters_raw<T>(a.k, a.D)),
        units(a.B * a.Hk) {}

  struct Scratch {
    A *queries, *scores, *out, *maximum, *total, *keys, *values;
    T* rows;
    void cut(Cutter& c, const Forward& f, int64_t own_keys) {
      queries = c.take<A>(f.words * Block::QUERIES);
      scores = c.take<A>(KEYS * Block::QUERIES);
      out = c.take<A>(Block::QUERIES * f.width_v);
      maximum = c.take<A>(Block::QUERIES);
      total = c.take<A>(Block::QUERIES);
      rows = c.take<T>(Block::QUERIES * f.query_stride);
      keys = c.take<A>(f.raw_keys ? 0 : own_keys * f.words);
      values = c.take<A>(f.raw_values ? 0 : f.value_words(own_keys));
    }
  };

  int64_t value_words(int64_t keys) const {
    return (keys + WORD - 1) / WORD * round_up_to(a.Dv, W);
  }
  int64_t blocks_of(const Unit& u) const {
    return (u.rows() + Block::QUERIES - 1) / Block::QUERIES;
  }

  void run() {
    Memory tables(sizeof(int64_t) * 2 * (units + 1));
    first_block = (int64_t*)tables.data();
    first_key = first_block + units + 1;
    int64_t blocks = 0, keys = 0, longest = 0;
    for (int64_t i = 0; i < units; ++i) {
      const Unit u = unit_of(a, i);
      first_block[i] = blocks, first_key[i] = keys;
      blocks += blocks_of(u);
      keys += round_up_to(u.sk, WORD);
      longest = most(longest, u.sk);
    }
    first_block[units] = blocks, first_key[units] = keys;
    if (blocks == 0) return;
    // The number of chunks depends on the shape alone, so that bits do not depend on the threads.
    chunks = blocks < 16 ? most(1, least((32 + blocks - 1) / blocks, longest / (2 * KEYS))) : 1;
    // Packing pays where many queries share it.
    raw_values = WORD == 1 && sizeof(T) == sizeof(A) && a.Dv % L == 0 &&
                 a.Hq / (a.Hk ? a.Hk : 1) * a.max_q <= 2 * Block::QUERIES;
    const bool apart = chunks == 1 && units >= 3 * a.threads; // a unit at a time on each thread
    const int64_t own_keys = apart || a.threads == 1 ? round_up_to(longest, WORD) : 0;

    Scratch counted;
    Cutter size(nullptr);
    counted.cut(size, *this, apart ? own_keys : 0);
    const int64_t partial = Block::QUERIES * (width_v + 2);
    Cutter shared(nullptr);
    shared.take<A>(apart || raw_keys ? 0 : keys * words);
    shared.take<A>(apart || raw_values ? 0 : value_words(keys));
    shared.take<A>(chunks > 1 ? blocks * chunks * partial : 0);
    Memory memory(shared.used() + size.used() * a.threads);
    Cutter cutter(memory.data());
    A* all_keys = cutter.take<A>(apart || raw_keys ? 0 : keys * words);
    A* all_values = cutter.take<A>(apart || raw_values ? 0 : value_words(keys));
    A* partials = cutter.take<A>(chunks > 1 ? blocks * chunks * partial : 0);
    Queue packing, work, merging;

    on_threads(a.threads, [&](const Worker& worker) {
      Scratch mine;
      Cutter own(memory.data() + shared.used() + size.used() * worker.index);
      mine.cut(own, *this, apart ? own_keys : 0);
      if (apart)
        return work.drain(worker, units, [&](int64_t i) {
          const Unit u = unit_of(a, i);
          const Prepared<A> ready = prepare(u, 0, u.sk, mine.keys, mine.values);
          for (int64_t block = blocks_of(u) - 1; block >= 0; --block)
            whole_block(u, block, ready, mine);
        });
      auto place = [&](int64_t i, const Unit& u, int64_t from, int64_t to) {
        return prepare(u, from, to, all_keys + first_key[i] * words,
                       all_values + value_words(first_key[i]));
      };
      if (!raw_keys || !raw_values) {
        const int64_t parts = (longest + 255) / 256;
        packing.drain(worker, units * parts, [&](int64_t t) {
          const Unit u = unit_of(a, t / parts);
          const int64_t from = t % parts * 256;
          if (from < u.sk) place(t / parts, u, from, least(from + 256, u.sk));
        });
        worker.meet();
      }
      work.drain(worker, blocks * chunks, [&](int64_t t) {
        const int64_t block = t / chunks, chunk = t % chunks, i = unit_with(block);
        const Unit u = unit_of(a, i);
        const Prepared<A> ready = place(i, u, 0, 0);
        if (chunks == 1) return whole_block(u, block - first_block[i], ready, mine);
        Block b;
        b.set(a, u, (block - first_block[i]) * Block::QUERIES);
        const int64_t size = round_up_to((u.sk + chunks - 1) / chunks, KEYS);
        Scratch to = mine;
        to.out = partials + t * partial;
        to.maximum = to.out + Block::QUERIES * width_v;
        to.total = to.maximum + Block::QUERIES;
        attend(b, ready, chunk * size, (chunk + 1) * size, to);
      });
      if (chunks == 1) return;
      worker.meet();
      merging.drain(worker, blocks, [&](int64_t block) {
        const int64_t i = unit_with(block);
        const Unit u = unit_of(a, i);
        Block b;
        b.set(a, u, (block - first_block[i]) * Block::QUERIES);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          A* from = partials + (block * chunks + chunk) * partial;
          merge(b, from, mine, chunk == 0);
        }
        write(b, mine);
      });
    });
  }

  int64_t unit_with(int64_t block) const {
    int64_t low = 0, high = units;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_block[middle] <= block ? low : high) = middle;
    }
    return low;
  }

  // Packs keys [from, to) of a unit where they cannot be used in place.
  Prepared<A> prepare(const Unit& u, int64_t from, int64_t to, A* keys, A* values) const {
    const T* k = tokens_at<T>(a, a.k, u, u.head, u.k0);
    const T* v = tokens_at<T>(a, a.v, u, u.head, u.k0);
    Prepared<A> ready;
    if (raw_keys) {
      ready.keys = (const A*)k, ready.ld = a.k.token / WORD;
    } else {
      ready.keys = keys, ready.ld = words;
      pack_words<T>(k + from * a.k.token, a.k.token, to - from, a.D, keys + from * words, words);
    }
    if (raw_values) {
      ready.values = {(const A*)v, a.v.token, W};
    } else {
      const int64_t panel = (u.sk + WORD - 1) / WORD * W;
      ready.values = {values, W, panel};
      if (to > from)
        pack_panels<T>(v + from * a.v.token, a.v.token, to - from, a.Dv, values + from / WORD * W,
                       panel);
    }
    return ready;
  }

  void whole_block(const Unit& u, int64_t block, const Prepared<A>& ready, Scratch& mine) const {
    Block b;
    b.set(a, u, block * Block::QUERIES);
    attend(b, ready, 0, u.sk, mine);
    write(b, mine);
  }

  // Unnormalised output, maximum and total of a block over keys [from, to).
  void attend(const Block& b, const Prepared<A>& ready, int64_t from, int64_t to,
              Scratch& s) const {
    constexpr int Q = Block::QUERIES;
    for (int64_t row = 0; row < b.panels * W; ++row) {
      s.maximum[row] = (A)-__builtin_inf();
      s.total[row] = 0;
    }
    memset(s.out, 0, sizeof(A) * b.rows * width_v);
    pack_rows_across(b, rows_of(a, a.q, b, a.D, s.rows, query_stride), a.D, s.queries);
    const int64_t end = least(b.high, to);
    for (int64_t j0 = most(b.low, from); j0 < end; j0 += KEYS) {
      const int64_t n = least(KEYS, end - j0);
      int64_t low[Block::VECTORS], high[Block::VECTORS];
      b.local(j0, n, low, high);
      transposed_product<T>(b, low, high, n, words, ready.keys + j0 * ready.ld, ready.ld, s.queries,
                            s.scores);
      for (int64_t v = 0; v < b.vectors; ++v) soften(b, j0, low[v], high[v], v, s);
      b.same_keys(low, high, [&](int64_t row, int64_t rows, int64_t from, int64_t to) {
        const int64_t k = from / WORD, K = (to + WORD - 1) / WORD - k;
        Panels<A> values = ready.values;
        values.data += (j0 / WORD + k) * values.ld;
        product<P, false>(rows, width_v, K, s.scores + k * Q + row, Q, values,
                          s.out + row * width_v, width_v, true);
      });
    }
  }

  // Scores to weights for lanes of vector v, in words; what was summed so far is rescaled.
  FASTSEQ_APART void soften(const Block& b, int64_t j0, int64_t from, int64_t to, int64_t v,
                            Scratch& s) const {
    constexpr int Q = Block::QUERIES;
    if (from == to) return;
    b.complete(s.scores, Q, j0, from, to, v);
    const A factor = b.unit_of_scores.factor;
    A* x = s.scores + v * L;
    const V before = load(s.maximum + v * L);
    const V now = larger(before, largest_of(x, Q, from, to));
    const V base = now == -__builtin_inf() ? V{} : now; // no key yet: every weight becomes 0
    const V shrink = exponential((before - base) * factor);
    store(s.maximum + v * L, now);
    V total;
    if (a.dropout_p > 0) {
      total = weigh(x, Q, from, to, factor, base);
      b.dropped(j0, from, to, v,
                [&](int64_t k, V kept) { store(x + k * Q, load(x + k * Q) * kept); });
      pair_rows<T>(x, Q, from, to);
    } else {
      total = weigh_in_words<T>(x, Q, from, to, factor, base);
    }
    store(s.total + v * L, load(s.total + v * L) * shrink + total);
    for (int i = 0; i < L; ++i)
      if (shrink[i] != 1 && v * L + i < b.rows) {
        A* out = s.out + (v * L + i) * width_v;
        for (int64_t c = 0; c < width_v; c += L) store(out + c, load(out + c) * shrink[i]);
      }
  }

  void merge(const Block& b, const A* from, Scratch& s, bool first) const {
    const A *maximum = from + Block::QUERIES * width_v, *total = maximum + Block::QUERIES;
    for (int64_t row = 0; row < b.rows; ++row) {
      A* out = s.out + row * width_v;
      if (first) {
        memset(out, 0, sizeof(A) * width_v);
        s.maximum[row] = (A)-__builtin_inf(), s.total[row] = 0;
      }
      const A now = maximum[row] > s.maximum[row] ? maximum[row] : s.maximum[row];
      const A base = now == -__builtin_inf() ? 0 : now, factor = b.unit_of_scores.factor;
      const A old_part = exponential(splat((s.maximum[row] - base) * factor))[0];
      const A new_part = exponential(splat((maximum[row] - base) * factor))[0];
      for (int64_t c = 0; c < width_v; c += L)
        store(out + c, load(out + c) * old_part + load(from + row * width_v + c) * new_part);
      s.total[row] = s.total[row] * old_part + total[row] * new_part;
      s.maximum[row] = now;
    }
  }

  void write(const Block& b, const Scratch& s) const {
    A *const shares = s.total, logs[Block::QUERIES];
    for (int64_t v = 0; v < b.vectors; ++v) {
      const V total = load(s.total + v * L);
      store(logs + v * L, logarithm(total));
      // A query without keys gets zeros; NaN goes on.
      store(shares + v * L, total == 0 ? V{} : 1 / total);
    }
    for (int64_t row = 0; row < b.rows; ++row) {
      const int64_t token = b.unit.q0 + b.index[row];
      T* out = tokens_at<T>(a, a.out, b.unit, b.head[row], token);
      for (int64_t c = 0; c < a.Dv; c += L)
        store(out + c, load(s.out + row * width_v + c) * shares[row], a.Dv - c);
      write_row(a, b.unit_of_scores, place_of(a, b, row), s.maximum[row], logs[row], shares[row]);
    }
  }
};

template <class T>
void forward(const AttentionArgs& args) {
  Forward<T>(args).run();
}

} // namespace

FASTSEQ_ENTRY(attention_forward, AttentionArgs, forward)
