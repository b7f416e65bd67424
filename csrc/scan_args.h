// What a recurrent scan is given: raw pointers and sizes, shared by the bindings and the kernels.
#pragma once

#include <stdint.h>

namespace fastseq {

enum DType { F64, F32, BF16, F16 };
enum Mode { RNN_TANH, RNN_RELU, LSTM, GRU };

constexpr int gates_of(int mode) {
  return mode == LSTM ? 4 : mode == GRU ? 3 : 1;
}

// Scans of no more rows than this, in all, do not pack their weight.
constexpr int64_t UNPACKED_ROWS = 6;

// T steps, B sequences, N rows in all, D directions, H units, P the width of h (H unless
// projected). "X" is the storage type, "acc" double for F64 and float otherwise. Absent tensors are
// null.
struct ScanArgs {
  DType dtype;
  Mode mode;
  int64_t T, B, N, D, H, P;
  const int64_t* sizes;    // (T) rows of each step
  const int64_t* offsets;  // (T) where they start
  const void* h0;          // (D, B, P) X
  const void* c0;          // (D, B, H) X
  const void* w_hh[2];     // (G*H, P) X
  const void* w_hr[2];     // (P, H) X
  const void* ln_gates[2]; // (G*H) X
  const void* ln_cell[2];  // (2, H) X
  const void* h_mask;      // (D, B, P) X
  double ln_eps;
  double zoneout_h, zoneout_c;
  uint64_t seed;
  bool training;
  int threads;
};

struct ForwardArgs : ScanArgs {
  void* gates;         // (N, D, G, H) X, in and out
  const void* b_hh[2]; // (3*H) X, GRU
  bool save;
  void* output; // (N, D, P) X
  void* h_n;    // (D, B, P) X, or null
  void* c_n;    // (D, B, H) X
  void* cells;  // (N, D, H) acc
  void* hn;     // (N, D, H) X
  // A single step with its products: of a few rows they are made here, from the input and unpacked
  // weights; of more they are there already, the input's and, but for a GRU, both in `gates`.
  const void* input;    // (N, I) X
  const void* w_ih;     // (G*H, I) X
  const void* b_ih;     // (G*H) X, where it is not yet in `gates`; or null
  const void* products; // (N, G*H) X, GRU
  int64_t I;
  bool have_products;
};

struct BackwardArgs : ScanArgs {
  const void* grad_output; // (N, D, P) X
  const void* grad_h_n;    // (D, B, P) X
  const void* grad_c_n;    // (D, B, H) X
  const void* gates;       // (N, D, G, H) X
  const void* cells;       // (N, D, H) acc
  const void* hn;          // (N, D, H) X
  const void* output;      // (N, D, P) X
  const void* u_raw;       // (N, D, G, H) X
  void* grad_gx;           // (N, D, G, H) X
  void* grad_u;            // (N, D, G, H) X; with layer-norm, and where a GRU is asked for it
  void* grad_proj;         // (N, D, P) X
  void* grad_ln_cell;      // (N, D, H) X
  void* grad_h0;           // (D, B, P) X
  void* grad_c0;           // (D, B, H) X
  bool without_product;    // of a single step: grad_h0 lacks grad_u W_hh, which the caller adds
};

} // namespace fastseq
