#pragma once
// Kernels of the Ranked List Loss as the launcher calls them.

#include "common/ranked_list.h"
#include "cuda/pairs.h"

namespace dml {

struct RankedListProblem {
  RankedSet pos, neg;
  double pos_weight, neg_weight;
  double epsilon;  // what eps_mode adds to the denominators for each row of the gallery
  bool easy, apart, running, normalize;
};

constexpr int kRankedSums = 6;     // sum, moment, maximum of the positives and of the negatives
constexpr int kRankedFactors = 6;  // scale, level, log_denom of the positives and of the negatives
constexpr int kRankedTotals = 4;   // counts and summed distances of the pairs of both sets

// sums (kRankedSums, splits, M); symmetric: (kRankedSums, 1, M) zeros that are added to. block_totals (row tiles *
// splits, kRankedTotals).
template <class T>
void ranked_list_statistics(Precision precision, const PairSides<T>& sides, const RankedListProblem& problem, bool self,
                            bool symmetric, int64_t splits, T* sums, unsigned char* active, T* block_totals,
                            Stream stream);

template <class T>
struct RankedListRows {
  const T* sums;
  int64_t splits, count;
  const T* block_totals;
  int64_t blocks;
  const RowState* state;
  const SideFlags* gallery;
  T *loss, *row_stats, *totals;  // (M,), (4, M), (4,)
};
template <class T>
void ranked_list_finish(const RankedListProblem& problem, const RankedListRows<T>& rows, Stream stream);

// factors (kRankedFactors, M): what the gradient of a row needs (csrc/common/ranked_list.h: RowGradient).
template <class T>
void ranked_list_factors(const RankedListProblem& problem, int64_t count, const T* grad, const T* row_stats, T* factors,
                         Stream stream);

// Which ends of a pair send a gradient to the rows of the stripe: that of the row, and that of the column.
struct RankedListEnds {
  bool row, col;
};
template <class T>
void ranked_list_weights(Precision precision, const PairSides<T>& sides, const RankedListProblem& problem,
                         RankedListEnds ends, const T* factors, int64_t queries, const Stripe& stripe, int64_t splits,
                         T* weight_sums, Stream stream);

}  // namespace dml
