// The work of one call of a kernel: its memory, its threads, and how they share tasks.
#pragma once

#include "entry.h"
#include "memory.h"
#include "team.h"

#include <type_traits>

namespace {

constexpr int64_t round_up_to(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}
constexpr int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t most(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Memory of one call, freed at its end.
class Memory {
public:
  explicit Memory(int64_t bytes) : data_((char*)allocate_aligned(bytes)) {}
  ~Memory() { free(data_); }
  Memory(const Memory&) = delete;
  char* data() const { return data_; }

private:
  char* data_;
};

// Cuts pieces off a block; from null, it only counts.
class Cutter {
public:
  explicit Cutter(char* base) : base_(base) {}
  template <class A>
  A* take(int64_t count) {
    A* piece = base_ ? (A*)(base_ + used_) : nullptr;
    used_ += round_up_to(count * (int64_t)sizeof(A), 64);
    return piece;
  }
  int64_t used() const { return used_; }

private:
  char* base_;
  int64_t used_ = 0;
};

// Calls task(index) for every index below count. A thread starts with its own part, which may be in
// its cache from the last call, and then helps with the others'; parts go from the highest down. A
// task that takes two numbers is told as well which one its thread will most likely do next.
struct Queue {
  static constexpr int PARTS = 16;
  struct alignas(64) Part {
    int64_t taken = 0;
  } parts[PARTS];
  template <class Task>
  void drain(const Worker& worker, int64_t count, const Task& task) {
    const auto begin = [&](int p) { return count * p / PARTS; };
    for (int i = 0; i < PARTS; ++i) {
      const int first = worker.index * PARTS / worker.count, p = (first + i) % PARTS;
      const int64_t from = begin(p), to = begin(p + 1);
      for (int64_t t; (t = __atomic_fetch_add(&parts[p].taken, 1, __ATOMIC_RELAXED)) < to - from;) {
        const int64_t index = to - 1 - t;
        if constexpr (std::is_invocable_v<Task, int64_t, int64_t>)
          task(index, index > from ? index - 1 : begin((p + 1) % PARTS + 1) - 1);
        else
          task(index);
      }
    }
  }
};

// Tasks that whichever thread is free takes. It is over when they are done, not when every thread
// has come: one that the system has put aside holds up nobody, and finds nothing left to do.
struct Phase {
  alignas(64) int64_t next = 0;
  int64_t done = 0;
  template <class Task>
  void run(int64_t count, const Task& task) {
    int64_t own = 0;
    for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < count; ++own) task(i);
    if (own) __atomic_fetch_add(&done, own, __ATOMIC_ACQ_REL);
    for (int spins = 0; __atomic_load_n(&done, __ATOMIC_ACQUIRE) < count; ++spins) {
      if (spins > 10000) sched_yield();
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  }
};

template <class Work>
static void on_threads(int threads, const Work& work) {
  Barrier barrier;
  if (threads <= 1) return work(Worker{&barrier, 0, 1, false});
#pragma omp parallel num_threads(threads)
  work(Worker{&barrier, omp_get_thread_num(), omp_get_num_threads(), false});
}

// Calls work(worker, scratch) on every thread. Each has memory of its own, which Scratch::cut cuts
// for `owner`.
template <class Scratch, class Owner, class Work>
static void on_threads_with(int threads, const Owner& owner, const Work& work) {
  Scratch counted;
  Cutter size(nullptr);
  counted.cut(size, owner);
  Memory memory(size.used() * threads);
  on_threads(threads, [&](const Worker& worker) {
    Scratch mine;
    Cutter own(memory.data() + size.used() * worker.index);
    mine.cut(own, owner);
    work(worker, mine);
  });
}

} // namespace
