// The extension module fastseq._C: checks tensors, hands raw pointers to the kernels.
//
// The operators' schemas are defined in Python (fastseq/ops); this registers their CPU kernels.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/philox.h"
#include "dispatch.h"
#include "products.h"

namespace {

using at::Tensor;
using fastseq::BackwardArgs;
using fastseq::ForwardArgs;
using fastseq::Mode;
using fastseq::ScanArgs;
using OptionalTensor = std::optional<Tensor>;

Mode mode_of(const std::string& name) {
  if (name == "RNN_TANH") return fastseq::RNN_TANH;
  if (name == "RNN_RELU") return fastseq::RNN_RELU;
  if (name == "LSTM") return fastseq::LSTM;
  TORCH_CHECK(name == "GRU", "fastseq: unknown mode ", name);
  return fastseq::GRU;
}

fastseq::DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
  case at::kDouble:
    return fastseq::F64;
  case at::kFloat:
    return fastseq::F32;
  case at::kBFloat16:
    return fastseq::BF16;
  case at::kHalf:
    return fastseq::F16;
  default:
    TORCH_CHECK(false, "fastseq: the scan does not take ", x.scalar_type());
  }
}

// Checks arguments against the shapes that `gates` implies, and keeps contiguous copies alive.
class Arguments {
public:
  explicit Arguments(const Tensor& gates) : gates_(gates) {
    TORCH_CHECK(gates.dim() == 4, "fastseq: gates must be (rows, directions, gates, hidden_size)");
  }

  const Tensor& contiguous(const Tensor& x, at::IntArrayRef shape, const char* name) {
    return contiguous(x, shape, name, gates_.scalar_type());
  }
  const Tensor& contiguous(const Tensor& x, at::IntArrayRef shape, const char* name,
                           at::ScalarType dtype) {
    TORCH_CHECK(x.device().is_cpu(), "fastseq: ", name, " must be on the CPU");
    TORCH_CHECK(x.scalar_type() == dtype, "fastseq: ", name, " must be ", dtype, ", got ",
                x.scalar_type());
    TORCH_CHECK(x.sizes() == shape, "fastseq: ", name, " must have shape ", shape, ", got ",
                x.sizes());
    held_.push_back(x.contiguous());
    return held_.back();
  }
  const void* optional(const OptionalTensor& x, at::IntArrayRef shape, const char* name) {
    return x ? contiguous(*x, shape, name).const_data_ptr() : nullptr;
  }
  // One tensor a direction, or none at all.
  void list(at::TensorList tensors, at::IntArrayRef shape, const char* name, const void* out[2]) {
    out[0] = out[1] = nullptr;
    if (tensors.empty()) return;
    TORCH_CHECK((int64_t)tensors.size() == gates_.size(1), "fastseq: ", name,
                " must have one entry a direction");
    for (size_t d = 0; d < tensors.size(); ++d)
      out[d] = contiguous(tensors[d], shape, name).const_data_ptr();
  }

  // Everything that both scans share.
  void common(ScanArgs& a, const OptionalTensor& batch_sizes, const Tensor& h0,
              const OptionalTensor& c0, at::TensorList w_hh, at::TensorList w_hr,
              at::TensorList ln_gates, at::TensorList ln_cell, const OptionalTensor& h_mask,
              const std::string& mode, double ln_eps, at::ArrayRef<double> zoneout, int64_t seed,
              bool training) {
    a.dtype = dtype_of(gates_);
    a.mode = mode_of(mode);
    a.N = gates_.size(0);
    a.D = gates_.size(1);
    a.H = gates_.size(3);
    const int64_t G = fastseq::gates_of(a.mode);
    TORCH_CHECK(a.D == 1 || a.D == 2, "fastseq: 1 or 2 directions, got ", a.D);
    TORCH_CHECK(gates_.size(2) == G, "fastseq: ", mode, " has ", G, " gates, got ", gates_.size(2));
    TORCH_CHECK(h0.dim() == 3, "fastseq: h0 must be (directions, batch, width)");
    TORCH_CHECK((a.mode == fastseq::LSTM) == c0.has_value(), "fastseq: only an LSTM has c0");
    TORCH_CHECK(a.mode == fastseq::LSTM || (w_hr.empty() && ln_cell.empty()),
                "fastseq: only an LSTM has projections and a cell to normalise");
    TORCH_CHECK(!w_hh.empty(), "fastseq: w_hh must have one entry a direction");
    TORCH_CHECK(zoneout.size() == 2 && zoneout[0] >= 0 && zoneout[0] < 1 && zoneout[1] >= 0 &&
                    zoneout[1] < 1,
                "fastseq: zoneout must be two probabilities in [0, 1), got ", zoneout);
    a.B = h0.size(1);
    a.P = h0.size(2);
    TORCH_CHECK(!w_hr.empty() || a.P == a.H, "fastseq: h0 must be as wide as hidden_size");
    a.h0 = contiguous(h0, {a.D, a.B, a.P}, "h0").const_data_ptr();
    a.c0 = optional(c0, {a.D, a.B, a.H}, "c0");
    list(w_hh, {G * a.H, a.P}, "w_hh", a.w_hh);
    list(w_hr, {a.P, a.H}, "w_hr", a.w_hr);
    list(ln_gates, {G * a.H}, "ln_gates", a.ln_gates);
    list(ln_cell, {2, a.H}, "ln_cell", a.ln_cell);
    TORCH_CHECK(ln_cell.empty() || !ln_gates.empty(), "fastseq: ln_cell comes with ln_gates");
    a.h_mask = optional(h_mask, {a.D, a.B, a.P}, "h_mask");
    a.ln_eps = ln_eps;
    a.zoneout_h = zoneout[0];
    a.zoneout_c = a.mode == fastseq::LSTM ? zoneout[1] : 0;
    a.seed = (uint64_t)seed;
    a.training = training;
    a.threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    rows(a, batch_sizes);
  }

private:
  void rows(ScanArgs& a, const OptionalTensor& batch_sizes) {
    if (batch_sizes) {
      TORCH_CHECK(batch_sizes->dim() == 1, "fastseq: batch_sizes must be 1-D");
      const Tensor& sizes =
          contiguous(*batch_sizes, {batch_sizes->size(0)}, "batch_sizes", at::kLong);
      sizes_.assign(sizes.const_data_ptr<int64_t>(),
                    sizes.const_data_ptr<int64_t>() + sizes.numel());
    } else {
      TORCH_CHECK(a.B > 0 ? a.N % a.B == 0 : a.N == 0,
                  "fastseq: the rows of gates must be a multiple of the batch");
      sizes_.assign(a.B > 0 ? a.N / a.B : 0, a.B);
    }
    a.T = (int64_t)sizes_.size();
    int64_t total = 0, last = a.B;
    for (const int64_t size : sizes_) {
      TORCH_CHECK(size >= 0 && size <= last, "fastseq: batch_sizes must not be negative, not "
                                             "increase, and start with the batch");
      offsets_.push_back(total);
      total += size;
      last = size;
    }
    TORCH_CHECK(total == a.N, "fastseq: batch_sizes must sum to the rows of gates");
    a.sizes = sizes_.data();
    a.offsets = offsets_.data();
  }

  Tensor gates_;
  std::vector<Tensor> held_;
  std::vector<int64_t> sizes_, offsets_;
};

at::TensorOptions acc_options(const Tensor& x) {
  return x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>
rnn_scan(Tensor gates, const OptionalTensor& batch_sizes, const Tensor& h0,
         const OptionalTensor& c0, at::TensorList w_hh, at::TensorList b_hh, at::TensorList w_hr,
         at::TensorList ln_gates, at::TensorList ln_cell, const OptionalTensor& h_mask,
         std::string mode, double ln_eps, at::ArrayRef<double> zoneout, int64_t seed, bool training,
         bool save) {
  Arguments arguments(gates);
  ForwardArgs a{};
  TORCH_CHECK(gates.is_contiguous(), "fastseq: gates must be contiguous");
  arguments.common(a, batch_sizes, h0, c0, w_hh, w_hr, ln_gates, ln_cell, h_mask, mode, ln_eps,
                   zoneout, seed, training);
  arguments.list(b_hh, {fastseq::gates_of(a.mode) * a.H}, "b_hh", a.b_hh);
  const bool lstm = a.mode == fastseq::LSTM, gru = a.mode == fastseq::GRU;
  const std::vector<int64_t> none{0}, unit{a.N, a.D, a.H};
  Tensor output = at::empty({a.N, a.D * a.P}, gates.options());
  Tensor h_n = at::empty({a.D, a.B, a.P}, gates.options());
  Tensor c_n =
      lstm ? at::empty({a.D, a.B, a.H}, gates.options()) : at::empty(none, gates.options());
  Tensor cells = at::empty(lstm && save ? unit : none, acc_options(gates));
  Tensor hn = at::empty(gru && save ? unit : none, gates.options());
  a.gates = gates.data_ptr();
  a.save = save;
  a.output = output.data_ptr();
  a.h_n = h_n.data_ptr();
  a.c_n = c_n.data_ptr();
  a.cells = cells.data_ptr();
  a.hn = hn.data_ptr();
  if (a.B > 0 && a.H > 0 && a.P > 0) fastseq::kernels().rnn_forward(&a);
  return {output, h_n, c_n, cells, hn};
}

// Rows up to which the sum of the two biases takes longer than to add one in the projection.
constexpr int64_t FEW_ROWS = 64;

// Projects the input, then scans.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
rnn_sequence(const Tensor& input, const OptionalTensor& batch_sizes, const Tensor& h0,
             const OptionalTensor& c0, at::TensorList w_ih, at::TensorList w_hh,
             at::TensorList b_ih, at::TensorList b_hh, at::TensorList w_hr,
             const OptionalTensor& h_mask, std::string mode, at::ArrayRef<double> zoneout,
             int64_t seed, bool training, bool save) {
  TORCH_CHECK(input.dim() == 2, "fastseq: input must be (rows, input_size), got ", input.sizes());
  const int64_t N = input.size(0), G = fastseq::gates_of(mode_of(mode));
  const int64_t D = (int64_t)w_ih.size();
  TORCH_CHECK(D > 0, "fastseq: w_ih must have one entry a direction");
  const int64_t width = w_ih[0].size(0);
  TORCH_CHECK(width % G == 0, "fastseq: w_ih must have ", G, " rows a unit, got ", width);
  TORCH_CHECK(b_ih.size() == b_hh.size() && (b_ih.empty() || (int64_t)b_ih.size() == D),
              "fastseq: b_ih and b_hh must have one entry a direction each, or none");
  // The scan has the gates at hand, while a bias of the projection takes a pass of its own. GRU
  // needs the recurrent one apart, in r·(…).
  std::vector<Tensor> sums;
  const bool both_in_scan = mode != "GRU" && N > FEW_ROWS;
  for (size_t d = 0; both_in_scan && d < b_ih.size(); ++d)
    sums.push_back(at::add(b_ih[d], b_hh[d]));
  OptionalTensor bias;
  if (!b_ih.empty() && !both_in_scan) bias = D == 1 ? b_ih[0] : at::cat(b_ih);
  Tensor gates = fastseq::linear(input, D == 1 ? w_ih[0] : at::cat(w_ih), bias);
  gates = gates.view({N, D, G, width / G});
  auto [output, h_n, c_n, cells, hn] =
      rnn_scan(gates, batch_sizes, h0, c0, w_hh, both_in_scan ? at::TensorList(sums) : b_hh, w_hr,
               {}, {}, h_mask, mode, 0, zoneout, seed, training, save);
  return {output, h_n, c_n, save ? gates : at::empty({0}, input.options()), cells, hn};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
rnn_scan_backward(const Tensor& grad_output, const OptionalTensor& grad_h_n,
                  const OptionalTensor& grad_c_n, const Tensor& gates, const Tensor& cells,
                  const Tensor& hn, const Tensor& output, const OptionalTensor& u_raw,
                  const OptionalTensor& batch_sizes, const Tensor& h0, const OptionalTensor& c0,
                  at::TensorList w_hh, at::TensorList w_hr, at::TensorList ln_gates,
                  at::TensorList ln_cell, const OptionalTensor& h_mask, std::string mode,
                  double ln_eps, at::ArrayRef<double> zoneout, int64_t seed, bool training) {
  Arguments arguments(gates);
  BackwardArgs a{};
  arguments.common(a, batch_sizes, h0, c0, w_hh, w_hr, ln_gates, ln_cell, h_mask, mode, ln_eps,
                   zoneout, seed, training);
  const bool lstm = a.mode == fastseq::LSTM, gru = a.mode == fastseq::GRU;
  const bool norm = !ln_gates.empty();
  TORCH_CHECK(norm == u_raw.has_value(), "fastseq: u_raw comes with ln_gates");
  const std::vector<int64_t> none{0}, unit{a.N, a.D, a.H};
  a.gates = arguments.contiguous(gates, gates.sizes(), "gates").const_data_ptr();
  a.grad_output =
      arguments.contiguous(grad_output, {a.N, a.D * a.P}, "grad_output").const_data_ptr();
  a.output = arguments.contiguous(output, {a.N, a.D * a.P}, "output").const_data_ptr();
  a.grad_h_n = arguments.optional(grad_h_n, {a.D, a.B, a.P}, "grad_h_n");
  a.grad_c_n = lstm ? arguments.optional(grad_c_n, {a.D, a.B, a.H}, "grad_c_n") : nullptr;
  a.u_raw = arguments.optional(u_raw, gates.sizes(), "u_raw");
  if (lstm)
    a.cells = arguments.contiguous(cells, unit, "cells", acc_options(gates).dtype().toScalarType())
                  .const_data_ptr();
  if (gru) a.hn = arguments.contiguous(hn, unit, "hn").const_data_ptr();

  const auto options = gates.options();
  Tensor grad_gx = at::empty(gates.sizes(), options);
  Tensor grad_u = at::empty(norm ? gates.sizes() : at::IntArrayRef(none), options);
  Tensor grad_proj = w_hr.empty() ? at::empty(none, options) : at::empty({a.N, a.D * a.P}, options);
  Tensor grad_ln_cell = at::empty(ln_cell.empty() ? none : unit, options);
  Tensor grad_h0 = at::empty({a.D, a.B, a.P}, options);
  Tensor grad_c0 = lstm ? at::empty({a.D, a.B, a.H}, options) : at::empty(none, options);
  a.grad_gx = grad_gx.data_ptr();
  a.grad_u = norm ? grad_u.data_ptr() : nullptr;
  a.grad_proj = grad_proj.data_ptr();
  a.grad_ln_cell = grad_ln_cell.data_ptr();
  a.grad_h0 = grad_h0.data_ptr();
  a.grad_c0 = grad_c0.data_ptr();
  if (a.B > 0 && a.H > 0 && a.P > 0) fastseq::kernels().rnn_backward(&a);
  return {grad_gx, grad_u, grad_proj, grad_ln_cell, grad_h0, grad_c0};
}

// One step with both of its products: (h, c, gates, cells, hn), the last three if saved.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>
rnn_cell(const Tensor& input, const Tensor& h, const OptionalTensor& c, const Tensor& w_ih,
         const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
         std::string mode, bool save) {
  const bool lstm = mode == "LSTM", gru = mode == "GRU";
  TORCH_CHECK(input.dim() == 2 && h.dim() == 2 && h.size(0) == input.size(0),
              "fastseq: input and h must be (batch, size)");
  const int64_t B = h.size(0), H = h.size(1), G = fastseq::gates_of(mode_of(mode));
  for (const OptionalTensor& bias : {b_ih, b_hh})
    TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == G * H),
                "fastseq: b_ih and b_hh must have shape [", G * H, "]");
  TORCH_CHECK(b_ih.has_value() == b_hh.has_value(), "fastseq: both biases or none");
  const std::vector<int64_t> none{0}, unit{B, 1, H};
  const bool have_products = B > fastseq::UNPACKED_ROWS || input.size(1) == 0;
  Tensor gates, products;
  if (have_products) {
    if (gru) {
      gates = fastseq::linear(input, w_ih, b_ih);
      products = fastseq::linear(h, w_hh);
    } else {
      gates = fastseq::linear(input, w_ih).addmm_(h, w_hh.t());
    }
    gates = gates.view({B, 1, G, H});
  } else {
    gates = at::empty({B, 1, G, H}, input.options());
  }
  Arguments arguments(gates);
  ForwardArgs a{};
  arguments.common(a, {}, h.unsqueeze(0), c ? OptionalTensor(c->unsqueeze(0)) : c, {w_hh}, {}, {},
                   {}, {}, mode, 1e-5, {0.0, 0.0}, 0, false);
  a.b_hh[0] = arguments.optional(b_hh, {G * H}, "b_hh");
  a.have_products = have_products;
  if (products.defined())
    a.products = products.const_data_ptr();
  else
    a.b_ih = arguments.optional(b_ih, {G * H}, "b_ih");
  if (!have_products) {
    a.I = input.size(1);
    a.input = arguments.contiguous(input, {B, a.I}, "input").const_data_ptr();
    a.w_ih = arguments.contiguous(w_ih, {G * H, a.I}, "w_ih").const_data_ptr();
  }
  Tensor output = at::empty({B, H}, input.options());
  Tensor c_n = lstm ? at::empty({B, H}, input.options()) : at::empty(none, input.options());
  Tensor cells = at::empty(lstm && save ? unit : none, acc_options(gates));
  Tensor hn = at::empty(gru && save ? unit : none, input.options());
  a.gates = gates.data_ptr();
  a.save = save;
  a.output = output.data_ptr();
  a.c_n = c_n.data_ptr();
  a.cells = cells.data_ptr();
  a.hn = hn.data_ptr();
  if (B > 0 && H > 0) fastseq::kernels().rnn_forward(&a);
  return {output, c_n, save ? gates : at::empty(none, input.options()), cells, hn};
}

// Gradients of input, h, c, w_ih, w_hh, b_ih and b_hh; empty where not asked for or absent.
std::vector<Tensor> rnn_cell_backward(const OptionalTensor& grad_h, const OptionalTensor& grad_c,
                                      const Tensor& gates, const Tensor& cells, const Tensor& hn,
                                      const Tensor& input, const Tensor& h, const OptionalTensor& c,
                                      const Tensor& w_ih, const Tensor& w_hh, bool bias,
                                      std::string mode, bool need_input, bool need_state,
                                      bool need_weights) {
  Arguments arguments(gates);
  BackwardArgs a{};
  arguments.common(a, {}, h.unsqueeze(0), c ? OptionalTensor(c->unsqueeze(0)) : c, {w_hh}, {}, {},
                   {}, {}, mode, 1e-5, {0.0, 0.0}, 0, false);
  TORCH_CHECK(a.N == a.B, "fastseq: gates must have a row for each of h, ", a.B, ", got ", a.N);
  TORCH_CHECK(input.dim() == 2 && input.size(0) == a.B && w_ih.dim() == 2 &&
                  w_ih.size(0) == gates.size(2) * a.H && w_ih.size(1) == input.size(1),
              "fastseq: input and w_ih must be (batch, input_size) and (gates, input_size), got ",
              input.sizes(), " and ", w_ih.sizes());
  const bool lstm = a.mode == fastseq::LSTM, gru = a.mode == fastseq::GRU;
  const auto options = gates.options();
  const std::vector<int64_t> none{0}, unit{a.N, 1, a.H}, state{a.B, a.H};
  const Tensor given = grad_h ? *grad_h : at::zeros(state, options);
  a.gates = arguments.contiguous(gates, gates.sizes(), "gates").const_data_ptr();
  a.grad_output = arguments.contiguous(given, state, "grad_h").const_data_ptr();
  if (lstm) {
    a.grad_c_n = arguments.optional(grad_c, state, "grad_c");
    a.cells = arguments.contiguous(cells, unit, "cells", acc_options(gates).dtype().toScalarType())
                  .const_data_ptr();
  }
  if (gru) a.hn = arguments.contiguous(hn, unit, "hn").const_data_ptr();
  Tensor grad_gx = at::empty({a.N, gates.size(2) * a.H}, options);
  Tensor grad_u = gru ? at::empty(grad_gx.sizes(), options) : grad_gx;
  Tensor grad_h0 = at::empty(state, options);
  Tensor grad_c0 = at::empty(lstm ? state : none, options);
  a.grad_gx = grad_gx.data_ptr();
  a.grad_u = grad_u.data_ptr();
  a.grad_h0 = grad_h0.data_ptr();
  a.grad_c0 = grad_c0.data_ptr();
  a.without_product = true;
  if (a.B > 0 && a.H > 0) fastseq::kernels().rnn_backward(&a);
  if (need_state) grad_h0.addmm_(grad_u, w_hh);
  const auto absent = [&] { return at::empty(none, options); };
  std::vector<Tensor> grads{need_input ? at::mm(grad_gx, w_ih) : absent(),
                            need_state ? grad_h0 : absent(), grad_c0};
  if (!need_weights) return grads;
  grads.push_back(at::mm(grad_gx.t(), input));
  grads.push_back(at::mm(grad_u.t(), h));
  if (bias) {
    grads.push_back(grad_gx.sum(0));
    grads.push_back(gru ? grad_u.sum(0) : grads.back().clone());
  }
  return grads;
}

std::vector<uint32_t> philox_words(uint64_t seed, uint64_t counter) {
  uint32_t words[2];
  philox<1>(seed, counter, &words[0], &words[1]);
  return {words[0], words[1]};
}

} // namespace

TORCH_LIBRARY_IMPL(fastseq, CPU, m) {
  m.impl("rnn_scan", rnn_scan);
  m.impl("rnn_scan_backward", rnn_scan_backward);
  m.impl("rnn_sequence", rnn_sequence);
  m.impl("rnn_cell", rnn_cell);
  m.impl("rnn_cell_backward", rnn_cell_backward);
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastseq's CPU kernels";
  m.def("capability", [] { return fastseq::kernels().name; }, "The instruction set in use.");
  m.def("pairs_are_quick", &fastseq::pairs_are_quick,
        "Whether pairs of bfloat16 are multiplied faster than floats, or not at all.");
  m.def("onednn_is_quicker", &fastseq::onednn_is_quicker,
        "Whether torch multiplies floats faster by oneDNN than by its default.");
  m.def("built_capabilities", &fastseq::built_capabilities);
  m.def("usable_capabilities", &fastseq::usable_capabilities);
  m.def("load_kernels", &fastseq::load_kernels, pybind11::arg("path"), pybind11::arg("name"),
        "Takes the kernels from another shared library (for tests).");
  m.def(
      "decoder_columns", [] { return fastseq::kernels().decoder_columns(); },
      "Outputs of a panel of the decoder's packed weights.");
  m.def("philox", &philox_words, pybind11::arg("seed"), pybind11::arg("counter"),
        "The first two words that zoneout draws for a counter.");
}
