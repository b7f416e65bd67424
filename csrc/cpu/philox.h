// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): random words by counter.
#pragma once

#include <stdint.h>

namespace {

// Words 0 and 1 for the counters first, first + 1, …, first + COUNT - 1.
template <int COUNT>
static inline void philox(uint64_t seed, uint64_t first, uint32_t word0[COUNT],
                          uint32_t word1[COUNT]) {
  uint32_t c0[COUNT], c1[COUNT], c2[COUNT], c3[COUNT];
  for (int i = 0; i < COUNT; ++i) {
    c0[i] = (uint32_t)(first + i);
    c1[i] = (uint32_t)((first + i) >> 32);
    c2[i] = c3[i] = 0;
  }
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < COUNT; ++i) {
      const uint64_t a = (uint64_t)0xD2511F53u * c0[i], b = (uint64_t)0xCD9E8D57u * c2[i];
      c0[i] = (uint32_t)(b >> 32) ^ c1[i] ^ k0;
      c2[i] = (uint32_t)(a >> 32) ^ c3[i] ^ k1;
      c1[i] = (uint32_t)b;
      c3[i] = (uint32_t)a;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < COUNT; ++i) {
    word0[i] = c0[i];
    word1[i] = c1[i];
  }
}

} // namespace
