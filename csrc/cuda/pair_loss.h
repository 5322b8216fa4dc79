#pragma once
// Kernels of the row statistics of pair losses as the launcher calls them.

#include "common/pair_loss.h"
#include "cuda/pairs.h"

namespace dml {

struct PairLossProblem {
  PairTerm term;
  PairValue value;
  PairSide pos, neg;
  double pos_shift, neg_shift;  // what is subtracted from every score, unless maxima are running
  bool has_pos, has_neg, running, normalize, self;
  bool sorted;  // both sides are in the order of their labels, and only positives count
};

// What a row adds up on each side: the term, the values, members and slopes, and the running maximum if there is one.
DML_HD constexpr int pair_sums(bool running) { return running ? 5 : 4; }

// bounds (2, M) or null. sums (2, pair_sums, splits, M); symmetric: one copy of zeros that is added to.
template <class T>
void pair_loss_statistics(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem,
                          const T* bounds, bool symmetric, int64_t splits, T* sums, unsigned char* active,
                          Stream stream);

template <class T>
struct PairLossRows {
  const T* sums;
  int64_t splits, count;
  const int64_t* order;  // the caller's row of each, or null
  const RowState* state;
  const int32_t* gallery_non_finite;
  T *stats, *totals, *members, *slopes;  // (2, M) by the caller's rows
};
template <class T>
void pair_loss_finish(const PairLossProblem& problem, const PairLossRows<T>& rows, Stream stream);

// Of each side of a row (M,): what the gradient takes the term's times, what it takes the value's times, and the
// log-sum-exp, which counts with running maxima; without, it is in the first.
constexpr int kPairFactors = 3;
// factors (2, kPairFactors, M) from what is (2, M).
template <class T>
void pair_loss_factors(const PairLossProblem& problem, int64_t count, const T* grad_stats, const T* grad_sums,
                       const T* stats, T* factors, Stream stream);

// Which ends of a pair send a gradient to the rows of the stripe: that of the row, and that of the column.
struct PairEnds {
  bool row, col;
};
template <class T>
void pair_loss_weights(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem, PairEnds ends,
                       const T* factors, const T* bounds, int64_t queries, const Stripe& stripe, int64_t splits,
                       T* weight_sums, Stream stream);

}  // namespace dml
