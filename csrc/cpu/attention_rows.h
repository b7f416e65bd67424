// Scores of a row and its softmax: in which units they are kept, and what is kept of a row.
#pragma once

#include "../attention_args.h"
#include "vec_math.h"

namespace {

using namespace fastseq;

// What a stored score is worth. A score that is q·k and nothing else is stored as that product:
// what the scale and the exponent's unit would round goes into differences alone, which are small.
template <class A>
struct ScoreUnit {
  bool raw;
  A factor;       // exponent units
  double natural; // natural units
};
template <class A, class Args>
static ScoreUnit<A> score_unit(const Args& a) {
  const double unit = exponent_unit(A()), steps = a.scale * unit;
  const bool raw = a.softcap == 0 && !a.alibi && a.mask.type == MASK_NONE && //
                   steps > 0x1p-60 && steps < 0x1p60;
  return raw ? ScoreUnit<A>{true, (A)steps, a.scale} : ScoreUnit<A>{false, 1, 1 / unit};
}

// A row's log-sum-exp, and what its weights are made from: e^((score - peak) factor) share. Both
// have no rounded sum in them, which among large scores would be off by more than the weights.
// These are the row's largest score, the logarithm of the sum of the weights over it, and that
// sum's reciprocal, 0 where the row sees no key.
template <class A, class Args>
FASTSEQ_INLINE void write_row(const Args& a, const ScoreUnit<A>& unit, int64_t at, A largest,
                              A log_total, A share) {
  const bool none = share == 0; // NaN goes on
  ((A*)a.lse)[at] = none ? (A)-__builtin_inf() : (A)(largest * unit.natural + log_total);
  if (!a.norm) return;
  ((A*)a.norm)[2 * at] = none ? (A)__builtin_inf() : largest;
  ((A*)a.norm)[2 * at + 1] = share;
}

// The same numbers; from the log-sum-exp where it came alone.
template <class A>
static void read_row(const AttentionArgs& a, const ScoreUnit<A>& unit, int64_t at, A* peak,
                     A* share) {
  if (a.norm) {
    *peak = ((const A*)a.norm)[2 * at], *share = ((const A*)a.norm)[2 * at + 1];
    return;
  }
  const A lse = ((const A*)a.lse)[at];
  const bool none = lse == -__builtin_inf();
  *peak = none ? (A)__builtin_inf() : (A)(lse / unit.natural);
  *share = none ? 0 : (A)__builtin_exp(*peak * unit.natural - lse);
}

} // namespace
