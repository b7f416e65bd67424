#include "dispatch.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#ifdef FASTSEQ_HAVE_X86
#include <immintrin.h>
#endif

#define FASTSEQ_DECLARE(isa)                                                                       \
  extern "C" void fastseq_rnn_forward_##isa(const fastseq::ForwardArgs*);                          \
  extern "C" void fastseq_rnn_backward_##isa(const fastseq::BackwardArgs*);                        \
  extern "C" void fastseq_attention_forward_##isa(const fastseq::AttentionArgs*);                  \
  extern "C" void fastseq_attention_backward_##isa(const fastseq::AttentionBackwardArgs*);         \
  extern "C" void fastseq_attention_weights_##isa(const fastseq::AttentionWeightsArgs*);           \
  extern "C" void fastseq_attention_decode_##isa(const fastseq::DecodeArgs*);                      \
  extern "C" void fastseq_additive_forward_##isa(const fastseq::AdditiveForwardArgs*);             \
  extern "C" void fastseq_additive_backward_##isa(const fastseq::AdditiveBackwardArgs*);           \
  extern "C" void fastseq_decoder_##isa(const fastseq::DecoderArgs*);                              \
  extern "C" int64_t fastseq_decoder_columns_##isa();
FASTSEQ_DECLARE(portable)
#ifdef FASTSEQ_HAVE_X86
FASTSEQ_DECLARE(avx2)
FASTSEQ_DECLARE(avx512)
FASTSEQ_DECLARE(avx512_bf16)
#endif

namespace fastseq {
namespace {

struct Build {
  Kernels kernels;
  bool usable;
};

#ifdef FASTSEQ_HAVE_X86
// Chains of one instruction, as many as hide its latency: the least seconds of several runs.
#define FASTSEQ_CHAINS(name, target_set, instruction)                                              \
  __attribute__((target(target_set))) double name() {                                              \
    double least = 1;                                                                              \
    for (int run = 0; run < 8; ++run) {                                                            \
      __m512 c[12] = {};                                                                           \
      const auto start = std::chrono::steady_clock::now();                                         \
      for (int i = 0; i < 200; ++i) _Pragma("GCC unroll 12") for (auto& x : c) {                   \
          x = instruction;                                                                         \
          asm volatile("" : "+v"(x));                                                              \
        }                                                                                          \
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;        \
      least = std::min(least, taken.count());                                                      \
    }                                                                                              \
    return least;                                                                                  \
  }
FASTSEQ_CHAINS(pairs_seconds, "avx512f,avx512bf16", _mm512_dpbf16_ps(x, (__m512bh)x, (__m512bh)x))
FASTSEQ_CHAINS(floats_seconds, "avx512f", _mm512_fmadd_ps(x, x, x))
#endif

const std::vector<Build>& builds() {
#define FASTSEQ_BUILD(isa)                                                                         \
  {                                                                                                \
    #isa, fastseq_rnn_forward_##isa, fastseq_rnn_backward_##isa, fastseq_attention_forward_##isa,  \
        fastseq_attention_backward_##isa, fastseq_attention_weights_##isa,                         \
        fastseq_attention_decode_##isa, fastseq_additive_forward_##isa,                            \
        fastseq_additive_backward_##isa, fastseq_decoder_##isa, fastseq_decoder_columns_##isa      \
  }
  static const std::vector<Build> all = [] {
    std::vector<Build> found{{FASTSEQ_BUILD(portable), true}};
#ifdef FASTSEQ_HAVE_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    found.push_back({FASTSEQ_BUILD(avx2), avx2});
    found.push_back({FASTSEQ_BUILD(avx512), avx512});
    found.push_back({FASTSEQ_BUILD(avx512_bf16), avx512 && __builtin_cpu_supports("avx512bf16") &&
                                                     __builtin_cpu_supports("avx512vnni")});
#endif
    return found;
  }();
  return all;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

Kernels choose() {
  const char* wanted = std::getenv("FASTSEQ_CPU_CAPABILITY");
  if (!wanted || !*wanted) {
    Kernels best;
    for (const auto& build : builds()) {
      if (!build.usable) continue;
      if (build.kernels.name == "avx512_bf16" && !pairs_are_quick())
        best.decoder = build.kernels.decoder; // for its products of int8, which always are
      else
        best = build.kernels;
    }
    return best;
  }
  for (const auto& build : builds())
    if (build.kernels.name == wanted) {
      if (build.usable) return build.kernels;
      throw std::runtime_error("FASTSEQ_CPU_CAPABILITY=" + std::string(wanted) +
                               ": this processor lacks it; it has " +
                               joined(usable_capabilities()));
    }
  throw std::runtime_error("FASTSEQ_CPU_CAPABILITY=" + std::string(wanted) +
                           " is unknown; choose among " + joined(built_capabilities()));
}

Kernels& current() {
  static Kernels chosen = choose();
  return chosen;
}

} // namespace

std::vector<std::string> built_capabilities() {
  std::vector<std::string> names;
  for (const auto& build : builds()) names.push_back(build.kernels.name);
  return names;
}

std::vector<std::string> usable_capabilities() {
  std::vector<std::string> names;
  for (const auto& build : builds())
    if (build.usable) names.push_back(build.kernels.name);
  return names;
}

bool onednn_is_quicker() {
#ifdef FASTSEQ_HAVE_X86
  return __builtin_cpu_is("amd") && kernels().name.rfind("avx512", 0) == 0;
#else
  return false;
#endif
}

bool pairs_are_quick() {
#ifdef FASTSEQ_HAVE_X86
  // Some processors take one such instruction a cycle, which is twice the products; others one in
  // two cycles, which is half.
  static const bool quick =
      !__builtin_cpu_supports("avx512bf16") || pairs_seconds() < 1.6 * floats_seconds();
  return quick;
#else
  return true;
#endif
}

const Kernels& kernels() {
  return current();
}

void load_kernels(const std::string& path, const std::string& name) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(dlerror());
  Kernels loaded = current();
  loaded.name = name;
  bool found = false;
  auto take = [&](auto*& kernel, const char* prefix) {
    if (void* symbol = dlsym(library, (prefix + name).c_str())) {
      *(void**)&kernel = symbol;
      found = true;
    }
  };
  take(loaded.rnn_forward, "fastseq_rnn_forward_");
  take(loaded.rnn_backward, "fastseq_rnn_backward_");
  take(loaded.attention_forward, "fastseq_attention_forward_");
  take(loaded.attention_backward, "fastseq_attention_backward_");
  take(loaded.attention_weights, "fastseq_attention_weights_");
  take(loaded.attention_decode, "fastseq_attention_decode_");
  take(loaded.additive_forward, "fastseq_additive_forward_");
  take(loaded.additive_backward, "fastseq_additive_backward_");
  take(loaded.decoder, "fastseq_decoder_");
  take(loaded.decoder_columns, "fastseq_decoder_columns_");
  if (!found) throw std::runtime_error(path + " has no kernels named " + name);
  current() = loaded;
}

} // namespace fastseq
