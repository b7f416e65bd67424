// The backward scan: from the last step to the first, the gradients of gates and states.
#include "rnn_common.h"

namespace {

template <class T>
struct Memory {
  typedef Acc<T> A;
  A *w, *w_hr;     // packed weights
  A* grad[2];      // gradient of the product W_hh h, of this step and the last one done, in words
  A *carry, *cell; // gradients of h and c that earlier steps are owed, (B, stride)
  A* projected;    // gradient of the projected h, in words
  A *inner, *raw;  // gradients of h before projection, and of the normalised product
};

template <class T>
struct Backward : Direction<T> {
  typedef Direction<T> Base;
  typedef Format<T> F;
  using Base::args, Base::d, Base::worker, Base::B, Base::D, Base::G, Base::H, Base::P;
  using Base::L, Base::T_, Base::first_row;
  using typename Base::A;
  using typename Base::V;

  const BackwardArgs& bwd;
  const Memory<T>& mem;
  const int64_t K, ldx, K_hr, ldp, h_stride, unit_stride;
  const bool norm, projects;
  A *done, *now;

  Backward(const BackwardArgs& a, int direction, const Worker& w, const Memory<T>& m)
      : Base(a, direction, w), bwd(a), mem(m), K(words_for<F>(G * H)), ldx(padded_stride<A>(K)),
        K_hr(words_for<F>(P)), ldp(padded_stride<A>(K_hr)), h_stride(round_up(P, 4 * L)),
        unit_stride(round_up(H, 4 * L)), norm(a.ln_gates[0]), projects(a.w_hr[0]), done(m.grad[0]),
        now(m.grad[1]) {}

  void run() {
    with_mode(args.mode, [&](auto mode) { run_mode<decltype(mode)::value>(); });
  }

  template <int MODE>
  void run_mode() {
    prepare();
    for (int64_t i = T_ - 1; i >= 0; --i) {
      through_product<MODE>(i);
      worker.end_phase();
      if (projects) {
        through_projection<MODE>(i);
        worker.end_phase();
      }
      if (norm) {
        whole_rows<MODE>(i);
        worker.end_phase();
      }
      A* const swap = done;
      done = now;
      now = swap;
    }
    if (!bwd.without_product) through_product<MODE>(-1);
    worker.end_phase();
    this->for_own_rows(B, [&](int64_t local) {
      const int64_t b = worker.first() + local * worker.stride();
      for (int64_t j = 0; j < P; j += L)
        store((T*)bwd.grad_h0 + (d * B + b) * P + j, load(mem.carry + b * h_stride + j), P - j);
      if (args.mode == LSTM)
        for (int64_t j = 0; j < H; j += L)
          store((T*)bwd.grad_c0 + (d * B + b) * H + j, load(mem.cell + b * unit_stride + j), H - j);
    });
  }

  void prepare() {
    const int64_t outputs = h_stride / (4 * L), units = unit_stride / (4 * L);
    for (int64_t p = worker.slice(outputs, worker.index);
         !bwd.without_product && p < worker.slice(outputs, worker.index + 1); ++p)
      pack_transposed<F, 4>((const T*)args.w_hh[d], P, G * H, p, mem.w + p * K * 4 * L);
    if (projects)
      for (int64_t p = worker.slice(units, worker.index); p < worker.slice(units, worker.index + 1);
           ++p)
        pack_transposed<F, 4>((const T*)args.w_hr[d], H, P, p, mem.w_hr + p * K_hr * 4 * L);
    this->for_own_rows(B, [&](int64_t local) {
      const int64_t b = worker.first() + local * worker.stride();
      if (bwd.grad_h_n)
        for (int64_t j = 0; j < P; j += L)
          store(mem.carry + b * h_stride + j,
                load((const T*)bwd.grad_h_n + (d * B + b) * P + j, P - j));
      if (bwd.grad_c_n)
        for (int64_t j = 0; j < H; j += L)
          store(mem.cell + b * unit_stride + j,
                load((const T*)bwd.grad_c_n + (d * B + b) * H + j, H - j));
    });
    worker.meet();
  }

  // The gradient of h at step i: what step i + 1 is owed through its product, what it carries past,
  // and the output's own. Rows that do not have step i keep it for the initial state.
  template <int MODE>
  void through_product(int64_t i) {
    const int64_t before = worker.own(this->rows(i + 1)), m = worker.own(this->rows(i));
    auto use = [&](int64_t local, int64_t p, const A* acc) {
      const int64_t b = worker.first() + local * worker.stride();
      Row r{};
      if (local < m) r = this->row(i, local);
      for (int64_t n = 0, j = p * 4 * L; n < 4 && j < P; ++n, j += L) {
        A* carry = mem.carry + b * h_stride + j;
        V dh = load(carry);
        if (acc) {
          V product = load(acc + n * L);
          if (args.h_mask) product *= load((const T*)args.h_mask + (d * B + b) * P + j, P - j);
          dh += product;
        }
        if (local >= m) {
          store(carry, dh);
          continue;
        }
        dh += load((const T*)bwd.grad_output + r.at * P + j, P - j);
        V past = {};
        if (args.zoneout_h != 0) {
          const V keep = this->keep(r, 0, j);
          past = dh * (1 - keep);
          dh = dh * keep;
        }
        if (projects) {
          store((T*)bwd.grad_proj + r.at * P + j, dh, P - j);
          store((typename F::Exchange*)(mem.projected + (first_row + local) * ldp) + j,
                round_to<T>(dh), P - j);
        } else if (norm) {
          store(mem.inner + (first_row + local) * unit_stride + j, dh);
        } else {
          past += gates<MODE>(r, local, dh, j);
        }
        store(carry, past);
      }
    };
    auto ahead = [&](int64_t local, int64_t p) {
      if (local >= m) return;
      const Row r = this->row(i, local);
      const int64_t j = p * 4 * L;
      fetch((const T*)bwd.grad_output + r.at * P + j, 4 * L);
      if (!projects && !norm) fetch_gates(r, j);
    };
    if (before)
      this->template for_products<4>(done, ldx, before, mem.w, K, h_stride / (4 * L), ahead, use);
    const int64_t panels = h_stride / (4 * L);
    for (int64_t p = worker.by_rows ? 0 : worker.slice(panels, worker.index);
         p < (worker.by_rows ? panels : worker.slice(panels, worker.index + 1)); ++p)
      for (int64_t local = before; local < m; ++local) use(local, p, nullptr);
  }

  template <int MODE>
  void through_projection(int64_t i) {
    this->template for_products<4>(
        mem.projected, ldp, worker.own(this->rows(i)), mem.w_hr, K_hr, unit_stride / (4 * L),
        [&](int64_t local, int64_t p) {
          if (!norm) fetch_gates(this->row(i, local), p * 4 * L);
        },
        [&](int64_t local, int64_t p, const A* acc) {
          const Row r = this->row(i, local);
          for (int64_t n = 0, j = p * 4 * L; n < 4 && j < H; ++n, j += L) {
            if (norm)
              store(mem.inner + (first_row + local) * unit_stride + j, load(acc + n * L));
            else
              gates<MODE>(r, local, load(acc + n * L), j);
          }
        });
  }

  void fetch_gates(const Row& r, int64_t j) const {
    for (int g = 0; g < G; ++g) {
      fetch((const T*)bwd.gates + (r.at * G + g) * H + j, 4 * L);
      fetch_to_write((const T*)bwd.grad_gx + (r.at * G + g) * H + j, 4 * L);
      if (bwd.grad_u) fetch_to_write((const T*)bwd.grad_u + (r.at * G + g) * H + j, 4 * L);
    }
    if (args.mode == LSTM)
      fetch((const A*)bwd.cells + (r.before < 0 ? r.at : r.before) * H + j, 4 * L);
    if (args.mode == GRU) fetch((const T*)bwd.hn + r.at * H + j, 4 * L);
  }

  V cell_before(const Row& r, int64_t j) const {
    if (r.before < 0) return load((const T*)args.c0 + (d * B + r.b) * H + j, H - j);
    return load((const A*)bwd.cells + r.before * H + j, H - j);
  }

  // c before zoneout.
  V new_cell(const Row& r, int64_t j, const V* gate, V before) const {
    if (args.zoneout_c != 0) return gate[1] * before + gate[0] * gate[2];
    return load((const A*)bwd.cells + r.at * H + j, H - j);
  }

  // Gradients of one vector of units' gates from that of their new h. What the previous h is owed
  // past the product is returned. With layer-norm of the cell, dh is that of o and tanh's argument.
  template <int MODE>
  FASTSEQ_INLINE_MEMBER V gates(const Row& r, int64_t local, V dh, int64_t j,
                                const V* normalized = nullptr, const V* dc_normalized = nullptr) {
    constexpr int GATES = gates_of(MODE);
    const int64_t n = H - j;
    const T* gate = (const T*)bwd.gates + r.at * GATES * H + j;
    V x[4], pre[4], past = {};
#pragma GCC unroll 4
    for (int g = 0; g < GATES; ++g) x[g] = load(gate + g * H, n);
    if constexpr (MODE == LSTM) {
      const V before = cell_before(r, j);
      const V tanh_c = tanh(normalized ? *normalized : new_cell(r, j, x, before));
      A* owed = mem.cell + r.b * unit_stride + j;
      V dc = dc_normalized ? *dc_normalized : dh * x[3] * (1 - tanh_c * tanh_c);
      V dc_past = {}, dc_kept = load(owed);
      if (args.zoneout_c != 0) {
        const V keep = this->keep(r, 1, j);
        dc_past = dc_kept * (1 - keep);
        dc_kept = dc_kept * keep;
      }
      dc += dc_kept;
      store(owed, dc_past + dc * x[1]);
      pre[0] = dc * x[2] * x[0] * (1 - x[0]);
      pre[1] = dc * before * x[1] * (1 - x[1]);
      pre[2] = dc * x[0] * (1 - x[2] * x[2]);
      pre[3] = dh * tanh_c * x[3] * (1 - x[3]);
    } else if constexpr (MODE == GRU) {
      const V before = this->state_before(r, bwd.output, j, n);
      const V dn = fused(-dh, x[1], dh) * (1 - x[2] * x[2]); // NaN for an infinite dh, as torch's
      past = dh * x[1];
      pre[0] = dn * load((const T*)bwd.hn + r.at * H + j, n) * x[0] * (1 - x[0]);
      pre[1] = dh * (before - x[2]) * x[1] * (1 - x[1]);
      pre[2] = dn;
    } else if (args.mode == RNN_TANH) {
      pre[0] = dh * (1 - x[0] * x[0]);
    } else {
      pre[0] = x[0] <= 0 ? V{} : dh; // of a NaN the gradient passes, as torch has it
    }
#pragma GCC unroll 4
    for (int g = 0; g < GATES; ++g) store((T*)bwd.grad_gx + (r.at * GATES + g) * H + j, pre[g], n);
    if (MODE == GRU) pre[2] *= x[0];
#pragma GCC unroll 4
    for (int g = 0; g < GATES; ++g) {
      if (norm) {
        store(raw(local, g) + j, pre[g] * load((const T*)args.ln_gates[d] + g * H + j, n));
        continue;
      }
      if (MODE == GRU && bwd.grad_u) store((T*)bwd.grad_u + (r.at * GATES + g) * H + j, pre[g], n);
      put_grad(local, g, j, pre[g]);
    }
    return past;
  }

  void put_grad(int64_t local, int64_t g, int64_t j, V value) {
    if (bwd.without_product) return;
    store((typename F::Exchange*)(now + (first_row + local) * ldx) + g * H + j, round_to<T>(value),
          H - j);
  }
  A* raw(int64_t local, int64_t g) { return mem.raw + ((first_row + local) * G + g) * unit_stride; }

  // Layer-norm needs sums over whole rows: first of the cell, then of the product.
  template <int MODE>
  void whole_rows(int64_t i) {
    this->for_own_rows(this->rows(i), [&](int64_t local) {
      const Row r = this->row(i, local);
      const A* dh = mem.inner + (first_row + local) * unit_stride;
      if (args.ln_cell[d]) {
        through_cell_norm(r, local, dh);
      } else {
        for (int64_t j = 0; j < H; j += L) {
          A* carry = mem.carry + r.b * h_stride + j;
          const V past = gates<MODE>(r, local, load(dh + j), j);
          if (MODE == GRU) store(carry, load(carry) + past);
        }
      }
      through_gate_norm(r, local);
    });
  }

  void through_cell_norm(const Row& r, int64_t local, const A* dh) {
    const T *scale = (const T*)args.ln_cell[d], *gate = (const T*)bwd.gates + r.at * 4 * H;
    A* fresh = raw(local, 0); // free until the gates' gradients are known
    A *normal = raw(local, 1), *grad = raw(local, 2);
    for (int64_t j = 0; j < H; j += L) {
      const V x[3] = {load(gate + j, H - j), load(gate + H + j, H - j),
                      load(gate + 2 * H + j, H - j)};
      store(fresh + j, new_cell(r, j, x, cell_before(r, j)));
    }
    const auto m = this->moments(fresh, 1, 0, H);
    V total = {}, along = {};
    for (int64_t j = 0; j < H; j += L) {
      const V x = (load(fresh + j) - m.mean) * m.rstd;
      const V gamma = load(scale + j, H - j), y = x * gamma + load(scale + H + j, H - j);
      const V tanh_c = tanh(y);
      const V dy = load(dh + j) * load(gate + 3 * H + j, H - j) * (1 - tanh_c * tanh_c);
      store((T*)bwd.grad_ln_cell + r.at * H + j, dy, H - j);
      store(normal + j, x);
      store(grad + j, dy * gamma); // γ, and so this, is 0 beyond the units
      total += dy * gamma;
      along += dy * gamma * x;
    }
    const A mean = sum<A>(total) / (A)H, slope = sum<A>(along) / (A)H;
    for (int64_t j = 0; j < H; j += L) {
      const V x = load(normal + j);
      const V y = x * load(scale + j, H - j) + load(scale + H + j, H - j);
      const V dc = (load(grad + j) - mean - x * slope) * m.rstd;
      gates<LSTM>(r, local, load(dh + j), j, &y, &dc);
    }
  }

  void through_gate_norm(const Row& r, int64_t local) {
    const T* u = (const T*)bwd.u_raw + r.at * G * H;
    const auto m = this->moments(u, 1, 0, G * H);
    V grads = {}, along = {};
    for (int g = 0; g < G; ++g)
      for (int64_t j = 0; j < H; j += L) {
        const V grad = load(raw(local, g) + j), x = (load(u + g * H + j, H - j) - m.mean) * m.rstd;
        grads += grad;
        along += grad * x;
      }
    const A offset = sum<A>(grads) / (A)(G * H), slope = sum<A>(along) / (A)(G * H);
    for (int g = 0; g < G; ++g)
      for (int64_t j = 0; j < H; j += L) {
        const V x = (load(u + g * H + j, H - j) - m.mean) * m.rstd;
        const V du = (load(raw(local, g) + j) - offset - x * slope) * m.rstd;
        store((T*)bwd.grad_u + (r.at * G + g) * H + j, du, H - j);
        put_grad(local, g, j, du);
      }
  }
};

template <class T>
void backward(const BackwardArgs& given) {
  typedef Format<T> F;
  typedef Acc<T> A;
  constexpr int L = lanes<A>;
  BackwardArgs a = given;
  const int64_t G = gates_of(a.mode), K = words_for<F>(G * a.H), K_hr = words_for<F>(a.P);
  const int64_t width = round_up(a.P, 4 * L), units = round_up(a.H, 4 * L);
  a.threads = useful_threads(a);
  const bool by_rows = splits_rows(a, width * K * sizeof(A));
  const int64_t rows = a.without_product ? 0 : a.B + a.threads; // of the product's operands
  const bool norm = a.ln_gates[0], projects = a.w_hr[0];

  Arena arena;
  Memory<T> memory[2];
  for (int d = 0; d < a.D; ++d) {
    Memory<T>& m = memory[d];
    arena.piece(&m.w, a.without_product ? 0 : width * K, false);
    arena.piece(&m.w_hr, projects ? units * K_hr : 0, false);
    arena.piece(&m.grad[0], rows * padded_stride<A>(K));
    arena.piece(&m.grad[1], rows * padded_stride<A>(K));
    arena.piece(&m.carry, a.B * width);
    arena.piece(&m.cell, a.mode == LSTM ? a.B * units : 0);
    arena.piece(&m.projected, projects ? rows * padded_stride<A>(K_hr) : 0);
    arena.piece(&m.inner, norm ? rows * units : 0);
    arena.piece(&m.raw, norm ? rows * G * units : 0);
  }
  arena.allocate();
  run_team(a.threads, (int)a.D, by_rows,
           [&](int d, const Worker& worker) { Backward<T>(a, d, worker, memory[d]).run(); });
}

} // namespace

FASTSEQ_ENTRY(rnn_backward, BackwardArgs, backward)
