#pragma once
// Kernels of SoftTriple on one tile of centers and embeddings. Centers are the rows of a tile and embeddings its
// columns, so that the lanes of a vector are embeddings and the centers of a class are a loop.

#include "common/soft_triple.h"
#include "cpu/kernel_table.h"

namespace dml {

// Forward sums of an embedding, each (parts, padded): of e^(logit - max) over the other classes, max, the own logit.
enum SoftTripleSum { kOtherSum, kOtherMax, kOwnLogit };
constexpr int kSoftTripleSums = kOwnLogit + 1;

template <class T>
struct SoftTripleProblem {
  RowsView<T> centers, embeddings;  // whole classes of centers in each tile
  SoftTriple loss;
  int64_t classes;
  const int32_t* labels;  // (padded embeddings), -1 in the padding

  T* sums;  // forward: kSoftTripleSums arrays

  const T *log_sum, *miss, *scale;  // backward: (padded embeddings); scale = la * incoming gradient
  T *rows_c, *rows_x;               // (padded centers, stride), (parts, padded embeddings, stride)
};

template <class T>
struct SoftTripleKernels {
  // Tile i of the embeddings and j of the centers.
  void (*forward)(const SoftTripleProblem<T>& problem, int64_t i, int64_t j, int64_t part, int64_t parts);
  void (*backward)(const SoftTripleProblem<T>& problem, int64_t i, int64_t j, int64_t part);

  template <Isa isa>
  static SoftTripleKernels make();
};

}  // namespace dml
