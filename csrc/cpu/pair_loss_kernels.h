#pragma once
// Kernels of the row statistics of pair losses on one tile of pairs.

#include "common/pair_loss.h"
#include "cpu/kernel_table.h"

namespace dml {

// Arrays of per-row sums of one side, each (parts, padded rows of q).
enum PairSum { kPairStat, kPairMax, kPairMoment, kPairTotal, kPairMembers, kPairSlope };
constexpr int kPairSums = kPairSlope + 1;
// Arrays of per-row gradient factors of one side, each (padded rows of q): dL/dv of a pair is
// weight * (scale + linear * (x - level)) + add, with the weight of its term. The log is the row's log-sum-exp where
// maxima are running; otherwise it is folded into scale and linear.
enum PairFactor { kPairScale, kPairLinear, kPairLevel, kPairLog, kPairAdd };
constexpr int kPairFactors = kPairAdd + 1;

template <class T>
struct PairLossSide {
  PairSide side;
  MomentLimit limit;  // of a moment
  bool running;
  double shift;      // of every score, without running maxima
  const T* bounds;   // (padded q), or null: the base of the side
  T* sums;           // forward: kPairSums arrays
  const T* factors;  // backward: kPairFactors arrays
};

template <class T>
struct PairLossProblem {
  RowsView<T> q, g;  // the same rows in self mode
  PairLossSide<T> pos, neg;
  PairValue value;
  bool self;       // tile (i, j), i < j, stands for (j, i) too
  bool apart;      // coincident pairs are excluded
  bool both_ends;  // the gradient of a pair reaches its gallery row
  int64_t col_tiles;
  unsigned char* active;  // (row_tiles, col_tiles): 1 where a pair takes part

  T *rows_q, *rows_g;        // (parts, padded q, stride), (padded g, stride): sums of weight * other row
  T *weights_q, *weights_g;  // (parts, padded q), (padded g): sums of the weights
};

template <class T>
struct PairLossKernels {
  void (*forward)(const PairLossProblem<T>& problem, int64_t i, int64_t j, int64_t part, int64_t parts);
  void (*backward)(const PairLossProblem<T>& problem, int64_t i, int64_t j, int64_t part);

  template <Isa isa>
  static PairLossKernels make();
};

}  // namespace dml
