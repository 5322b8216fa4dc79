#pragma once
// Kernels of pairwise similarity and distance on one tile.

#include "common/pairwise.h"
#include "cpu/kernel_table.h"

namespace dml {

template <class T>
struct PairwiseProblem {
  RowsView<T> q, g;
  bool same;  // g is q: tile (i, j), i < j, stands for (j, i) too
  Metric metric;

  T *rows_q, *rows_g;        // backward: (parts, padded q, stride), (padded g, stride)
  T *weights_q, *weights_g;  // (parts, padded q), (padded g)
};

template <class T>
struct PairwiseKernels {
  int64_t tile_stride;
  // out: (kTile, tile_stride) results of tile (i, j).
  void (*forward)(const PairwiseProblem<T>& problem, int64_t i, int64_t j, T* out);
  // grad: (kTile, tile_stride) gradients of tile (i, j), with those of (j, i) added if `same`, 0 in the padding;
  // becomes the weights.
  void (*backward)(const PairwiseProblem<T>& problem, int64_t i, int64_t j, int64_t part, T* grad);

  template <Isa isa>
  static PairwiseKernels make();
};

}  // namespace dml
