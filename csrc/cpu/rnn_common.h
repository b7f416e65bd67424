// What the forward and the backward scan share: where rows stand, zoneout, layer-norm, memory.
#pragma once

#include <type_traits>

#include "../scan_args.h"
#include "entry.h"
#include "memory.h"
#include "philox.h"
#include "product.h"
#include "team.h"
#include "vec_math.h"

namespace {

using namespace fastseq;

// One block of memory cut into aligned pieces: announce every piece, then allocate.
class Arena {
public:
  ~Arena() { free(base_); }

  template <class A>
  void piece(A** where, int64_t count, bool zeroed = true) {
    pieces_[count_++] = {(void**)where, (count * (int64_t)sizeof(A) + 127) / 64 * 64, zeroed};
    total_ += pieces_[count_ - 1].bytes;
  }
  void allocate() {
    base_ = (char*)allocate_aligned(total_);
    char* at = base_;
    for (int i = 0; i < count_; at += pieces_[i++].bytes) {
      *pieces_[i].where = at;
      if (pieces_[i].zeroed) memset(at, 0, pieces_[i].bytes);
    }
  }

private:
  struct Piece {
    void** where;
    int64_t bytes;
    bool zeroed;
  };
  Piece pieces_[24];
  int count_ = 0;
  int64_t total_ = 0;
  char* base_ = nullptr;
};

constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// Calls act with the mode as a constant; one serves both kinds of plain RNN, which differ in a
// line.
template <class Act>
static void with_mode(int mode, const Act& act) {
  switch (mode) {
  case LSTM:
    return act(std::integral_constant<int, LSTM>());
  case GRU:
    return act(std::integral_constant<int, GRU>());
  default:
    return act(std::integral_constant<int, RNN_TANH>());
  }
}

// Products run over this many rows at a time, so that operand and accumulators stay in cache.
constexpr int64_t ROW_GROUP = 48;

// The cache lines that hold n elements from p on: to read, or to write.
template <class T>
FASTSEQ_INLINE void fetch(const T* p, int64_t n) {
  for (int64_t j = 0; j < n; j += 64 / sizeof(T)) __builtin_prefetch(p + j);
  asm volatile(""); // or GCC finds callers without effect and drops the calls
}
template <class T>
FASTSEQ_INLINE void fetch_to_write(const T* p, int64_t n) {
  for (int64_t j = 0; j < n; j += 64 / sizeof(T)) __builtin_prefetch(p + j, 1);
  asm volatile("");
}
constexpr auto fetch_nothing = [](int64_t, int64_t) {};

// A row of the scan at one step.
struct Row {
  int64_t b;        // sequence
  int64_t at;       // row in packed order, times D, plus the direction
  int64_t before;   // the same of the step it continues, or -1 where it starts from h0
  uint64_t counter; // of the first random number
};

// One direction of a scan, as one thread sees it.
template <class T>
struct Direction {
  typedef Acc<T> A;
  typedef Vec<A> V;
  static constexpr int L = lanes<A>;

  const ScanArgs& args;
  const int d;
  const Worker worker;
  const int64_t T_, B, D, G, H, P;
  const int64_t first_row; // of this thread's rows in the buffers that hold one step

  Direction(const ScanArgs& a, int direction, const Worker& w)
      : args(a), d(direction), worker(w), T_(a.T), B(a.B), D(a.D), G(gates_of(a.mode)), H(a.H),
        P(a.P), first_row(w.by_rows ? w.index * ((a.B + w.count - 1) / w.count) : 0) {}

  // Time index of the i-th step in forward order; rows of that step.
  int64_t time(int64_t i) const { return d ? T_ - 1 - i : i; }
  int64_t rows(int64_t i) const { return i < 0 || i >= T_ ? 0 : args.sizes[time(i)]; }

  Row row(int64_t i, int64_t local) const {
    const int64_t t = time(i);
    Row r;
    r.b = worker.first() + local * worker.stride();
    r.at = (args.offsets[t] + r.b) * D + d;
    r.before = r.b < rows(i - 1) ? (args.offsets[time(i - 1)] + r.b) * D + d : -1;
    r.counter = (uint64_t)((t * B + r.b) * D + d) * (uint64_t)(H > P ? H : P);
    return r;
  }
  V state_before(const Row& r, const void* states, int64_t j, int64_t n) const {
    const T* from =
        r.before < 0 ? (const T*)args.h0 + (d * B + r.b) * P : (const T*)states + r.before * P;
    return load(from + j, n);
  }

  // Weight of the new state against the old one.
  V keep(const Row& r, int word, int64_t j) const {
    const double z = word ? args.zoneout_c : args.zoneout_h;
    if (!args.training) return splat((A)(1 - z));
    const double scaled = z * 4294967296.0;
    const uint32_t threshold = scaled >= 4294967295.0 ? 0xffffffffu : (uint32_t)scaled;
    uint32_t words[2][L];
    philox<L>(args.seed, r.counter + j, words[0], words[1]);
    A weights[L];
    for (int i = 0; i < L; ++i) weights[i] = words[word][i] >= threshold;
    return load(weights);
  }

  // Rows that this thread treats alone: its own, or every count-th.
  template <class Do>
  void for_own_rows(int64_t m, const Do& act) {
    const int64_t step = worker.by_rows ? 1 : worker.count;
    for (int64_t local = worker.by_rows ? 0 : worker.index; local < worker.own(m); local += step)
      act(local);
  }

  // Calls use(local row, panel, accumulators) on the product of each row by each panel of w, and
  // ahead(local row, panel) while there is still time to fetch.
  template <int NACC, class Ahead, class Use>
  void for_products(const A* x, int64_t ld, int64_t m, const A* w, int64_t k_words, int64_t count,
                    const Ahead& ahead, const Use& use) {
    alignas(64) A acc[ROW_GROUP * NACC * L];
    int64_t p = worker.by_rows ? 0 : worker.slice(count, worker.index);
    const int64_t end = worker.by_rows ? count : worker.slice(count, worker.index + 1);
    const int64_t panel_size = k_words * NACC * L;
    const bool far = m > tile_rows(NACC) && (end - p) * panel_size * sizeof(A) > 512 * 1024;
    x += first_row * ld;
    if (m == 1)
      for (; p + 1 < end; p += 2) {
        panel_pair_product<Format<T>, NACC>(x, w + p * panel_size, k_words, acc);
        use(0, p, acc);
        use(0, p + 1, acc + NACC * L);
      }
    for (; p < end; ++p)
      for (int64_t r = 0; r < m; r += ROW_GROUP) {
        const int64_t size = m - r < ROW_GROUP ? m - r : ROW_GROUP;
        panel_product<Format<T>, NACC>(x + r * ld, ld, size, w + p * panel_size, k_words, acc, far,
                                       [&](int64_t q) { ahead(r + q, p); });
        for (int64_t q = 0; q < size; ++q) use(r + q, p, acc + q * NACC * L);
      }
  }

  struct Moments {
    A mean, rstd;
  };
  // Over `parts` runs of n values, each starting `stride` after the last.
  template <class S>
  Moments moments(const S* x, int64_t parts, int64_t stride, int64_t n) const {
    V total = {};
    for (int64_t g = 0; g < parts; ++g)
      for (int64_t j = 0; j < n; j += L) total += load(x + g * stride + j, n - j);
    const A mean = sum<A>(total) / (A)(parts * n);
    V squares = {};
    for (int64_t g = 0; g < parts; ++g)
      for (int64_t j = 0; j < n; j += L) {
        const V centred = (load(x + g * stride + j, n - j) - mean) * ones_upto<A>(n - j);
        squares += centred * centred;
      }
    const A variance = sum<A>(squares) / (A)(parts * n) + (A)args.ln_eps;
    return {mean, 1 / (A)__builtin_sqrt((double)variance)};
  }
};

// Whether each thread takes rows of its own: no waiting, but every thread reads the whole weight,
// which must fit its cache, and needs enough rows for full tiles; the more, the less often.
static bool splits_rows(const ScanArgs& a, int64_t weight_bytes) {
  const int64_t threads = a.D > 1 ? (a.threads + 1) / 2 : a.threads;
  const int64_t rows = a.B / threads, most_bytes = rows >= 16 ? 1 << 20 : 1 << 18;
  return threads > 1 && weight_bytes <= most_bytes && rows >= 8;
}

// Threads that a step keeps busy for longer than they wait for each other.
static int useful_threads(const ScanArgs& a) {
  const double work = 2.0 * a.N / (a.T ? a.T : 1) * gates_of(a.mode) * a.H * a.P; // of a direction
  const double most = work / 24e3;
  if (a.D > 1 && a.threads > 1 && most < 1) return a.N * work / a.B > 1e6 ? 2 : 1;
  const double wanted = most * a.D;
  return wanted <= 1 ? 1 : wanted >= a.threads ? a.threads : (int)wanted;
}

} // namespace
