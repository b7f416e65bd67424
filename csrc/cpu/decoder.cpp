// One step of a Transformer's decoder, from tokens to the best next words: one parallel region,
// whose threads take panels of weights, heads and rows as they come, phase after phase.
#include "decoder_attention.h"
#include "decoder_best.h"
#include "decoder_product.h"

namespace {

template <class F>
class Step {
public:
  explicit Step(const DecoderArgs& args)
      : a(args), M(a.R * a.t), D(a.d / a.H), inner(most(a.ffn, a.d)),
        panels((a.V + COLUMNS - 1) / COLUMNS), apart(a.threads > 1 && M <= 4 && a.norm_first) {}

  void run() {
    if (M == 0) return;
    Cutter size(nullptr);
    cut(size);
    Memory memory(size.used());
    Cutter cutter(memory.data());
    cut(cutter);
    for (int64_t i = 0; i < phase_count(); ++i) phases[i] = Phase();
    on_threads(a.threads, [&](const Worker& worker) { Part{*this, worker}.run(); });
  }

private:
  // One thread's way through the phases.
  struct Part {
    const Step& s;
    const Worker& worker;
    int64_t phase = 0, norm = 0, matrix = 0;
    const DecoderArgs& a = s.a;
    const Operand operand = s.operand_of(s.apart ? 1 + worker.index : 0);

    void run() {
      share(s.M, [&](int64_t row) { s.embed(row); });
      for (int64_t layer = 0; layer < a.layers; ++layer) {
        prepare_normed();
        product([&](int64_t row, int64_t column, V v, int64_t n) {
          store(s.projected + row * 3 * a.d + column, v, n);
        });
        share(a.R * a.H, [&](int64_t i) { s.attend_self(layer, i / a.H, i % a.H, room()); });
        prepare(s.attended, a.d);
        add_product();
        if (a.cross) {
          prepare_normed();
          product([&](int64_t row, int64_t column, V v, int64_t n) {
            store(s.projected + row * a.d + column, v, n);
          });
          share(s.M * a.H, [&](int64_t i) { s.attend_source(layer, i / a.H, i % a.H, room()); });
          prepare(s.attended, a.d);
          add_product();
        }
        prepare_normed();
        product([&](int64_t row, int64_t column, V v, int64_t n) {
          store(s.projected + row * a.ffn + column, activate(a.activation, v), n);
        });
        prepare(s.projected, a.ffn);
        add_product();
      }
      words();
    }

    template <class Task>
    void share(int64_t count, const Task& task) {
      s.phases[phase++].run(count, task);
    }
    float* room() const { return s.rooms + worker.index * s.room_size(); }

    // The next operand: rows x (M, n) as they are, or x itself after the next norm.
    void prepare(const float* x, int64_t n) {
      each_row([&](int64_t row) { F::put(operand, row, x + row * n, n); });
    }
    void prepare_normed() {
      const NormWeights* weights = next_norm();
      each_row([&](int64_t row) { s.norm_row(row, operand, row, weights, room()); });
    }
    // A few rows every thread prepares for itself, sooner than it would wait for another. One that
    // comes so late that they change meanwhile finds nothing left to do with them.
    template <class Task>
    void each_row(const Task& task) {
      if (!s.apart) return share(s.M, task);
      for (int64_t row = 0; row < s.M; ++row) task(row);
    }
    const NormWeights* next_norm() {
      const int64_t i = norm++ - !a.norm_first; // where norms come last, none comes at first
      return i < 0 ? nullptr : a.norms + i;
    }

    // Calls use(row, column, v, n) with the first n lanes of every vector of the next product.
    template <class Use>
    void product(const Use& use) {
      const Packed& m = a.matrices[matrix++];
      share((m.outputs + COLUMNS - 1) / COLUMNS, [&](int64_t p) {
        panel_times<F>(operand, s.M, m, p, room(), [&](int64_t row, int64_t column, V v) {
          if (column < m.outputs) use(row, column, v, m.outputs - column);
        });
      });
    }
    void add_product() {
      product([&](int64_t row, int64_t column, V v, int64_t n) {
        float* const x = s.x + row * a.d + column;
        store(x, load(x, n) + v, n);
      });
    }

    // Words of each row's last token.
    void words() {
      const NormWeights* weights = next_norm();
      const Operand shared = s.operand_of(0);
      share(a.R, [&](int64_t row) {
        s.norm_row(row * a.t + a.t - 1, shared, row, weights, room());
        s.best.clear(row);
      });
      const Packed& m = a.matrices[matrix];
      share(s.panels, [&](int64_t p) {
        const int64_t columns = least(COLUMNS, a.V - p * COLUMNS);
        float* const logits = room() + GROUP * COLUMNS;
        int64_t first = 0;
        panel_times<F>(shared, a.R, m, p, room(), [&](int64_t row, int64_t column, V v) {
          const int64_t within = column - p * COLUMNS;
          if (!a.best) {
            if (within < columns) store(a.scores + row * a.V + column, v, columns - within);
            return;
          }
          store(logits + (row - first) * COLUMNS + within, v);
          const bool last = row + 1 == a.R || row + 1 - first == GROUP;
          if (!last || within + L < COLUMNS) return;
          s.best.put(worker.index, first, row + 1 - first, p, logits, columns);
          first = row + 1;
        });
      });
      if (a.best)
        share(a.R,
              [&](int64_t row) { s.best.get(row, a.scores + row * a.best, a.ids + row * a.best); });
    }
  };

  void embed(int64_t row) const {
    const float* word = a.words + a.tokens[row] * a.d;
    const float* place = a.places ? a.places + (a.length + row % a.t) * a.d : nullptr;
    float* const out = x + row * a.d;
    for (int64_t i = 0; i < a.d; ++i)
      out[i] = word[i] * (float)a.word_scale + (place ? place[i] : 0);
    if (a.embedding_norm) normalise(out, *a.embedding_norm, a.d, a.eps, out);
    if (row % a.t == 0)
      for (int64_t i = 0; i < a.t; ++i)
        a.ancestors[row / a.t * a.capacity + a.length + i] = (int32_t)(row / a.t);
  }

  // Row `to` of an operand from row `from` of x, which is normalised in place unless norms come
  // first.
  void norm_row(int64_t from, const Operand& operand, int64_t to, const NormWeights* weights,
                float* room) const {
    float* const row = x + from * a.d;
    float* const out = a.norm_first ? room : row;
    if (weights) normalise(row, *weights, a.d, a.eps, out);
    F::put(operand, to, weights ? out : row, a.d);
  }

  // New keys and values of a head join the cache. No other head or row reads them in this step.
  void attend_self(int64_t layer, int64_t r, int64_t head, float* room) const {
    const int64_t token = a.slots * a.d, half = D / 2;
    float* const keys = a.cache + layer * 2 * a.capacity * token + head * D;
    float* const values = keys + a.capacity * token;
    const int32_t* slot = a.ancestors + r * a.capacity;
    for (int64_t i = 0; i < a.t; ++i) {
      float* const q = projected + (r * a.t + i) * 3 * a.d + head * D;
      const int64_t place = a.length + i, at = place * token + r * a.d;
      if (a.angles) {
        const float *sine = a.angles + place * half, *cosine = sine + a.positions * half;
        rotate(q, sine, cosine, half);
        rotate(q + a.d, sine, cosine, half);
      }
      memcpy(keys + at, q + a.d, sizeof(float) * D);
      memcpy(values + at, q + 2 * a.d, sizeof(float) * D);
    }
    for (int64_t i = 0; i < a.t; ++i) {
      const int64_t row = r * a.t + i;
      const auto at = [&](int64_t j) { return j * token + slot[j] * a.d; };
      attend(
          projected + row * 3 * a.d + head * D, D, a.length + i + 1, 1 / __builtin_sqrtf((float)D),
          [&](int64_t j) { return keys + at(j); }, [&](int64_t j) { return values + at(j); }, room,
          attended + row * a.d + head * D);
    }
  }

  void attend_source(int64_t layer, int64_t row, int64_t head, float* room) const {
    const int32_t* span = a.spans + row / a.t * 2;
    const float* keys = a.memory[layer] + (int64_t)span[0] * 2 * a.d + head * D;
    attend(
        projected + row * a.d + head * D, D, span[1], 1 / __builtin_sqrtf((float)D),
        [&](int64_t j) { return keys + j * 2 * a.d; },
        [&](int64_t j) { return keys + j * 2 * a.d + a.d; }, room, attended + row * a.d + head * D);
  }

  // The threads' common operand, or the own one of thread i - 1.
  Operand operand_of(int64_t i) const {
    return {operands.words + i * M * operands.stride, operands.stride, operands.scales + i * M};
  }

  int64_t phase_count() const { return a.layers * 14 + 4; }
  // A thread's own memory: sums and logits of a group of rows, a row, or the weights of keys.
  int64_t room_size() const {
    int64_t keys = a.length + a.t;
    if (a.cross)
      for (int64_t r = 0; r < a.R; ++r) keys = most(keys, a.spans[2 * r + 1]);
    return round_up_to(most(2 * GROUP * COLUMNS, most(keys, a.d) + 2 * L), 16);
  }
  void cut(Cutter& memory) {
    phases = memory.take<Phase>(phase_count());
    x = memory.take<float>(M * a.d);
    projected = memory.take<float>(M * most(3 * a.d, a.ffn));
    attended = memory.take<float>(M * a.d);
    const int64_t copies = apart ? 1 + a.threads : 1;
    operands.stride = padded_stride<float>(F::PER_WORD == 4 ? (inner + 3) / 4 : inner + 1);
    operands.words = memory.take<float>(copies * M * operands.stride);
    operands.scales = memory.take<float>(copies * M);
    rooms = memory.take<float>(a.threads * room_size());
    best.cut(memory, a.R, panels, a.best, a.threads);
  }

  const DecoderArgs& a;
  const int64_t M, D, inner, panels;
  const bool apart; // whether every thread has an operand of its own
  Phase* phases;
  float *x, *projected, *attended, *rooms;
  Operand operands;
  Best best;
};

template <class F>
void decoder(const DecoderArgs& args) {
  Step<F>(args).run();
}

} // namespace

// A set that adds instructions to another adds none for float32 and bfloat16.
#if defined(FASTSEQ_BASE)
extern "C" void FASTSEQ_NAME(fastseq_decoder_, FASTSEQ_BASE)(const fastseq::DecoderArgs*);
#endif
extern "C" void FASTSEQ_NAME(fastseq_decoder_, FASTSEQ_ISA)(const fastseq::DecoderArgs* args) {
  if (args->weights == fastseq::WEIGHTS_INT8) return decoder<Int8Format>(*args);
#if defined(FASTSEQ_BASE)
  FASTSEQ_NAME(fastseq_decoder_, FASTSEQ_BASE)(args);
#else
  if (args->weights == fastseq::WEIGHTS_BF16) return decoder<BfloatFormat>(*args);
  decoder<FloatFormat>(*args);
#endif
}

// Outputs of a panel, for whoever packs weights.
extern "C" int64_t FASTSEQ_NAME(fastseq_decoder_columns_, FASTSEQ_ISA)() {
  return COLUMNS;
}
