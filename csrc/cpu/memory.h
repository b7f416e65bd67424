// Scratch memory of one call.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <stdexcept>
#include <string>

namespace {

// Aligned to cache lines; to be freed by free(). Call it outside of parallel regions: it may throw.
static void* allocate_aligned(int64_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 64, bytes > 0 ? bytes : 64))
    throw std::runtime_error("fastseq: no memory for " + std::to_string(bytes) +
                             " bytes of scratch space");
  return block;
}

} // namespace
