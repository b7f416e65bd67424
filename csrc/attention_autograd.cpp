// The gradient of attention on the CPU where nobody traces: fastseq/ops/attention.py has the same
// in Python, which takes as long as attention over a short sequence.
#include <ATen/ops/zeros_like.h>

#include <optional>
#include <tuple>

#include "autograd.h"

namespace {

using at::Tensor;
using c10::SymInt;
using fastseq::if_defined;
using fastseq::operator_named;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

struct Options {
  double scale;
  int64_t window_left, window_right;
  bool bottom_right;
  double softcap, dropout_p;
  SymInt max_seqlen_q, max_seqlen_k;
};

// mask, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed
constexpr int TENSORS = 5;

using Results = std::tuple<Tensor, Tensor, Tensor>; // out, lse, norm
using Forward = Results(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                        const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                        const OptionalTensor&, double, int64_t, int64_t, bool, double, double,
                        SymInt, SymInt);
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&,
    const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    double, int64_t, int64_t, bool, double, double, SymInt, SymInt, bool);

Results forward_of(const Tensor& q, const Tensor& k, const Tensor& v,
                   const OptionalTensor (&context)[TENSORS], const Options& o) {
  static const auto op = operator_named<Forward>("fastseq::attention_forward");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(q, k, v, context[0], context[1], context[2], context[3], context[4], o.scale,
                 o.window_left, o.window_right, o.bottom_right, o.softcap, o.dropout_p,
                 o.max_seqlen_q, o.max_seqlen_k);
}

struct AttentionForward : torch::autograd::Function<AttentionForward> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                               const Tensor& v, const OptionalTensor& mask,
                               const OptionalTensor (&context)[TENSORS], const Options& options) {
    auto [out, lse, norm] = forward_of(q, k, v, context, options);
    variable_list saved{q, k, v, out, lse, norm};
    for (const OptionalTensor& x : context) saved.push_back(x.value_or(Tensor()));
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    ctx->saved_data["options"] = c10::ivalue::Tuple::create(
        {options.scale, options.window_left, options.window_right, options.bottom_right,
         options.softcap, options.dropout_p, options.max_seqlen_q, options.max_seqlen_k});
    ctx->mark_non_differentiable({norm});
    return {out, lse, norm};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = operator_named<Backward>("fastseq::attention_backward");
    const variable_list saved = ctx->get_saved_variables();
    OptionalTensor context[TENSORS];
    for (int i = 0; i < TENSORS; ++i) context[i] = if_defined(saved[6 + i]);
    const bool need_mask = context[0] && context[0]->requires_grad();
    const auto& option = ctx->saved_data.at("options").toTupleRef().elements();
    // Only a gradient that is differentiated again needs the operator's own gradient.
    std::optional<at::AutoDispatchBelowADInplaceOrView> below;
    if (!at::GradMode::is_enabled()) below.emplace();
    const auto [grad_q, grad_k, grad_v, grad_mask] =
        op.call(grads[0].defined() ? grads[0] : at::zeros_like(saved[3]), if_defined(grads[1]),
                saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], context[0], context[1],
                context[2], context[3], context[4], option[0].toDouble(), option[1].toInt(),
                option[2].toInt(), option[3].toBool(), option[4].toDouble(), option[5].toDouble(),
                option[6].toSymInt(), option[7].toSymInt(), need_mask);
    return {grad_q, grad_k, grad_v, need_mask ? grad_mask : Tensor(), Tensor(), Tensor()};
  }
};

Results attention(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                  const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                  const OptionalTensor& alibi_slopes, const OptionalTensor& seed, double scale,
                  int64_t window_left, int64_t window_right, bool bottom_right, double softcap,
                  double dropout_p, SymInt max_seqlen_q, SymInt max_seqlen_k) {
  const OptionalTensor context[TENSORS] = {mask, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed};
  const Options options{scale,
                        window_left,
                        window_right,
                        bottom_right,
                        softcap,
                        dropout_p,
                        std::move(max_seqlen_q),
                        std::move(max_seqlen_k)};
  const bool differentiable = q.requires_grad() || k.requires_grad() || v.requires_grad() ||
                              (mask && mask->requires_grad());
  if (!at::GradMode::is_enabled() || !differentiable) return forward_of(q, k, v, context, options);
  const variable_list results = AttentionForward::apply(q, k, v, mask, context, options);
  return {results[0], results[1], results[2]};
}

} // namespace

TORCH_LIBRARY_IMPL(fastseq, AutogradCPU, m) {
  m.impl("attention_forward", attention);
}
