// The fast decoder's CPU operator: checks tensors, hands raw pointers to the kernel.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "dispatch.h"
#include "tensors.h"

namespace {

using at::Tensor;
using fastseq::check;
using fastseq::DecoderArgs;
using OptionalTensor = std::optional<Tensor>;

const float* floats(const Tensor& x, const char* name, at::IntArrayRef shape) {
  check(x, name, at::kFloat, shape);
  return x.const_data_ptr<float>();
}

fastseq::Activation activation_of(const std::string& name) {
  if (name == "relu") return fastseq::RELU;
  if (name == "gelu") return fastseq::GELU;
  if (name == "gelu_tanh") return fastseq::GELU_TANH;
  TORCH_CHECK(name == "silu", "fastseq: unknown activation ", name);
  return fastseq::SILU;
}

fastseq::WeightType weights_of(const Tensor& x) {
  if (x.scalar_type() == at::kFloat) return fastseq::WEIGHTS_F32;
  if (x.scalar_type() == at::kBFloat16) return fastseq::WEIGHTS_BF16;
  TORCH_CHECK(x.scalar_type() == at::kChar, "fastseq: matrices must be float32, bfloat16 or int8, ",
              "got ", x.scalar_type());
  return fastseq::WEIGHTS_INT8;
}

// Matrices in the order of their use, each checked against the sizes that it must have.
class Matrices {
public:
  Matrices(at::TensorList words, at::TensorList biases, at::TensorList scales)
      : words_(words), biases_(biases), scales_(scales), type(weights_of(words[0])) {}

  void take(int64_t outputs, int64_t inputs) {
    const size_t i = packed.size();
    TORCH_CHECK(i < words_.size() && i < biases_.size(), "fastseq: too few matrices");
    const bool int8 = type == fastseq::WEIGHTS_INT8;
    const int64_t columns = fastseq::kernels().decoder_columns();
    const int64_t panels = (outputs + columns - 1) / columns;
    const int64_t part = int8 ? 4 : type == fastseq::WEIGHTS_BF16 ? 2 : 1;
    std::vector<int64_t> shape{panels, (inputs + part - 1) / part, columns};
    if (part > 1) shape.push_back(part);
    check(words_[i], "matrices", words_[0].scalar_type(), shape);
    const float* bias = floats(biases_[i], "biases", {panels * columns});
    const float* scales = nullptr;
    if (int8) {
      TORCH_CHECK(i < scales_.size(), "fastseq: int8 matrices need scales");
      scales = floats(scales_[i], "scales", {2, panels * columns});
    }
    packed.push_back({words_[i].const_data_ptr(), bias, scales, outputs, inputs});
  }

private:
  at::TensorList words_, biases_, scales_;

public:
  const fastseq::WeightType type;
  std::vector<fastseq::Packed> packed;
};

std::tuple<Tensor, Tensor>
decoder_step(const Tensor& given, const Tensor& cache, const Tensor& ancestors, int64_t length,
             const Tensor& words, double word_scale, const OptionalTensor& places,
             const OptionalTensor& angles, const OptionalTensor& embedding_norm,
             at::TensorList matrices, at::TensorList biases, at::TensorList scales,
             at::TensorList norms, at::TensorList memory, const OptionalTensor& spans,
             int64_t heads, int64_t ffn, std::string activation, bool norm_first, double eps,
             int64_t best) {
  const Tensor tokens = given.contiguous();
  TORCH_CHECK(tokens.dim() == 2, "fastseq: tokens must be (rows, steps), got ", tokens.sizes());
  TORCH_CHECK(words.dim() == 2, "fastseq: words must be (vocabulary, width), got ", words.sizes());
  TORCH_CHECK(cache.dim() == 5, "fastseq: cache must be (layers, 2, capacity, slots, width), got ",
              cache.sizes());
  DecoderArgs a{};
  a.R = tokens.size(0), a.t = tokens.size(1);
  a.V = words.size(0), a.d = words.size(1), a.H = heads, a.ffn = ffn;
  a.layers = cache.size(0), a.capacity = cache.size(2), a.slots = cache.size(3);
  a.length = length, a.cross = spans.has_value(), a.best = best;
  a.activation = activation_of(activation), a.norm_first = norm_first;
  a.word_scale = word_scale, a.eps = eps;
  TORCH_CHECK(a.t > 0 || a.R == 0, "fastseq: tokens must have a step or more, got none");
  TORCH_CHECK(heads > 0 && a.d > 0 && a.d % heads == 0, "fastseq: heads must divide the width ",
              a.d, ", got ", heads);
  TORCH_CHECK(best >= 0 && best <= a.V, "fastseq: best must be from 0 to ", a.V, ", got ", best);
  TORCH_CHECK(length >= 0 && length + a.t <= a.capacity, "fastseq: the cache holds ", a.capacity,
              " tokens a row, got ", length, " and ", a.t, " new ones");
  TORCH_CHECK(a.R <= a.slots, "fastseq: the cache has ", a.slots, " slots, got ", a.R, " rows");

  check(tokens, "tokens", at::kLong, {a.R, a.t});
  a.tokens = tokens.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < a.R * a.t; ++i)
    TORCH_CHECK(a.tokens[i] >= 0 && a.tokens[i] < a.V, "fastseq: tokens must be below ", a.V,
                ", got ", a.tokens[i]);
  floats(cache, "cache", {a.layers, 2, a.capacity, a.slots, a.d});
  a.cache = cache.mutable_data_ptr<float>();
  check(ancestors, "ancestors", at::kInt, {a.R, a.capacity});
  a.ancestors = ancestors.mutable_data_ptr<int32_t>();
  for (int64_t r = 0; r < a.R; ++r)
    for (int64_t i = 0; i < length; ++i) {
      const int32_t slot = a.ancestors[r * a.capacity + i];
      TORCH_CHECK(slot >= 0 && slot < a.slots, "fastseq: ancestors must be below ", a.slots);
    }
  a.words = floats(words, "words", words.sizes());
  const auto positions_of = [&](const Tensor& x, int64_t dim, const char* name) {
    const int64_t positions = x.dim() > dim ? x.size(dim) : 0;
    TORCH_CHECK(length + a.t <= positions, "fastseq: there are ", positions, " positions in ", name,
                ", got ", length + a.t, " tokens");
    return positions;
  };
  if (places) {
    const int64_t positions = positions_of(*places, 0, "places");
    a.places = floats(*places, "places", {positions, a.d});
  }
  if (angles) {
    TORCH_CHECK(a.d / heads % 2 == 0, "fastseq: angles go with heads of an even width, got ",
                a.d / heads);
    a.positions = positions_of(*angles, 1, "angles");
    a.angles = floats(*angles, "angles", {2, a.positions, a.d / heads / 2});
  }

  TORCH_CHECK(!matrices.empty(), "fastseq: too few matrices");
  Matrices all(matrices, biases, scales);
  for (int64_t layer = 0; layer < a.layers; ++layer) {
    all.take(3 * a.d, a.d);
    all.take(a.d, a.d);
    if (a.cross) all.take(a.d, a.d), all.take(a.d, a.d);
    all.take(ffn, a.d);
    all.take(a.d, ffn);
  }
  all.take(a.V, a.d);
  TORCH_CHECK(all.packed.size() == matrices.size(), "fastseq: too many matrices, got ",
              matrices.size());
  a.weights = all.type, a.matrices = all.packed.data();

  std::vector<fastseq::NormWeights> normed;
  auto norm = [&](const Tensor& x) {
    const float* weight = floats(x, "norms", {2, a.d});
    return fastseq::NormWeights{weight, weight + a.d};
  };
  const int64_t count = a.layers * (2 + a.cross) + norm_first;
  TORCH_CHECK((int64_t)norms.size() == count, "fastseq: norms must be ", count, ", got ",
              norms.size());
  for (const Tensor& x : norms) normed.push_back(norm(x));
  a.norms = normed.data();
  fastseq::NormWeights of_embedding;
  if (embedding_norm) {
    of_embedding = norm(*embedding_norm);
    a.embedding_norm = &of_embedding;
  }

  std::vector<const float*> of_layers;
  if (a.cross) {
    TORCH_CHECK((int64_t)memory.size() == a.layers, "fastseq: memory must have an entry a layer");
    const int64_t rows = a.layers && memory[0].dim() ? memory[0].size(0) : 0;
    for (const Tensor& x : memory) of_layers.push_back(floats(x, "memory", {rows, 2 * a.d}));
    check(*spans, "spans", at::kInt, {a.R, 2});
    a.memory = of_layers.data();
    a.spans = spans->const_data_ptr<int32_t>();
    for (int64_t r = 0; r < a.R; ++r) {
      const int64_t first = a.spans[2 * r], size = a.spans[2 * r + 1];
      TORCH_CHECK(first >= 0 && size > 0 && first + size <= rows, "fastseq: spans must lie within ",
                  rows, " source tokens, got ", first, " and ", size);
    }
  }
  Tensor scores = at::empty({a.R, best ? best : a.V}, words.options());
  Tensor ids = at::empty({a.R, best}, tokens.options());
  a.scores = scores.mutable_data_ptr<float>();
  a.ids = ids.mutable_data_ptr<int64_t>();
  a.threads = fastseq::usable_threads();
  fastseq::kernels().decoder(&a);
  return {scores, ids};
}

} // namespace

TORCH_LIBRARY_IMPL(fastseq, CPU, m) {
  m.impl("decoder_step", decoder_step);
}
