#pragma once
// Kernels of the distance-weighted negatives as the launcher calls them.

#include "common/distance_weighted.h"
#include "cuda/pairs.h"

namespace dml {

// Rows first.. of side a, some at a time, and by row of them and column tile: the largest score of the candidates (-inf
// without any), and the sum of their weights relative to it.
template <class T>
struct WeightSums {
  int64_t first, count, col_tiles;  // first is a multiple of the tile
  T *largest, *sums;                // (count, col_tiles)
};

template <class T>
void sum_weights(Precision precision, const PairSides<T>& sides, const DistanceDensity& density,
                 const WeightSums<T>& sums, int64_t splits, Stream stream);

struct Draws {
  const double* uniforms;  // (rows of side a, samples)
  int64_t samples;
  const int32_t* gallery_non_finite;  // not 0: nobody draws
  int64_t* index;                     // (rows of side a, samples)
};

template <class T>
void draw_negatives(Precision precision, const PairSides<T>& sides, const DistanceDensity& density,
                    const WeightSums<T>& sums, const Draws& draws, Stream stream);

}  // namespace dml
