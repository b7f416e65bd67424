// What attention is given: raw pointers and strides, shared by the bindings and the kernels.
#pragma once

#include <stdint.h>

#include "scan_args.h"

namespace fastseq {

// (batch, heads, tokens, width) in memory: strides in elements, the last dimension contiguous.
struct Tokens {
  void* data;
  int64_t batch, head, token;
};

enum MaskType { MASK_NONE, MASK_BOOL, MASK_F64, MASK_F32, MASK_BF16, MASK_F16 };

// (batch, query heads, queries, keys); the stride of a dimension that is shared is 0.
struct Mask {
  MaskType type;
  const void* data;
  int64_t batch, head, query, key;
};

struct AttentionArgs {
  DType dtype;
  int64_t B, Hq, Hk, Sq, Sk, D, Dv; // Sq and Sk: with cu_seqlens, all tokens of the one row
  Tokens q, k, v, out;
  void* lse;           // (B, Hq, Sq) acc, contiguous
  void* norm;          // (B, Hq, Sq, 2) acc: a row's largest score, and the weight it has; or null
  const int32_t* cu_q; // (B + 1) bounds of the sequences, or null
  const int32_t* cu_k;
  Mask mask;
  const double* alibi; // (Hq) or (B, Hq), or null
  int64_t alibi_batch; // 0 or Hq
  double scale, softcap, dropout_p;
  int64_t window_left, window_right; // negative: no bound
  bool bottom_right;
  uint64_t seed;
  int64_t max_q, max_k; // sizes that the counters of dropout assume
  int threads;
};

struct AttentionBackwardArgs : AttentionArgs {
  Tokens grad_out, grad_q, grad_k, grad_v;
  const void* grad_lse; // as lse, or null
  void* grad_mask;      // contiguous, of the mask's own shape, acc; zeroed; or null
  int64_t mask_sizes[4];
};

// Either lse is given, or out is asked for.
struct AttentionWeightsArgs : AttentionArgs {
  void* weights; // (B, Hq, Sq, Sk) of dtype, contiguous, or their mean over heads (B, Sq, Sk)
  bool average;
};

// A few queries of each sequence against its cache.
struct DecodeArgs {
  DType dtype;
  int64_t B, Hq, Hk, Sq, D, Dv;
  Tokens q, out;
  Tokens k, v;            // batch: the stride of a page where there is a table
  void* lse;              // (B, Hq, Sq) acc, contiguous
  void* norm;             // (B, Hq, Sq, 2) acc, or null
  const int32_t* lengths; // (B) keys of each sequence, or null where all have `length`
  int64_t length;
  const int32_t* table; // (B, table_width) pages, or null
  int64_t table_width, page_size;
  Mask mask;
  const double* alibi; // (Hq) or (B, Hq), or null
  int64_t alibi_batch; // 0 or Hq
  double scale, softcap;
  int64_t window_left, window_right;
  bool bottom_right;
  int threads;
};

} // namespace fastseq
