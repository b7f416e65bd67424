// What a step of the fast decoder is given: raw pointers, shared by the bindings and the kernel.
#pragma once

#include <stdint.h>

namespace fastseq {

enum WeightType { WEIGHTS_F32, WEIGHTS_BF16, WEIGHTS_INT8 };
enum Activation { RELU, GELU, GELU_TANH, SILU };

// A linear layer, packed: panels of `columns` outputs, and in a panel all its columns for each word
// of 1 float, 2 bfloat16 or 4 int8 inputs. What goes with outputs is padded to whole panels.
struct Packed {
  const void* words;   // (panels, words of inputs, columns)
  const float* bias;   // (panels * columns)
  const float* scales; // int8: (2, panels * columns): of a column, and the sum of its numbers
  int64_t outputs, inputs;
};

struct NormWeights {
  const float *weight, *bias; // (d) each
};

// R rows, each with t new tokens; d the width, H heads, V words.
struct DecoderArgs {
  WeightType weights;
  Activation activation;
  bool norm_first, cross;
  int64_t R, t, layers, d, H, ffn, V;
  int64_t length;        // tokens of each row before the new ones
  const int64_t* tokens; // (R, t)
  const float* words;    // (V, d)
  double word_scale, eps;
  const float* places;               // (positions, d), added; or null
  const float* angles;               // (2, positions, d/H/2), sines and cosines; or null
  int64_t positions;                 // of angles
  const NormWeights* embedding_norm; // or null
  const NormWeights* norms;          // in the order of their use
  const Packed* matrices;            // in the order of their use
  float* cache;                      // (layers, 2, capacity, slots, d)
  int64_t capacity, slots;
  int32_t* ancestors;         // (R, capacity): the slot that holds a row's token
  const float* const* memory; // (layers), each (source tokens, 2, d): keys and values
  const int32_t* spans;       // (R, 2): a row's first source token, and how many
  int64_t best;               // how many words to return of a row; 0: all logits
  float* scores;              // (R, best) log-probabilities, or (R, V) logits
  int64_t* ids;               // (R, best)
  int threads;
};

} // namespace fastseq
