// Which build of the kernels this processor gets.
#pragma once

#include <string>
#include <vector>

#include "additive_args.h"
#include "attention_args.h"
#include "decoder_args.h"
#include "scan_args.h"

namespace fastseq {

struct Kernels {
  std::string name;
  void (*rnn_forward)(const ForwardArgs*);
  void (*rnn_backward)(const BackwardArgs*);
  void (*attention_forward)(const AttentionArgs*);
  void (*attention_backward)(const AttentionBackwardArgs*);
  void (*attention_weights)(const AttentionWeightsArgs*);
  void (*attention_decode)(const DecodeArgs*);
  void (*additive_forward)(const AdditiveForwardArgs*);
  void (*additive_backward)(const AdditiveBackwardArgs*);
  void (*decoder)(const DecoderArgs*);
  int64_t (*decoder_columns)(); // outputs of a panel of its packed weights
};

// Instruction sets that were built, and those of them that this processor has, weakest first.
std::vector<std::string> built_capabilities();
std::vector<std::string> usable_capabilities();

// Whether this processor multiplies pairs of bfloat16 (AVX-512) faster than floats, as measured
// once. True where it has no such instruction.
bool pairs_are_quick();

// Whether torch multiplies matrices of floats faster by oneDNN than by its default, MKL: so it is
// on AMD's processors with AVX-512.
bool onednn_is_quicker();

// The kernels in use: FASTSEQ_CPU_CAPABILITY if set, else the best; avx512_bf16 only where this
// processor multiplies bfloat16 pairs faster than floats. Throws where that is impossible.
const Kernels& kernels();

// Replaces the kernels by those of another shared library, under the given name: for tests of
// instruction sets that this processor lacks, built in a form that it can run. Kernels that the
// library does not have stay.
void load_kernels(const std::string& path, const std::string& name);

} // namespace fastseq
