// How a kernel file ends: its entry for this instruction set, with an instance for each type.
#pragma once

#define FASTSEQ_JOIN(a, b) a##b
#define FASTSEQ_NAME(prefix, isa) FASTSEQ_JOIN(prefix, isa)

#if defined(FASTSEQ_BASE)
// A set that adds bfloat16 instructions to FASTSEQ_BASE, and leaves the other types to it.
#define FASTSEQ_ENTRY(name, Args, run)                                                             \
  extern "C" void FASTSEQ_NAME(fastseq_##name##_, FASTSEQ_BASE)(const fastseq::Args*);             \
  extern "C" void FASTSEQ_NAME(fastseq_##name##_, FASTSEQ_ISA)(const fastseq::Args* args) {        \
    if (args->dtype == fastseq::BF16) return run<bf16>(*args);                                     \
    FASTSEQ_NAME(fastseq_##name##_, FASTSEQ_BASE)(args);                                           \
  }
#else
#define FASTSEQ_ENTRY(name, Args, run)                                                             \
  extern "C" void FASTSEQ_NAME(fastseq_##name##_, FASTSEQ_ISA)(const fastseq::Args* args) {        \
    switch (args->dtype) {                                                                         \
    case fastseq::F64:                                                                             \
      return run<double>(*args);                                                                   \
    case fastseq::F32:                                                                             \
      return run<float>(*args);                                                                    \
    case fastseq::BF16:                                                                            \
      return run<bf16>(*args);                                                                     \
    case fastseq::F16:                                                                             \
      return run<f16>(*args);                                                                      \
    }                                                                                              \
  }
#endif
