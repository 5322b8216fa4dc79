#pragma once
// Kernels of pairwise similarity and distance as the launcher calls them.

#include "common/pairwise.h"
#include "cuda/pairs.h"

namespace dml {

// out (rows, columns) in the element of the rows.
template <class T>
void pairwise_values(Precision precision, const PairSides<T>& sides, Metric metric, void* out, Stream stream);

// The incoming gradient of pair (i, j) at i * row_stride + j * col_stride, in the element of the rows; of the pair
// (j, i) too where both sides are the same rows.
struct PairwiseGradient {
  const void* values;
  int64_t row_stride, col_stride;
  bool both;
};
template <class T>
void pairwise_weights(Precision precision, const PairSides<T>& sides, Metric metric, bool normalize,
                      const PairwiseGradient& grad, const Stripe& stripe, int64_t splits, T* weight_sums,
                      Stream stream);

}  // namespace dml
