// What beam search does between two steps of a model: fastseq/ops/beam.py says what is what.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace {

using at::Tensor;
constexpr float NONE = -std::numeric_limits<float>::infinity();

// A group of continuations: scores, the rows that they continue, and tokens.
struct Group {
  Group(int64_t n, int64_t count, const Tensor& scores, const Tensor& ids)
      : count(count), scores(at::empty({n, count}, scores.options())),
        rows(at::empty({n, count}, ids.options())), tokens(at::empty({n, count}, ids.options())) {}

  void put(int64_t sentence, int64_t place, float score, int64_t row, int64_t token) const {
    const int64_t i = sentence * count + place;
    scores.mutable_data_ptr<float>()[i] = score;
    rows.mutable_data_ptr<int64_t>()[i] = row;
    tokens.mutable_data_ptr<int64_t>()[i] = token;
  }

  const int64_t count;
  Tensor scores, rows, tokens;
};

struct Continuation {
  float score;
  int64_t row, token;
  bool ends;
};

// A number that is none goes first, as in torch's topk.
bool better(float a, float b) {
  return a > b || (std::isnan(a) && !std::isnan(b));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
beam_step(const Tensor& scores, const Tensor& continued, const Tensor& ids, const Tensor& worst,
          const Tensor& given, const Tensor& limit, int64_t length, int64_t beam, int64_t eos_id,
          double penalty) {
  using fastseq::check;
  TORCH_CHECK(continued.dim() == 3, "fastseq: continued must be (sentences, beams, continuations)");
  const int64_t n = continued.size(0), width = continued.size(1), k = continued.size(2);
  check(scores, "scores", at::kFloat, {n, width});
  check(continued, "continued", at::kFloat, {n, width, k});
  check(ids, "ids", at::kLong, {n, width, k});
  check(worst, "worst", at::kFloat, {n});
  check(given, "given", at::kLong, {n});
  check(limit, "limit", at::kLong, {n});
  const int64_t found = beam < width * k ? std::min(2 * beam, width * k) : width * k;
  TORCH_CHECK(beam > 0 && found > width, "fastseq: beam must be positive, and leave more than the ",
              width, " beams there are, got ", beam, " and ", k, " continuations");
  const Group going(n, std::min(beam, found - width), scores, ids);
  const Group ended(n, std::min(beam, found), scores, ids);
  const Tensor attainable = at::empty({n}, scores.options());
  const Tensor event = at::empty({}, scores.options().dtype(at::kBool));

  const float* const of_beams = scores.const_data_ptr<float>();
  const float* const of_tokens = continued.const_data_ptr<float>();
  std::vector<Continuation> best(found);
  std::vector<int64_t> next(width); // of a beam's continuations
  bool happened = false;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t forced = given.const_data_ptr<int64_t>()[i];
    const bool last = length >= limit.const_data_ptr<int64_t>()[i];
    std::fill(next.begin(), next.end(), 0);
    for (Continuation& c : best) {
      c.row = -1;
      for (int64_t w = 0; w < width; ++w) {
        if (next[w] == k) continue;
        const int64_t row = i * width + w, at = row * k + next[w];
        const float score = of_beams[row] + of_tokens[at];
        if (c.row >= 0 && !better(score, c.score)) continue;
        c.score = score, c.row = row, c.token = ids.const_data_ptr<int64_t>()[at];
      }
      ++next[c.row - i * width];
      c.ends = last || (c.token == eos_id && forced < length);
    }
    const float factor = std::pow((5 + std::max<int64_t>(length - forced, 1)) / 6.0, penalty);
    int64_t place = 0;
    for (const bool end : {false, true})
      for (const Continuation& c : best)
        if (c.ends == end && place < going.count)
          going.put(i, place++, end ? NONE : c.score, c.row, c.token);
    for (int64_t j = 0; j < ended.count; ++j) {
      const Continuation& c = best[j];
      ended.put(i, j, c.ends ? c.score / factor : NONE, c.row, c.token);
      happened |= c.ends && c.score != NONE;
    }
    const float most = going.scores.const_data_ptr<float>()[i * going.count] / factor;
    const float least = worst.const_data_ptr<float>()[i];
    attainable.mutable_data_ptr<float>()[i] = most;
    happened |= most == NONE || (least > NONE && least >= most);
  }
  *event.mutable_data_ptr<bool>() = happened;
  return {going.scores, going.rows,   going.tokens, ended.scores,
          ended.rows,   ended.tokens, attainable,   event};
}

} // namespace

TORCH_LIBRARY_IMPL(fastseq, CPU, m) {
  m.impl("beam_step", beam_step);
}
