#pragma once
// Kernels that weigh the negatives of a query by their distances. Rows stand in the caller's order, so that a walk over
// packed gallery rows is a walk over ascending indices.

#include "common/distance_weighted.h"
#include "cpu/kernel_table.h"

namespace dml {

template <class T>
struct DistanceWeightedProblem {
  RowsView<T> q, g;  // the same rows in self mode
  bool self;
  DistanceDensity density;
};

template <class T>
struct DistanceWeightedKernels {
  // Of each query of one tile of pairs: the largest score (-inf without candidates), and the sum of the weights
  // relative to it; one number each, `stride` apart.
  void (*tile_sums)(const DistanceWeightedProblem<T>& problem, int64_t i, int64_t j, T* largest, T* sums,
                    int64_t stride);
  // The weights, relative to e^largest, of one packed query and the gallery rows of tile j: kTile numbers, 0 for those
  // that are no candidates.
  void (*row_weights)(const DistanceWeightedProblem<T>& problem, int64_t row, int64_t j, T largest, T* weights);

  template <Isa isa>
  static DistanceWeightedKernels make();
};

}  // namespace dml
