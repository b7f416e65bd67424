// The gradient of a cell's step on the CPU: fastseq/ops/rnn_cell.py has the same in Python, which
// takes as long as a small step.
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "autograd.h"

namespace {

using at::Tensor;
using fastseq::if_defined;
using fastseq::operator_named;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using Step = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

using Forward = Step(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                     const Tensor&, const OptionalTensor&, const OptionalTensor&, std::string,
                     bool);
using Backward = std::vector<Tensor>(const OptionalTensor&, const OptionalTensor&, const Tensor&,
                                     const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                     const OptionalTensor&, const Tensor&, const Tensor&, bool,
                                     std::string, bool, bool, bool);
using LayerBackward = std::vector<Tensor>(const OptionalTensor&, const OptionalTensor&,
                                          const OptionalTensor&, const Tensor&, const Tensor&,
                                          const Tensor&, const Tensor&, const Tensor&,
                                          const OptionalTensor&, const Tensor&,
                                          const OptionalTensor&, at::TensorList, at::TensorList,
                                          at::TensorList, at::TensorList, at::TensorList,
                                          at::TensorList, const OptionalTensor&, std::string,
                                          at::ArrayRef<double>, double, bool, bool, bool, bool);

struct CellStep : torch::autograd::Function<CellStep> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& h,
                               const OptionalTensor& c, const Tensor& w_ih, const Tensor& w_hh,
                               const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                               const std::string& mode) {
    static const auto op = operator_named<Forward>("fastseq::rnn_cell");
    at::AutoDispatchBelowADInplaceOrView below;
    auto [h_n, c_n, gates, cells, hn] = op.call(input, h, c, w_ih, w_hh, b_ih, b_hh, mode, true);
    ctx->save_for_backward({h_n, gates, cells, hn, input, h, c.value_or(Tensor()), w_ih, w_hh,
                            b_ih.value_or(Tensor()), b_hh.value_or(Tensor())});
    ctx->set_materialize_grads(false);
    ctx->saved_data["mode"] = mode;
    ctx->mark_non_differentiable(c ? variable_list{gates, cells, hn}
                                   : variable_list{c_n, gates, cells, hn});
    return {h_n, c_n, gates, cells, hn};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &h_n = saved[0], &gates = saved[1], &cells = saved[2], &hn = saved[3];
    const Tensor &input = saved[4], &h = saved[5], &c = saved[6], &w_ih = saved[7],
                 &w_hh = saved[8], &b_ih = saved[9], &b_hh = saved[10];
    const std::string& mode = ctx->saved_data.at("mode").toStringRef();
    const bool need_input = input.requires_grad(), need_state = h.requires_grad();
    bool need_weights = w_ih.requires_grad() || w_hh.requires_grad();
    for (const Tensor& bias : {b_ih, b_hh}) need_weights |= bias.defined() && bias.requires_grad();
    const OptionalTensor grad_h = if_defined(grads[0]), grad_c = if_defined(grads[1]);
    std::vector<Tensor> of;
    if (at::GradMode::is_enabled()) { // gradients that are differentiated again
      static const auto op = operator_named<LayerBackward>("fastseq::rnn_layer_backward");
      const auto row = [](const Tensor& x) { return x.defined() ? x.unsqueeze(0) : x; };
      const auto list = [](const Tensor& x) { return variable_list(x.defined(), x); };
      of = op.call(grad_h, std::nullopt, if_defined(row(grads[1])), h_n, gates, cells, hn, input,
                   std::nullopt, row(h), if_defined(row(c)), list(w_ih), list(w_hh), list(b_ih),
                   list(b_hh), {}, {}, std::nullopt, mode, {0.0, 0.0}, 0.0, false, false,
                   need_input, need_weights);
      of[1] = of[1].squeeze(0);
      if (c.defined()) of[2] = of[2].squeeze(0);
    } else {
      static const auto op = operator_named<Backward>("fastseq::rnn_cell_backward");
      of = op.call(grad_h, grad_c, gates, cells, hn, input, h, if_defined(c), w_ih, w_hh,
                   b_ih.defined(), mode, need_input, need_state, need_weights);
    }
    const auto weight = [&](size_t i) { return need_weights && i < of.size() ? of[i] : Tensor(); };
    return {need_input ? of[0] : Tensor(),
            need_state ? of[1] : Tensor(),
            c.defined() ? of[2] : Tensor(),
            weight(3),
            weight(4),
            weight(5),
            weight(6),
            Tensor()};
  }
};

Step rnn_cell(const Tensor& input, const Tensor& h, const OptionalTensor& c, const Tensor& w_ih,
              const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
              std::string mode, bool save) {
  const auto learns = [](const OptionalTensor& x) { return x && x->requires_grad(); };
  if (at::GradMode::is_enabled() && (learns(input) || learns(h) || learns(c) || learns(w_ih) ||
                                     learns(w_hh) || learns(b_ih) || learns(b_hh))) {
    const variable_list y = CellStep::apply(input, h, c, w_ih, w_hh, b_ih, b_hh, mode);
    return {y[0], y[1], y[2], y[3], y[4]};
  }
  static const auto op = operator_named<Forward>("fastseq::rnn_cell");
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(input, h, c, w_ih, w_hh, b_ih, b_hh, std::move(mode), save);
}

} // namespace

TORCH_LIBRARY_IMPL(fastseq, AutogradCPU, m) {
  m.impl("rnn_cell", rnn_cell);
}
