// Products with weights through torch's libraries.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace fastseq {

// x·weightᵀ + bias, by whichever library is faster here.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias = std::nullopt);

} // namespace fastseq
