#include "products.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>

#include "dispatch.h"

namespace fastseq {

namespace {
constexpr int64_t ENOUGH = 1 << 22; // multiplications that take longer than the way to oneDNN
constexpr int64_t LONG_SUM = 1024;  // terms; oneDNN sums one after the other, so more lose digits
} // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias) {
  static const auto onednn =
      onednn_is_quicker()
          ? c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""})
          : std::nullopt;
  const auto is_float = [&](const at::Tensor& t) { return t.scalar_type() == at::kFloat; };
  const bool quicker = onednn && x.numel() * weight.size(0) >= ENOUGH && is_float(x) &&
                       is_float(weight) && x.size(-1) == weight.size(-1) &&
                       x.size(-1) <= LONG_SUM &&
                       (!bias || (is_float(*bias) && bias->sizes() == weight.sizes().slice(0, 1)));
  if (!quicker) return at::linear(x, weight, bias); // which complains, if need be
  at::AutoDispatchBelowADInplaceOrView below;
  torch::jit::Stack arguments{x, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), ""};
  onednn->callBoxed(arguments);
  return arguments[0].toTensor();
}

} // namespace fastseq
