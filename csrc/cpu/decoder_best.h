// The most likely words of each row, found while the logits are still in registers.
#pragma once

#include "decoder_product.h"

namespace {

// What a panel adds to the sum of exponentials, and what a thread has found best so far. Neither
// depends on which thread takes which panel.
class Best {
public:
  void cut(Cutter& memory, int64_t rows, int64_t panels, int64_t k, int threads) {
    rows_ = rows, panels_ = panels, k_ = k, threads_ = threads;
    largest_ = memory.take<float>(rows * panels);
    sums_ = memory.take<float>(rows * panels);
    found_ = memory.take<Found>(threads * rows * k);
  }

  // For every row, before anything is put.
  void clear(int64_t row) const {
    for (int thread = 0; thread < threads_; ++thread)
      for (int64_t i = 0; i < k_; ++i)
        found_[(thread * rows_ + row) * k_ + i] = {-__builtin_inff(), INT64_MAX};
  }

  // Logits (count, COLUMNS) of rows from `first` on, of which the first `columns` are words.
  void put(int thread, int64_t first, int64_t count, int64_t panel, const float* logits,
           int64_t columns) const {
    for (int64_t row = first; row < first + count; ++row, logits += COLUMNS) {
      V most = splat(-__builtin_inff());
      for (int64_t i = 0; i < columns; i += L)
        most = larger(most, n_or_less(logits + i, columns - i));
      float largest = most[0];
      for (int i = 1; i < L; ++i) largest = most[i] > largest ? most[i] : largest;
      const float base = largest == -__builtin_inff() ? 0 : largest;
      V total = {};
      for (int64_t i = 0; i < columns; i += L)
        total += exponential((n_or_less(logits + i, columns - i) - base) * exponent_unit(float()));
      largest_[row * panels_ + panel] = largest;
      sums_[row * panels_ + panel] = sum<float>(total);
      Found* const list = found_ + (thread * rows_ + row) * k_;
      if (largest < list[k_ - 1].logit) continue;
      for (int64_t i = 0; i < columns; ++i) insert(list, {logits[i], panel * COLUMNS + i});
    }
  }

  // Log-probabilities and ids (k) of a row, best first; NaN and 0 where logits are NaN.
  void get(int64_t row, float* scores, int64_t* ids) const {
    float largest = -__builtin_inff();
    for (int64_t p = 0; p < panels_; ++p) {
      const float x = largest_[row * panels_ + p];
      largest = x > largest ? x : largest;
    }
    float total = 0;
    for (int64_t p = 0; p < panels_; ++p) {
      const float x = largest_[row * panels_ + p], of_panel = sums_[row * panels_ + p];
      if (of_panel != 0) total += of_panel * __builtin_expf(x - largest);
    }
    Found* const list = found_ + row * k_; // the first thread's takes in the others'
    for (int thread = 1; thread < threads_; ++thread)
      for (int64_t i = 0; i < k_; ++i) insert(list, found_[(thread * rows_ + row) * k_ + i]);
    const float log_total = largest + __builtin_logf(total);
    for (int64_t i = 0; i < k_; ++i) {
      const bool found = list[i].id != INT64_MAX;
      scores[i] = found ? list[i].logit - log_total : __builtin_nanf("");
      ids[i] = found ? list[i].id : 0;
    }
  }

private:
  struct Found {
    float logit;
    int64_t id;
    bool before(const Found& other) const {
      return logit > other.logit || (logit == other.logit && id < other.id);
    }
  };
  void insert(Found* list, Found x) const {
    if (!x.before(list[k_ - 1])) return;
    int64_t i = k_ - 1;
    for (; i > 0 && x.before(list[i - 1]); --i) list[i] = list[i - 1];
    list[i] = x;
  }
  static FASTSEQ_INLINE_MEMBER V n_or_less(const float* p, int64_t n) {
    if (n >= L) return load(p);
    return ones_upto<float>(n) > 0 ? load(p, n) : splat(-__builtin_inff());
  }

  int64_t rows_, panels_, k_;
  int threads_;
  float *largest_, *sums_; // (rows, panels)
  Found* found_;           // (threads, rows, k)
};

} // namespace
