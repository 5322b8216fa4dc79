#pragma once
// Kernels of the Ranked List Loss on one tile of pairs.

#include "common/ranked_list.h"
#include "cpu/kernel_table.h"

namespace dml {

// Arrays of per-row sums, each (parts, padded rows of q).
enum RankedSum { kPosSum, kPosMoment, kPosMax, kNegSum, kNegMoment, kNegMax, kPosCount, kNegCount, kPosDist, kNegDist };
constexpr int kRankedSums = kNegDist + 1;
// Arrays of per-row gradient factors, each (padded rows of q).
enum RankedFactor { kPosScale, kPosLevel, kPosLogDenom, kNegScale, kNegLevel, kNegLogDenom };
constexpr int kRankedFactors = kNegLogDenom + 1;

template <class T>
struct RankedListProblem {
  RowsView<T> q, g;  // the same rows in self mode
  RankedSet pos, neg;
  bool self;       // tile (i, j), i < j, stands for (j, i) too
  bool easy;       // positives are chosen elsewhere: pairs of one class belong to no set here
  bool apart;      // coincident pairs belong to no set
  bool running;    // running maxima
  bool both_ends;  // the gradient of a pair reaches its gallery row
  int64_t col_tiles;
  unsigned char* active;  // (row_tiles, col_tiles): 1 where a tile has a pair in a set

  T* sums;  // forward: kRankedSums arrays

  const T* factors;          // backward: kRankedFactors arrays
  T *rows_q, *rows_g;        // (parts, padded q, stride), (padded g, stride): sums of weight * other row
  T *weights_q, *weights_g;  // (parts, padded q), (padded g): sums of the weights
};

template <class T>
struct RankedListKernels {
  void (*forward)(const RankedListProblem<T>& problem, int64_t i, int64_t j, int64_t part, int64_t parts);
  void (*backward)(const RankedListProblem<T>& problem, int64_t i, int64_t j, int64_t part);

  template <Isa isa>
  static RankedListKernels make();
};

}  // namespace dml
