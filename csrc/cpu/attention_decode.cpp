// Attention of a few queries to many keys, bound by memory: keys and values are read once, as they
// are, for all query heads that share them. Lanes are head dimensions: queries, partial results and
// sums are kept in the order that blocks of keys and values widen to.
#include "attention_blocks.h"

namespace {

template <class T>
struct Decode {
  typedef Acc<T> A;
  typedef Vec<A> V;
  static constexpr int L = lanes<A>, N = block_vectors<T>, E = block_elements<T>;
  static constexpr int64_t CHUNK = 256; // keys of one task at most
  // Rows that will be wanted soon: they are fetched while others are worked on.
  struct Ahead {
    const T* rows;
    int64_t stride, count;
    // Starts loading n elements of each of rows [from, to).
    FASTSEQ_INLINE_MEMBER void fetch(int64_t from, int64_t to, int64_t n) const {
      for (int64_t j = from; j < least(to, count); ++j)
        for (int64_t d = 0; d < n; d += 64 / (int64_t)sizeof(T))
          __builtin_prefetch((const char*)(rows + j * stride + d), 0, 2);
      asm volatile(""); // or GCC finds callers without effect and drops the calls
    }
    Ahead from(int64_t d) const { return {rows + d, stride, count}; }
  };

  const DecodeArgs& a;
  const ScoreUnit<A> unit;
  const int64_t group, rows, width, width_v, partial;
  // Of a task. Where a token's heads lie side by side, all: then memory is read as it lies.
  const int64_t heads;
  // Keys of one task, so few that its values and the next one's keys stay in cache. The batch has
  // no part in it, so that a sequence's bits do not depend on what else is there.
  const int64_t chunk_keys;
  const int64_t run_length; // keys at a time, which stay in cache for all rows of all heads
  int64_t* first_task;      // of each sequence, (B + 1)

  explicit Decode(const DecodeArgs& args)
      : a(args), unit(score_unit<A>(args)), group(a.Hk ? a.Hq / a.Hk : 0), rows(group * a.Sq),
        width(round_up_to(a.D, E)), width_v(round_up_to(a.Dv, E)), partial(rows * (width_v + 2)),
        heads(a.k.head < a.k.token ? a.Hk : 1), chunk_keys(heads > 1 ? 64 : CHUNK),
        run_length(heads > 1 ? 16 : 64) {}

  struct Task {
    int64_t b, first_head, length, chunk, from, to; // keys [from, to): those that any row sees
  };
  // Where a task puts what it finds, head by head.
  struct Room {
    A *parts, *queries, *scores;
  };
  // A task's part for one of its heads.
  struct Head {
    const Task& t;
    const int64_t head;
    A *queries, *scores, *out, *maximum, *total; // (rows, …)
  };
  Head of_head(const Task& t, const Room& r, int64_t i) const {
    A* const out = r.parts + i * chunks(t.b) * partial;
    return {t,   t.first_head + i,     r.queries + i * rows * width, r.scores + i * rows * CHUNK,
            out, out + rows * width_v, out + rows * (width_v + 1)};
  }

  int64_t length(int64_t b) const { return a.lengths ? a.lengths[b] : a.length; }
  int64_t chunks(int64_t b) const { return most(1, (length(b) + chunk_keys - 1) / chunk_keys); }

  void run() {
    if (a.B * rows * a.Hk == 0) return;
    Memory tables(sizeof(int64_t) * (a.B + 1));
    first_task = (int64_t*)tables.data();
    first_task[0] = 0;
    for (int64_t b = 0; b < a.B; ++b) first_task[b + 1] = first_task[b] + a.Hk / heads * chunks(b);
    const int64_t tasks = first_task[a.B];
    Cutter size(nullptr), shared(nullptr);
    size.take<A>(heads * rows * (width + CHUNK));
    shared.take<A>(tasks * heads * partial);
    Memory memory(shared.used() + size.used() * a.threads);
    A* const partials = (A*)memory.data();
    Queue work, merging;
    on_threads((int)least(a.threads, tasks), [&](const Worker& worker) {
      A* const queries = (A*)(memory.data() + shared.used() + size.used() * worker.index);
      work.drain(worker, tasks, [&](int64_t index, int64_t next) {
        const Task t = task(index);
        attend(
            t, next < 0 ? Task{} : task(next),
            {partials + part(t.b, t.first_head, t.chunk), queries, queries + heads * rows * width});
      });
      worker.meet();
      merging.drain(worker, a.B * a.Hk, [&](int64_t i) {
        const int64_t b = i / a.Hk;
        for (int64_t row = 0; row < rows; ++row)
          merge(b, i % a.Hk, row, partials + part(b, i % a.Hk, 0), chunks(b));
      });
    });
  }

  Task task(int64_t index) const {
    int64_t b = 0, end = a.B;
    while (end - b > 1) (first_task[(b + end) / 2] <= index ? b : end) = (b + end) / 2;
    const int64_t within = index - first_task[b], count = chunks(b), chunk = within % count;
    Task t{b, within / count * heads, length(b), chunk, chunk * chunk_keys, 0};
    t.to = least(t.from + chunk_keys, t.length);
    int64_t from = t.to, to = t.from;
    for (int64_t i = 0; i < a.Sq; ++i) {
      int64_t low, high;
      range(t, i, &low, &high);
      if (low < high) from = least(from, low), to = most(to, high);
    }
    t.from = from, t.to = most(from, to);
    return t;
  }

  // Where the partial result of a chunk for a key head stands.
  int64_t part(int64_t b, int64_t head, int64_t chunk) const {
    return (first_task[b] * heads + head * chunks(b) + chunk) * partial;
  }

  // The keys that row i of the queries sees.
  void range(const Task& t, int64_t i, int64_t* low, int64_t* high) const {
    const int64_t own = i + (a.bottom_right ? t.length - a.Sq : 0);
    *low = a.window_left < 0 ? t.from : most(t.from, own - a.window_left);
    *high = a.window_right < 0 ? t.to : least(t.to, own + a.window_right + 1);
  }

  // Where token j of a task's first head is.
  const T* at(const Tokens& x, const Task& t, int64_t j) const {
    const T* const head = (const T*)x.data + t.first_head * x.head;
    if (!a.table) return head + t.b * x.batch + j * x.token;
    return head + a.table[t.b * a.table_width + j / a.page_size] * x.batch +
           j % a.page_size * x.token;
  }

  // Calls use(first key, count) for the keys of a task, those that lie together.
  template <class Use>
  void runs(const Task& t, const Use& use) const {
    for (int64_t j = t.from, n; j < t.to; j += n) {
      n = least(run_length, t.to - j);
      if (a.table) n = least(n, a.page_size - j % a.page_size);
      use(j, n);
    }
  }

  template <class Use>
  void row_groups(const Use& use) const {
    int64_t row = 0;
    for (; row + 4 <= rows && L >= 4; row += 4) use(row, Constant<L >= 4 ? 4 : 2>());
    for (; row + 2 <= rows; row += 2) use(row, Constant<2>());
    if (row < rows) use(row, Constant<1>());
  }
  template <int N>
  struct Constant {
    static constexpr int value = N;
  };

  // Memory is busy all the time: values are fetched while keys are worked on, and the next task's
  // keys while values are.
  void attend(const Task& t, const Task& next, const Room& room) const {
    for (int64_t i = 0; i < heads; ++i) load_queries(of_head(t, room, i));
    runs(t, [&](int64_t j, int64_t n) {
      const T *const k = at(a.k, t, j), *const v = at(a.v, t, j);
      for (int64_t i = 0; i < heads; ++i) {
        const Head h = of_head(t, room, i);
        row_groups([&](int64_t row, auto size) {
          score<decltype(size)::value>(h.queries + row * width, k + i * a.k.head, a.k.token, n,
                                       h.scores + row * CHUNK + j - t.from,
                                       {v + i * a.v.head, a.v.token, row == 0 ? n : 0});
        });
      }
    });
    for (int64_t i = 0; i < heads; ++i) {
      const Head h = of_head(t, room, i);
      for (int64_t row = 0; row < rows; ++row) soften(h, row, h.scores + row * CHUNK);
    }
    runs(t, [&](int64_t j, int64_t n) {
      const T* const v = at(a.v, t, j);
      const int64_t there = next.from + j - t.from, left = most(next.to - there, 0);
      const T* const k = left ? at(a.k, next, there) : nullptr;
      for (int64_t i = 0; i < heads; ++i) {
        const Head h = of_head(t, room, i);
        row_groups([&](int64_t row, auto size) {
          sum_values<decltype(size)::value>(h.scores + row * CHUNK + j - t.from, v + i * a.v.head,
                                            a.v.token, n, h.out + row * width_v,
                                            {k + i * a.k.head, a.k.token, row == 0 ? left : 0});
        });
      }
    });
  }

  void load_queries(const Head& at) const {
    memset(at.out, 0, sizeof(A) * rows * width_v);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t h = at.head * group + row / a.Sq, i = row % a.Sq;
      const T* q = (const T*)a.q.data + at.t.b * a.q.batch + h * a.q.head + i * a.q.token;
      for (int64_t d = 0; d < a.D; d += E) {
        V x[N];
        load_block(q + d, a.D - d, x);
        for (int n = 0; n < N; ++n) store(at.queries + row * width + d + n * L, x[n]);
      }
    }
  }

  // scores (ROWS, CHUNK) of n keys, L sums at once.
  template <int ROWS>
  void score(const A* q, const T* k, int64_t stride, int64_t n, A* scores, Ahead ahead) const {
    constexpr int KEYS = L / ROWS;
    const int64_t whole = a.D / E * E;
    for (int64_t j = 0; j < n; j += KEYS) {
      V sums[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) sums[i] = V{}; // an initialiser would be a call to memory
      const T* const first = k + j * stride;
      // Of keys past the last, whose scores nobody takes, the last is read.
      const int64_t last = (n - j - 1) * stride;
      ahead.fetch(j, j + KEYS, a.Dv);
      auto step = [&](int64_t d, int64_t left) __attribute__((always_inline)) {
        V query[ROWS][N];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
          for (int m = 0; m < N; ++m) query[r][m] = load(q + r * width + d + m * L);
#pragma GCC unroll 16
        for (int i = 0; i < KEYS; ++i) {
          V x[N];
          const T* const key = first + least(i * stride, last) + d;
          left >= E ? load_block(key, x) : load_block(key, left, x);
#pragma GCC unroll 4
          for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int m = 0; m < N; ++m) sums[r * KEYS + i] += x[m] * query[r][m];
        }
      };
      for (int64_t d = 0; d < whole; d += E) step(d, E);
      if (whole < a.D) step(whole, a.D - whole);
      A totals[L];
      store(totals, sum_lanes<A>(sums));
      const int64_t count = least(KEYS, n - j);
      for (int r = 0; r < ROWS; ++r)
        if (count == KEYS)
          memcpy(scores + r * CHUNK + j, totals + r * KEYS, sizeof(A) * KEYS);
        else
          memcpy(scores + r * CHUNK + j, totals + r * KEYS, sizeof(A) * count);
    }
  }

  // Scores of one row to weights; its maximum and total.
  void soften(const Head& at, int64_t row, A* s) const {
    const Task& t = at.t;
    const int64_t from = t.from, n = t.to - from;
    const int64_t h = at.head * group + row / a.Sq, i = row % a.Sq;
    const A none = (A)-__builtin_inf();
    if (!unit.raw) finish(t, h, i, n, s);
    int64_t low, high;
    range(t, i, &low, &high);
    for (int64_t j = 0; j < round_up_to(n, L); ++j) {
      if (j == low - from && low < high) j = high - from;
      if (j < round_up_to(n, L)) s[j] = none;
    }
    V m = splat(none);
    for (int64_t j = 0; j < n; j += L) m = larger(m, load(s + j));
    A maximum = none;
    for (int l = 0; l < L; ++l) maximum = m[l] > maximum ? m[l] : maximum;
    const A base = maximum == none ? 0 : maximum;
    V total = {};
    for (int64_t j = 0; j < n; j += L) {
      const V weight = exponential((load(s + j) - base) * unit.factor);
      total += weight;
      store(s + j, weight);
    }
    at.maximum[row] = maximum;
    at.total[row] = sum<A>(total);
  }

  // The raw scores s of n keys with what is added, in exponent units.
  void finish(const Task& t, int64_t h, int64_t i, int64_t n, A* s) const {
    const A scale = (A)a.scale, cap = (A)a.softcap;
    A distances[L]; // of the first keys from the row's own
    for (int l = 0; l < L; ++l) distances[l] = (A)(t.from + l - (i + t.length - a.Sq));
    for (int64_t j = n; j < round_up_to(n, L); ++j) s[j] = 0;
    for (int64_t j = 0; j < n; j += L) {
      V x = load(s + j) * scale;
      if (cap > 0) x = cap * tanh(x / cap);
      if (a.alibi) {
        const V distance = load(distances) + (A)j;
        x -= (A)a.alibi[t.b * a.alibi_batch + h] * (distance < 0 ? -distance : distance);
      }
      store(s + j, x * exponent_unit(A()));
    }
    if (a.mask.type != MASK_NONE)
      add_mask<A>(a.mask,
                  t.b * a.mask.batch + h * a.mask.head + i * a.mask.query + t.from * a.mask.key, n,
                  s);
  }

  // out (ROWS, width_v) += weights (ROWS, CHUNK) of n keys by their values.
  template <int ROWS>
  void sum_values(const A* weights, const T* v, int64_t stride, int64_t n, A* out,
                  Ahead ahead) const {
    int64_t d = 0;
    d = sum_blocks<ROWS, 8 / ROWS / N>(weights, v, stride, n, d, out, ahead);
    d = sum_blocks<ROWS, 4 / ROWS / N>(weights, v, stride, n, d, out, ahead);
    d = sum_blocks<ROWS, 1>(weights, v, stride, n, d, out, ahead);
    if (d < a.Dv) sum_part<ROWS, 1>(weights, v + d, stride, n, a.Dv - d, out + d, ahead.from(d));
  }
  // As many blocks as fit, COLUMNS at a time, from d on. Returns where it ended.
  template <int ROWS, int COLUMNS>
  int64_t sum_blocks(const A* weights, const T* v, int64_t stride, int64_t n, int64_t d, A* out,
                     Ahead ahead) const {
    if constexpr (COLUMNS > 0)
      for (; d + COLUMNS * E <= a.Dv; d += COLUMNS * E)
        sum_part<ROWS, COLUMNS>(weights, v + d, stride, n, COLUMNS * E, out + d, ahead.from(d));
    return d;
  }
  template <int ROWS, int COLUMNS>
  void sum_part(const A* weights, const T* v, int64_t stride, int64_t n, int64_t left, A* out,
                Ahead ahead) const {
    V sums[ROWS][COLUMNS * N];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS * N; ++c) sums[r][c] = load(out + r * width_v + c * L);
    for (int64_t j = 0; j < n; ++j) {
      ahead.fetch(j, j + 1, COLUMNS * E);
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; ++c) {
        V x[N];
        const T* const value = v + j * stride + c * E;
        COLUMNS > 1 ? load_block(value, x) : load_block(value, left, x);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
          for (int m = 0; m < N; ++m) sums[r][c * N + m] += x[m] * weights[r * CHUNK + j];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS * N; ++c) store(out + r * width_v + c * L, sums[r][c]);
  }

  // One row of the result, from the chunks in order. The first chunk's part is the sum's place.
  void merge(int64_t b, int64_t head, int64_t row, A* parts, int64_t count) const {
    A* const first = parts + row * width_v;
    auto maximum_of = [&](int64_t chunk) { return parts[chunk * partial + rows * width_v + row]; };
    A maximum = -(A)__builtin_inf(), total = 0;
    for (int64_t chunk = 0; chunk < count; ++chunk)
      maximum = maximum_of(chunk) > maximum ? maximum_of(chunk) : maximum;
    const A base = maximum == -__builtin_inf() ? 0 : maximum; // of NaN alone, or of no key
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      const A factor = exponential(splat((maximum_of(chunk) - base) * unit.factor))[0];
      const A* part = parts + chunk * partial;
      total += part[rows * width_v + rows + row] * factor;
      for (int64_t d = 0; d < width_v; d += L) {
        const V x = load(part + row * width_v + d) * factor;
        store(first + d, chunk == 0 ? x : load(first + d) + x);
      }
    }
    const int64_t h = head * group + row / a.Sq, i = row % a.Sq;
    const A share = total == 0 ? 0 : 1 / total;
    T* out = (T*)a.out.data + b * a.out.batch + h * a.out.head + i * a.out.token;
    for (int64_t d = 0; d < a.Dv; d += E) {
      V x[N];
      for (int n = 0; n < N; ++n) x[n] = total == 0 ? V{} : load(first + d + n * L) * share;
      store_block(out + d, a.Dv - d, x);
    }
    write_row(a, unit, (b * a.Hq + h) * a.Sq + i, maximum, (A)__builtin_log((double)total), share);
  }
};

template <class T>
void decode(const DecodeArgs& args) {
  Decode<T>(args).run();
}

} // namespace

FASTSEQ_ENTRY(attention_decode, DecodeArgs, decode)
