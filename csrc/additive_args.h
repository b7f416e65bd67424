// What additive attention is given: raw pointers and strides, shared by the bindings and the
// kernels.
#pragma once

#include <stdint.h>

#include "scan_args.h"

namespace fastseq {

// (batch, rows, width) in memory: strides in elements, the last dimension contiguous.
struct Rows {
  void* data;
  int64_t batch, row;
};

struct AdditiveArgs {
  DType dtype;
  int64_t B, Tq, Tk, D, Dv;
  Rows q, k, value;
  const void* v;                            // (D), contiguous
  const bool* mask;                         // (B, Tq, Tk), true takes part; or null
  int64_t mask_batch, mask_query, mask_key; // strides; 0 where a dimension is shared
  void* weights;                            // (B, Tq, Tk) acc, contiguous
  int threads;
};

struct AdditiveForwardArgs : AdditiveArgs {
  void* out; // (B, Tq, Dv), contiguous
};

struct AdditiveBackwardArgs : AdditiveArgs {
  Rows grad_out;
  const void* grad_weights;                    // as weights, or null
  void *grad_q, *grad_k, *grad_value, *grad_v; // contiguous
};

} // namespace fastseq
