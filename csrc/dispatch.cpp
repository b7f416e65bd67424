#include "dispatch.h"

#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>

#define FASTSEQ_DECLARE(isa)                                                                       \
  extern "C" void fastseq_rnn_forward_##isa(const fastseq::ForwardArgs*);                          \
  extern "C" void fastseq_rnn_backward_##isa(const fastseq::BackwardArgs*);                        \
  extern "C" void fastseq_attention_forward_##isa(const fastseq::AttentionArgs*);                  \
  extern "C" void fastseq_attention_backward_##isa(const fastseq::AttentionBackwardArgs*);         \
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

const std::vector<Build>& builds() {
#define FASTSEQ_BUILD(isa)                                                                         \
  {                                                                                                \
    #isa, fastseq_rnn_forward_##isa, fastseq_rnn_backward_##isa, fastseq_attention_forward_##isa,  \
        fastseq_attention_backward_##isa, fastseq_attention_decode_##isa,                          \
        fastseq_additive_forward_##isa, fastseq_additive_backward_##isa, fastseq_decoder_##isa,    \
        fastseq_decoder_columns_##isa                                                              \
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
    for (const auto& build : builds())
      if (build.usable) best = build.kernels;
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
  take(loaded.attention_decode, "fastseq_attention_decode_");
  take(loaded.additive_forward, "fastseq_additive_forward_");
  take(loaded.additive_backward, "fastseq_additive_backward_");
  take(loaded.decoder, "fastseq_decoder_");
  take(loaded.decoder_columns, "fastseq_decoder_columns_");
  if (!found) throw std::runtime_error(path + " has no kernels named " + name);
  current() = loaded;
}

} // namespace fastseq
