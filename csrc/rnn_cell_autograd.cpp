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

std::vector<int64_t> versions(const variable_list& tensors) {
  std::vector<int64_t> found;
  for (const Tensor& x : tensors) found.push_back(x._version());
  return found;
}

struct CellStep : torch::autograd::Function<CellStep> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& h,
                               const OptionalTensor& c, const Tensor& w_ih, const Tensor& w_hh,
                               const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                               const std::string& mode) {
    static const auto op = operator_named<Forward>("fastseq::rnn_cell");
    at::AutoDispatchBelowADInplaceOrView below;
    auto [h_n, c_n, gates, cells, hn] = op.call(input, h, c, w_ih, w_hh, b_ih, b_hh, mode, true);
    // Neither the new state nor biases are read by first derivatives: both may have been changed.
    ctx->save_for_backward({gates, cells, hn, input, h, c.value_or(Tensor()), w_ih, w_hh});
    const variable_list biases = b_ih ? variable_list{*b_ih, *b_hh} : variable_list();
    ctx->saved_data["rest"] = std::make_tuple(mode, biases, versions(biases));
    ctx->set_materialize_grads(false);
    ctx->mark_non_differentiable(c ? variable_list{gates, cells, hn}
                                   : variable_list{c_n, gates, cells, hn});
    return {h_n, c_n, gates, cells, hn};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &gates = saved[0], &cells = saved[1], &hn = saved[2], &input = saved[3],
                 &h = saved[4], &c = saved[5], &w_ih = saved[6], &w_hh = saved[7];
    const auto& rest = ctx->saved_data.at("rest").toTupleRef().elements();
    const std::string& mode = rest[0].toStringRef();
    const variable_list biases = rest[1].toTensorVector();
    const bool need_input = input.requires_grad(), need_state = h.requires_grad();
    bool need_weights = w_ih.requires_grad() || w_hh.requires_grad();
    for (const Tensor& bias : biases) need_weights |= bias.requires_grad();
    const OptionalTensor grad_h = if_defined(grads[0]), grad_c = if_defined(grads[1]);
    std::vector<Tensor> of;
    if (at::GradMode::is_enabled()) { // gradients that are differentiated again
      static const auto op = operator_named<LayerBackward>("fastseq::rnn_layer_backward");
      TORCH_CHECK(versions(biases) == rest[2].toIntVector(),
                  "one of the variables needed for gradient computation has been modified by an "
                  "inplace operation: a bias of ",
                  mode);
      const auto row = [](const Tensor& x) { return x.defined() ? x.unsqueeze(0) : x; };
      const auto list = [](const variable_list& x, size_t i) {
        return x.empty() ? x : variable_list{x[i]};
      };
      // Of one step's output only a plain RNN reads anything, and there it is the gates.
      const Tensor h_n = gates.size(2) == 1 ? gates.view(h.sizes()) : h;
      of = op.call(grad_h, std::nullopt, if_defined(row(grads[1])), h_n, gates, cells, hn, input,
                   std::nullopt, row(h), if_defined(row(c)), {w_ih}, {w_hh}, list(biases, 0),
                   list(biases, 1), {}, {}, std::nullopt, mode, {0.0, 0.0}, 0.0, false, false,
                   need_input, need_weights);
      of[1] = of[1].squeeze(0);
      if (c.defined()) of[2] = of[2].squeeze(0);
    } else {
      static const auto op = operator_named<Backward>("fastseq::rnn_cell_backward");
      of = op.call(grad_h, grad_c, gates, cells, hn, input, h, if_defined(c), w_ih, w_hh,
                   !biases.empty(), mode, need_input, need_state, need_weights);
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
  // With a tangent too, for which torch raises there: the kernel would lose it.
  const auto learns = [](const OptionalTensor& x) {
    return x && (x->requires_grad() || x->_fw_grad(0).defined());
  };
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
