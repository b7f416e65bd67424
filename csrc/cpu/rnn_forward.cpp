// The forward scan: at each step the recurrent product, the gates and the new state, in one pass.
#include "rnn_common.h"

namespace {

template <class T>
struct Memory {
  typedef Acc<T> A;
  A *w, *w_hr;                  // packed weights
  bool unpacked;                // w_hh is used as it stands
  A* state[2];                  // h for the product, of this step and the next, in words
  A* cell;                      // c (B, cell_stride)
  A* projected;                 // operand of the projection, in words
  A *raw, *new_cell, *out_gate; // layer-norm: the product, c' and o, until their rows are whole
};

template <class T>
struct Forward : Direction<T> {
  typedef Direction<T> Base;
  typedef Format<T> F;
  using Base::args, Base::d, Base::worker, Base::B, Base::D, Base::G, Base::H, Base::P,
      Base::first_row;
  using Base::L, Base::T_;
  using typename Base::A;
  using typename Base::V;

  const ForwardArgs& fwd;
  const Memory<T>& mem;
  const int64_t K, ldx, K_hr, ldm, unit_stride;
  const bool norm, projects;
  A *now, *next;

  Forward(const ForwardArgs& a, int direction, const Worker& w, const Memory<T>& m)
      : Base(a, direction, w), fwd(a), mem(m), K(words_for<F>(P)), ldx(padded_stride<A>(K)),
        K_hr(words_for<F>(H)), ldm(padded_stride<A>(K_hr)), unit_stride(round_up(H, 4 * L)),
        norm(a.ln_gates[0]), projects(a.w_hr[0]), now(m.state[0]), next(m.state[1]) {}

  static int64_t panels(const ScanArgs& a) {
    return a.mode == LSTM || a.mode == GRU ? (a.H + L - 1) / L : (a.H + 4 * L - 1) / (4 * L);
  }

  void run() {
    with_mode(args.mode, [&](auto mode) { run_mode<decltype(mode)::value>(); });
  }

  template <int MODE>
  void run_mode() {
    constexpr int NACC = MODE == GRU ? 3 : 4;
    if (fwd.have_products) {
      given_products<MODE>();
      return finish();
    }
    prepare<NACC>();
    for (int64_t i = 0; i < T_; ++i) {
      product<MODE, NACC>(i);
      worker.end_phase();
      if (norm) {
        normalize_rows<MODE>(i);
        worker.end_phase();
      }
      if (projects) {
        project(i);
        worker.end_phase();
      }
      A* const swap = now;
      now = next;
      next = swap;
    }
    finish();
  }

  template <int NACC>
  void prepare() {
    const int64_t count = mem.unpacked ? 0 : panels(args);
    const T* w = (const T*)args.w_hh[d];
    for (int64_t p = worker.slice(count, worker.index); p < worker.slice(count, worker.index + 1);
         ++p) {
      A* panel = mem.w + p * K * NACC * L;
      if (args.mode == LSTM || args.mode == GRU)
        pack_gated<F, NACC>(w, H, P, p, panel);
      else
        pack_linear<F, NACC>(w, H, P, p, panel);
    }
    if (projects) {
      const int64_t outputs = (P + 4 * L - 1) / (4 * L);
      for (int64_t p = worker.slice(outputs, worker.index);
           p < worker.slice(outputs, worker.index + 1); ++p)
        pack_linear<F, 4>((const T*)args.w_hr[d], P, H, p, mem.w_hr + p * K_hr * 4 * L);
    }
    // Every row's first state, in both buffers: a row that starts late finds it in either.
    this->for_own_rows(B, [&](int64_t local) {
      const int64_t b = worker.first() + local * worker.stride();
      const T* h = (const T*)args.h0 + (d * B + b) * P;
      for (int64_t j = 0; j < P; j += L) {
        const V value = load(h + j, P - j);
        put_state(now, local, b, j, value);
        put_state(next, local, b, j, value);
      }
      if (args.mode == LSTM)
        for (int64_t j = 0; j < H; j += L)
          store(mem.cell + b * unit_stride + j,
                load((const T*)args.c0 + (d * B + b) * H + j, H - j));
    });
    worker.meet();
  }

  void put_state(A* buffer, int64_t local, int64_t b, int64_t j, V h) {
    if (fwd.have_products) return; // no product follows
    if (args.h_mask) h *= load((const T*)args.h_mask + (d * B + b) * P + j, P - j);
    auto* to = (typename F::Exchange*)(buffer + (first_row + local) * ldx) + j;
    store(to, h, P - j);
  }

  template <int MODE, int NACC>
  void product(int64_t i) {
    constexpr bool gated = MODE == LSTM || MODE == GRU;
    constexpr int64_t width = gated ? L : 4 * L;
    auto ahead = [&](int64_t local, int64_t p) {
      if (p * width * sizeof(T) % 64) return; // the panel before fetched these lines
      const Row r = this->row(i, local);
      for (int g = 0; g < G && !norm; ++g)
        fetch_to_write((const T*)fwd.gates + (r.at * G + g) * H + p * width, width);
      if (!projects && !norm) fetch_to_write((const T*)fwd.output + r.at * P + p * width, width);
    };
    auto use = [&](int64_t local, int64_t p, const A* acc) {
      if (gated && !norm) {
        V u[NACC];
        for (int g = 0; g < NACC; ++g) u[g] = load(acc + g * L);
        return gates<MODE>(this->row(i, local), local, u, p * L);
      }
      const Row r = this->row(i, local);
      for (int n = 0; n < NACC; ++n) {
        V u[1] = {load(acc + n * L)};
        const int64_t unit = (p * NACC + n) * L;
        if (norm)
          store(gated ? raw(local, n) + p * L : raw(local, 0) + unit, u[0]);
        else if (unit < H)
          gates<MODE>(r, local, u, unit);
      }
    };
    const int64_t m = worker.own(this->rows(i));
    if (mem.unpacked) return unpacked_products<NACC>(m, gated, use);
    this->template for_products<NACC>(now, ldx, m, mem.w, K, panels(args), ahead, use);
  }

  // Packing the weight costs more than a few rows' products with it as it is.
  template <int NACC, class Use>
  void unpacked_products(int64_t m, bool gated, const Use& use) {
    const int64_t count = panels(args);
    for (int64_t p = worker.slice(count, worker.index); p < worker.slice(count, worker.index + 1);
         ++p) {
      auto of_columns = [&](auto&& act) {
        for (int n = 0; n < NACC; ++n) {
          const int64_t unit = gated ? p * L : (p * NACC + n) * L;
          if (unit < H) act(n, gated ? n * H + unit : unit, H - unit);
        }
      };
      if (fwd.input)
        for (int64_t b = 0; b < m; ++b)
          of_columns([&](int, int64_t first, int64_t count) {
            V x = dots<F>((const T*)fwd.input + b * fwd.I, (const T*)fwd.w_ih + first * fwd.I,
                          fwd.I, count, fwd.I);
            if (fwd.b_ih) x += load((const T*)fwd.b_ih + first, count);
            store((T*)fwd.gates + b * G * H + first, x, count);
          });
      for (int64_t local = 0; local < m; ++local) {
        A acc[NACC * L] = {};
        of_columns([&](int n, int64_t first, int64_t count) {
          store(acc + n * L, dots<F>((const typename F::Exchange*)(now + local * ldx),
                                     (const T*)args.w_hh[d] + first * P, P, count, P));
        });
        use(local, p, acc);
      }
    }
  }

  // Point-wise work alone, a row after the other.
  template <int MODE>
  void given_products() {
    constexpr int GATES = gates_of(MODE);
    this->for_own_rows(B, [&](int64_t local) {
      const Row r = this->row(0, local);
      const T *products = (const T*)fwd.products + r.b * GATES * H,
              *c0 = (const T*)args.c0 + r.b * H;
      for (int64_t j = 0; j < H; j += L) {
        V u[GATES] = {};
        for (int g = 0; g < GATES && fwd.products; ++g) u[g] = load(products + g * H + j, H - j);
        for (int g = 0; g < GATES && fwd.b_ih; ++g)
          u[g] += load((const T*)fwd.b_ih + g * H + j, H - j);
        if (MODE == LSTM) store(mem.cell + r.b * unit_stride + j, load(c0 + j, H - j));
        gates<MODE>(r, local, u, j);
      }
    });
    worker.meet();
  }

  A* raw(int64_t local, int64_t g) { return mem.raw + ((first_row + local) * G + g) * unit_stride; }

  // The step of one vector of units from the recurrent side u of its gates.
  template <int MODE>
  FASTSEQ_INLINE_MEMBER void gates(const Row& r, int64_t local, V* u, int64_t j) {
    constexpr int GATES = gates_of(MODE);
    const int64_t n = H - j;
    T* gate = (T*)fwd.gates + r.at * GATES * H + j;
    if (fwd.b_hh[d])
#pragma GCC unroll 4
      for (int g = 0; g < GATES; ++g) u[g] += load((const T*)fwd.b_hh[d] + g * H + j, n);
    V x[4];
#pragma GCC unroll 4
    for (int g = 0; g < GATES; ++g) x[g] = load(gate + g * H, n);
    if constexpr (MODE == LSTM) {
      x[0] = sigmoid(x[0] + u[0]);
      x[1] = sigmoid(x[1] + u[1]);
      x[2] = tanh(x[2] + u[2]);
      x[3] = sigmoid(x[3] + u[3]);
      A* cell = mem.cell + r.b * unit_stride + j;
      const V before = load(cell), fresh = fused(x[1], before, x[0] * x[2]);
      V kept = fresh;
      if (args.zoneout_c != 0) {
        const V keep = this->keep(r, 1, j);
        kept = fused(keep, fresh, (1 - keep) * before);
      }
      store(cell, kept);
      if (fwd.save) store((A*)fwd.cells + r.at * H + j, kept, n);
      if (args.ln_cell[d]) {
        store(mem.new_cell + (first_row + local) * unit_stride + j, fresh);
        store(mem.out_gate + (first_row + local) * unit_stride + j, x[3]);
      } else {
        lstm_state(r, local, x[3] * tanh(fresh), j);
      }
    } else if constexpr (MODE == GRU) {
      x[0] = sigmoid(x[0] + u[0]);
      x[1] = sigmoid(x[1] + u[1]);
      x[2] = tanh(fused(x[0], u[2], x[2]));
      if (fwd.save) store((T*)fwd.hn + r.at * H + j, u[2], n);
      const V before = this->state_before(r, fwd.output, j, n);
      state(r, local, fused(1 - x[1], x[2], x[1] * before), j);
    } else {
      const V y = x[0] + u[0];
      x[0] = args.mode == RNN_TANH ? tanh(y) : y < 0 ? V{} : y;
      state(r, local, x[0], j);
    }
    if (fwd.save)
#pragma GCC unroll 4
      for (int g = 0; g < GATES; ++g) store(gate + g * H, x[g], n);
  }

  void lstm_state(const Row& r, int64_t local, V m, int64_t j) {
    if (!projects) return state(r, local, m, j);
    store((typename F::Exchange*)(mem.projected + (first_row + local) * ldm) + j, round_to<T>(m),
          H - j);
  }

  // Ends the step for one vector of h.
  void state(const Row& r, int64_t local, V h, int64_t j) {
    if (args.zoneout_h != 0) {
      const V keep = this->keep(r, 0, j), before = this->state_before(r, fwd.output, j, P - j);
      h = fused(keep, h, (1 - keep) * before);
    }
    store((T*)fwd.output + r.at * P + j, h, P - j);
    put_state(next, local, r.b, j, round_to<T>(h));
  }

  template <int MODE>
  void normalize_rows(int64_t i) {
    this->for_own_rows(this->rows(i), [&](int64_t local) {
      const Row r = this->row(i, local);
      const auto whole = this->moments(raw(local, 0), G, unit_stride, H);
      const T* gamma = (const T*)args.ln_gates[d];
      for (int64_t j = 0; j < H; j += L) {
        V u[4];
        for (int g = 0; g < G; ++g)
          u[g] =
              (load(raw(local, g) + j) - whole.mean) * whole.rstd * load(gamma + g * H + j, H - j);
        gates<MODE>(r, local, u, j);
      }
      if (!args.ln_cell[d]) return;
      const A* fresh = mem.new_cell + (first_row + local) * unit_stride;
      const A* o = mem.out_gate + (first_row + local) * unit_stride;
      const T* scale = (const T*)args.ln_cell[d];
      const auto cell = this->moments(fresh, 1, 0, H);
      for (int64_t j = 0; j < H; j += L) {
        const V y = (load(fresh + j) - cell.mean) * cell.rstd * load(scale + j, H - j) +
                    load(scale + H + j, H - j);
        lstm_state(r, local, load(o + j) * tanh(y), j);
      }
    });
  }

  void project(int64_t i) {
    this->template for_products<4>(mem.projected, ldm, worker.own(this->rows(i)), mem.w_hr, K_hr,
                                   (P + 4 * L - 1) / (4 * L), fetch_nothing,
                                   [&](int64_t local, int64_t p, const A* acc) {
                                     const Row r = this->row(i, local);
                                     for (int n = 0; n < 4; ++n)
                                       if ((p * 4 + n) * L < P)
                                         state(r, local, load(acc + n * L), (p * 4 + n) * L);
                                   });
  }

  void finish() {
    this->for_own_rows(B, [&](int64_t local) {
      const int64_t b = worker.first() + local * worker.stride();
      int64_t last = -1; // the last step of forward order that has this row
      if (d == 1 && b < this->rows(T_ - 1)) last = 0;
      if (d == 0)
        for (int64_t t = T_ - 1; t >= 0 && last < 0; --t)
          if (b < args.sizes[t]) last = t;
      const T* h = last < 0 ? (const T*)args.h0 + (d * B + b) * P
                            : (const T*)fwd.output + ((args.offsets[last] + b) * D + d) * P;
      if (fwd.h_n) memcpy((T*)fwd.h_n + (d * B + b) * P, h, P * sizeof(T));
      if (args.mode == LSTM)
        for (int64_t j = 0; j < H; j += L)
          store((T*)fwd.c_n + (d * B + b) * H + j, load(mem.cell + b * unit_stride + j), H - j);
    });
  }
};

template <class T>
void forward(const ForwardArgs& given) {
  typedef Format<T> F;
  typedef Acc<T> A;
  constexpr int L = lanes<A>;
  ForwardArgs a = given;
  const int nacc = a.mode == GRU ? 3 : 4;
  const int64_t K = words_for<F>(a.P), K_hr = words_for<F>(a.H);
  const int64_t units = round_up(a.H, 4 * L), panels = Forward<T>::panels(a);
  a.threads = useful_threads(a);
  const bool by_rows = splits_rows(a, panels * K * nacc * L * sizeof(A));
  const int64_t rows = a.have_products ? 0 : a.B + a.threads; // of the product's operands
  const bool norm = a.ln_gates[0], projects = a.w_hr[0];

  Arena arena;
  Memory<T> memory[2];
  for (int d = 0; d < a.D; ++d) {
    Memory<T>& m = memory[d];
    m.unpacked = a.have_products || a.N <= UNPACKED_ROWS;
    arena.piece(&m.w, m.unpacked ? 0 : panels * K * nacc * L, false);
    arena.piece(&m.w_hr, projects ? round_up(a.P, 4 * L) * K_hr : 0, false);
    arena.piece(&m.state[0], rows * padded_stride<A>(K));
    arena.piece(&m.state[1], rows * padded_stride<A>(K));
    arena.piece(&m.cell, a.mode == LSTM ? a.B * units : 0);
    arena.piece(&m.projected, projects ? rows * padded_stride<A>(K_hr) : 0);
    arena.piece(&m.raw, norm ? rows * gates_of(a.mode) * units : 0);
    arena.piece(&m.new_cell, norm ? rows * units : 0);
    arena.piece(&m.out_gate, norm ? rows * units : 0);
  }
  arena.allocate();
  run_team(a.threads, (int)a.D, by_rows,
           [&](int d, const Worker& worker) { Forward<T>(a, d, worker, memory[d]).run(); });
}

} // namespace

FASTSEQ_ENTRY(rnn_forward, ForwardArgs, forward)
