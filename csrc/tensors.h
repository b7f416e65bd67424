// What the bindings of several operators ask of tensors.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "scan_args.h"

namespace fastseq {

inline DType dtype_of(const at::Tensor& x, const char* name) {
  switch (x.scalar_type()) {
  case at::kDouble:
    return F64;
  case at::kFloat:
    return F32;
  case at::kBFloat16:
    return BF16;
  case at::kHalf:
    return F16;
  default:
    TORCH_CHECK(false, "fastseq: attention takes float64, float32, bfloat16 or float16, but ", name,
                " is ", x.scalar_type());
  }
}

// The type that sums and results of the accumulating type have.
inline at::ScalarType acc_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check(const at::Tensor& x, const char* name, at::ScalarType dtype,
                  at::IntArrayRef shape) {
  TORCH_CHECK(x.device().is_cpu() && x.is_contiguous(), "fastseq: ", name,
              " must be contiguous on the CPU");
  TORCH_CHECK(x.scalar_type() == dtype, "fastseq: ", name, " must be ", dtype, ", got ",
              x.scalar_type());
  TORCH_CHECK(x.sizes() == shape, "fastseq: ", name, " must have shape ", shape, ", got ",
              x.sizes());
}

inline int usable_threads() {
  return at::in_parallel_region() ? 1 : at::get_num_threads();
}

} // namespace fastseq
