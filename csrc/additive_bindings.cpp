// Additive attention's CPU operators: checks tensors, hands raw pointers to the kernels.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "tensors.h"

namespace {

using at::Tensor;
using fastseq::AdditiveArgs;
using fastseq::AdditiveBackwardArgs;
using fastseq::AdditiveForwardArgs;
using OptionalTensor = std::optional<Tensor>;

// Checks arguments and keeps alive the copies that some of them need.
class Arguments {
public:
  // Of any strides whose last is 1.
  const Tensor& rows(const Tensor& x, const char* name, at::IntArrayRef shape,
                     at::ScalarType dtype) {
    check(x, name, shape, dtype);
    return keep(x.dim() == 3 && (x.size(2) == 1 || x.stride(2) == 1) ? x : x.contiguous());
  }
  const void* contiguous(const Tensor& x, const char* name, at::IntArrayRef shape,
                         at::ScalarType dtype) {
    check(x, name, shape, dtype);
    return keep(x.contiguous()).const_data_ptr();
  }
  void mask(const OptionalTensor& mask, AdditiveArgs& a) {
    if (!mask) return;
    const int64_t full[3] = {a.B, a.Tq, a.Tk};
    bool fits = mask->dim() == 3 && mask->size(2) == a.Tk;
    for (int d = 0; fits && d < 2; ++d) fits = mask->size(d) == full[d] || mask->size(d) == 1;
    TORCH_CHECK(fits, "fastseq: mask must be (", a.B, " or 1, ", a.Tq, " or 1, ", a.Tk, "), got ",
                mask->sizes());
    check(*mask, "mask", mask->sizes(), at::kBool);
    auto stride = [&](int d) { return mask->size(d) == 1 ? 0 : mask->stride(d); };
    a.mask = keep(*mask).const_data_ptr<bool>();
    a.mask_batch = stride(0), a.mask_query = stride(1), a.mask_key = stride(2);
  }

private:
  void check(const Tensor& x, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
    TORCH_CHECK(x.device().is_cpu(), "fastseq: ", name, " must be on the CPU, got ", x.device());
    TORCH_CHECK(x.scalar_type() == dtype, "fastseq: ", name, " must be ", dtype, ", got ",
                x.scalar_type());
    TORCH_CHECK(x.sizes() == shape, "fastseq: ", name, " must have shape ", shape, ", got ",
                x.sizes());
  }
  const Tensor& keep(const Tensor& x) {
    held_.push_back(x);
    return held_.back();
  }

  std::vector<Tensor> held_;
};

fastseq::Rows rows_of(const Tensor& x) {
  return {const_cast<void*>(x.const_data_ptr()), x.stride(0), x.stride(1)};
}

void set_common(Arguments& arguments, AdditiveArgs& a, const Tensor& q, const Tensor& k,
                const Tensor& value, const Tensor& v, const OptionalTensor& mask) {
  a.dtype = fastseq::dtype_of(q, "q");
  for (const auto& [x, name] : {std::pair(&q, "q"), std::pair(&k, "k"), std::pair(&value, "value")})
    TORCH_CHECK(x->dim() == 3, "fastseq: ", name, " must be (batch, tokens, width), got shape ",
                x->sizes());
  a.B = q.size(0), a.Tq = q.size(1), a.Tk = k.size(1), a.D = q.size(2), a.Dv = value.size(2);
  const auto dtype = q.scalar_type();
  a.q = rows_of(arguments.rows(q, "q", q.sizes(), dtype));
  a.k = rows_of(arguments.rows(k, "k", {a.B, a.Tk, a.D}, dtype));
  a.value = rows_of(arguments.rows(value, "value", {a.B, a.Tk, a.Dv}, dtype));
  a.v = arguments.contiguous(v, "v", {a.D}, dtype);
  arguments.mask(mask, a);
  a.threads = fastseq::usable_threads();
}

std::tuple<Tensor, Tensor> additive_forward(const Tensor& q, const Tensor& k, const Tensor& value,
                                            const Tensor& v, const OptionalTensor& mask) {
  Arguments arguments;
  AdditiveForwardArgs a{};
  set_common(arguments, a, q, k, value, v, mask);
  Tensor out = at::empty({a.B, a.Tq, a.Dv}, q.options());
  Tensor weights = at::empty({a.B, a.Tq, a.Tk}, q.options().dtype(fastseq::acc_type(q)));
  a.out = out.mutable_data_ptr();
  a.weights = weights.mutable_data_ptr();
  fastseq::kernels().additive_forward(&a);
  return {out, weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor>
additive_backward(const Tensor& grad_out, const OptionalTensor& grad_weights, const Tensor& q,
                  const Tensor& k, const Tensor& value, const Tensor& v, const Tensor& weights,
                  const OptionalTensor& mask) {
  Arguments arguments;
  AdditiveBackwardArgs a{};
  set_common(arguments, a, q, k, value, v, mask);
  const auto acc = fastseq::acc_type(q);
  const std::vector<int64_t> pairs{a.B, a.Tq, a.Tk};
  a.grad_out = rows_of(arguments.rows(grad_out, "grad_out", {a.B, a.Tq, a.Dv}, q.scalar_type()));
  a.weights = const_cast<void*>(arguments.contiguous(weights, "weights", pairs, acc));
  if (grad_weights)
    a.grad_weights = arguments.contiguous(*grad_weights, "grad_weights", pairs, acc);
  auto like = [](const Tensor& x) { return at::empty(x.sizes(), x.options()); };
  Tensor grad_q = like(q), grad_k = like(k), grad_value = like(value), grad_v = like(v);
  a.grad_q = grad_q.data_ptr(), a.grad_k = grad_k.data_ptr();
  a.grad_value = grad_value.data_ptr(), a.grad_v = grad_v.data_ptr();
  fastseq::kernels().additive_backward(&a);
  return {grad_q, grad_k, grad_value, grad_v};
}

} // namespace

TORCH_LIBRARY_IMPL(fastseq, CPU, m) {
  m.impl("additive_attention_forward", additive_forward);
  m.impl("additive_attention_backward", additive_backward);
}
