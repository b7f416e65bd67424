// Additive attention backward: gradients of the scores, a query at a time; then, a panel of columns
// at a time, tanh of every pair once, for the gradients of queries, keys and v together.
#include "additive_common.h"

namespace {

template <class T>
struct Backward {
  typedef Acc<T> A;
  typedef Vec<A> V;
  static constexpr int L = lanes<A>;
  static constexpr int64_t ROWS = 16;      // of a task of score or value gradients
  static constexpr int64_t CACHED = 49152; // elements of a panel, in all

  const AdditiveBackwardArgs& a;
  const int64_t width, panel_width;
  const int64_t panels;
  A *slopes, *grad_v; // shared: gradients of scores (B, Tq, Tk); of v, (B, width)

  // Rows are read in runs of a panel: wide, but a panel stays in the second-level cache, and there
  // are tasks for many threads.
  explicit Backward(const AdditiveBackwardArgs& args)
      : a(args), width(round_up_to(a.D, L)),
        panel_width(round_up_to(least(CACHED / (a.Tq + 2 * a.Tk + 1), a.B * a.D / 32) + 1, 2 * L)),
        panels((a.D + panel_width - 1) / panel_width) {}

  // One thread's panel, vector by vector: (panel_width / L, rows, L).
  struct Panel {
    A *queries, *keys, *grad_keys;
    void cut(Cutter& c, const AdditiveArgs& a, int64_t panel_width) {
      queries = c.take<A>(a.Tq * panel_width);
      keys = c.take<A>(a.Tk * panel_width);
      grad_keys = c.take<A>(a.Tk * panel_width);
    }
  };

  void run() {
    Panel counted_panel;
    Cutter own(nullptr), counted(nullptr);
    counted_panel.cut(own, a, panel_width);
    auto cut = [&](Cutter& c) {
      slopes = c.take<A>(a.B * a.Tq * a.Tk);
      grad_v = c.take<A>(a.B * width);
      return c.take<char>(own.used() * a.threads);
    };
    cut(counted);
    Memory memory(counted.used());
    Cutter cutter(memory.data());
    char* const all = cut(cutter);
    const int64_t query_blocks = (a.Tq + ROWS - 1) / ROWS, key_blocks = (a.Tk + ROWS - 1) / ROWS;
    Queue scores, values, columns, sums;
    on_threads(threads_for(a), [&](const Worker& worker) {
      Panel mine;
      Cutter part(all + worker.index * own.used());
      mine.cut(part, a, panel_width);
      scores.drain(worker, a.B * query_blocks, [&](int64_t t) {
        const int64_t b = t / query_blocks, first = t % query_blocks * ROWS;
        for (int64_t i = first; i < least(a.Tq, first + ROWS); ++i) differentiate_scores(b, i);
      });
      values.drain(worker, a.B * key_blocks, [&](int64_t t) {
        const int64_t b = t / key_blocks, j = t % key_blocks * ROWS;
        weighted_sums<T>(least(ROWS, a.Tk - j), a.Tq, (const A*)a.weights + b * a.Tq * a.Tk + j, 1,
                         a.Tk, row_of<T>(a.grad_out, b, 0), a.grad_out.row, a.Dv,
                         (T*)a.grad_value + (b * a.Tk + j) * a.Dv, a.Dv);
      });
      worker.meet();
      columns.drain(worker, a.B * panels,
                    [&](int64_t t) { differentiate_columns(t / panels, t % panels, mine); });
      worker.meet();
      sums.drain(worker, width / L, [&](int64_t n) {
        V total = {};
        for (int64_t b = 0; b < a.B; ++b) total += load(grad_v + b * width + n * L);
        store((T*)a.grad_v + n * L, total, a.D - n * L);
      });
    });
  }

  // ds_j = p_j (dp_j - sum of p dp), where dp_j = grad_out · value_j + grad_weights_j.
  void differentiate_scores(int64_t b, int64_t i) const {
    const Range seen = seen_keys(a, b);
    const int64_t at = (b * a.Tq + i) * a.Tk;
    const A *p = (const A*)a.weights + at, *upstream = (const A*)a.grad_weights;
    A* ds = slopes + at;
    V along = {};
    for (int64_t j = seen.low; j < seen.high; j += L) {
      const int64_t n = seen.high - j;
      V dp =
          dot_products(row_of<T>(a.grad_out, b, i), row_of<T>(a.value, b, j), a.value.row, n, a.Dv);
      if (upstream) dp += load(upstream + at + j, n);
      along += load(p + j, n) * dp;
      store(ds + j, dp, n);
    }
    const A total = sum<A>(along);
    for (int64_t j = seen.low; j < seen.high; j += L) {
      const int64_t n = seen.high - j;
      store(ds + j, load(p + j, n) * (load(ds + j, n) - total), n);
    }
  }

  // All gradients in the columns of a panel of sequence b.
  void differentiate_columns(int64_t b, int64_t panel, const Panel& s) const {
    const Range seen = seen_keys(a, b);
    const int64_t first = panel * panel_width, columns = least(panel_width, width - first);
    const A largest_q = gather(a.q, b, {0, a.Tq}, first, columns, a.Tq, s.queries);
    const A largest_k = gather(a.k, b, seen, first, columns, a.Tk, s.keys);
    const Way way = way_for(largest_q, largest_k);
    const A* ds = slopes + b * a.Tq * a.Tk;
    memset(s.grad_keys, 0, sizeof(A) * a.Tk * columns);
    for (int64_t n = 0; n < columns; n += L) {
      const int64_t d = first + n, left = a.D - d;
      const V v = load((const T*)a.v + d, left);
      A *queries = s.queries + n * a.Tq, *keys = s.keys + n * a.Tk;
      A* const grad_keys = s.grad_keys + n * a.Tk;
      T* const grad_q = (T*)a.grad_q + b * a.Tq * a.D + d;
      if (way == EXPONENTIALS) {
        exponentiate(queries, a.Tq * L, (A)0.5, queries);
        exponentiate(keys + seen.low * L, (seen.high - seen.low) * L, (A)1, keys + seen.low * L);
      }
      V of_v = {};
      with_way(way, [&](auto constant) {
        constexpr Way WAY = decltype(constant)::value;
        int64_t i = 0;
        for (; i + 4 <= a.Tq; i += 4)
          of_v += strip<WAY, 4>(queries + i * L, keys, ds + i * a.Tk, seen, v, left,
                                grad_q + i * a.D, grad_keys);
        for (; i < a.Tq; ++i)
          of_v += strip<WAY, 1>(queries + i * L, keys, ds + i * a.Tk, seen, v, left,
                                grad_q + i * a.D, grad_keys);
      });
      store(grad_v + b * width + d, of_v);
    }
    for (int64_t j = 0; j < a.Tk; ++j)
      for (int64_t n = 0; n < columns; n += L) {
        const int64_t d = first + n, left = a.D - d;
        store((T*)a.grad_k + (b * a.Tk + j) * a.D + d,
              load(s.grad_keys + n * a.Tk + j * L) * load((const T*)a.v + d, left), left);
      }
  }

  // Copies columns of some rows, vector by vector, zeros beyond the last column; returns the
  // largest magnitude.
  A gather(const Rows& x, int64_t b, Range rows, int64_t first, int64_t columns, int64_t all,
           A* to) const {
    V largest = {};
    for (int64_t i = rows.low; i < rows.high; ++i)
      for (int64_t n = 0; n < columns; n += L) {
        const V value = load(row_of<T>(x, b, i) + first + n, a.D - first - n);
        largest = larger(largest, magnitude(value));
        store(to + n * all + i * L, value);
      }
    return largest_of<A>(largest);
  }

  // N queries with the keys that are seen, in one vector of columns: writes the queries' gradients,
  // adds to the keys' (but for v), and returns v's.
  template <Way WAY, int N>
  FASTSEQ_INLINE_MEMBER V strip(const A* queries, const A* keys, const A* ds, Range seen, V v,
                                int64_t left, T* grad_q, A* grad_keys) const {
    V q[N], of_q[N] = {}, of_v = {};
    for (int r = 0; r < N; ++r) q[r] = load(queries + r * L);
    for (int64_t j = seen.low; j < seen.high; ++j) {
      const V k = load(keys + j * L);
      V of_k = load(grad_keys + j * L);
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        const V t = tanh_of_sum<A, WAY>(q[r], k);
        const V slope = (1 - t * t) * ds[r * a.Tk + j];
        of_v += t * ds[r * a.Tk + j];
        of_q[r] += slope;
        of_k += slope;
      }
      store(grad_keys + j * L, of_k);
    }
    for (int r = 0; r < N; ++r) store(grad_q + r * a.D, of_q[r] * v, left);
    return of_v;
  }
};

template <class T>
void backward(const AdditiveBackwardArgs& args) {
  Backward<T>(args).run();
}

} // namespace

FASTSEQ_ENTRY(additive_backward, AdditiveBackwardArgs, backward)
