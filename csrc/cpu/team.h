// The threads of a scan: one parallel region for the whole sequence, a spinning barrier per phase.
#pragma once

#include <omp.h>
#include <sched.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

struct alignas(64) Barrier {
  int arrived = 0;
  alignas(64) int generation = 0;

  void wait(int count) {
    const int before = __atomic_load_n(&generation, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == count) {
      __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&generation, before + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int spins = 0; __atomic_load_n(&generation, __ATOMIC_ACQUIRE) == before; ++spins) {
      if (spins > 2000) sched_yield(); // more threads than cores: let the late one run
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  }
};

// One thread's part in the scan of one direction. Either every thread takes a slice of the units
// and all rows, and they meet after each phase, or each takes its own rows and never waits.
struct Worker {
  Barrier* barrier;
  int index, count;
  bool by_rows;

  void meet() const {
    if (count > 1) barrier->wait(count);
  }
  void end_phase() const {
    if (!by_rows) meet();
  }
  int64_t slice(int64_t n, int i) const { return n * i / count; }

  // Rows that this thread works on in a product: sequences first + i * stride for i < own(m).
  int64_t first() const { return by_rows ? index : 0; }
  int64_t stride() const { return by_rows ? count : 1; }
  int64_t own(int64_t m) const { return by_rows ? (m - index + count - 1) / count : m; }
};

// Calls work(direction, worker) on every thread; directions run side by side where threads suffice.
template <class Work>
static void run_team(int threads, int directions, bool by_rows, const Work& work) {
  Barrier barriers[2];
  auto part = [&](int index, int count) {
    if (directions == 1 || count == 1) {
      for (int d = 0; d < directions; ++d)
        work(d, Worker{&barriers[0], index, count, by_rows && count > 1});
      return;
    }
    const int half = (count + 1) / 2;
    const int d = index >= half, size = d ? count - half : half;
    work(d, Worker{&barriers[d], index - d * half, size, by_rows && size > 1});
  };
  if (threads == 1) return part(0, 1);
#pragma omp parallel num_threads(threads)
  part(omp_get_thread_num(), omp_get_num_threads());
}

} // namespace
