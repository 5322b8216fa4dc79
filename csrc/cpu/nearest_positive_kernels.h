#pragma once
// Kernels that select one positive or one negative for each row.

#include "cpu/kernel_table.h"

namespace dml {

template <class T>
struct SelectionProblem {
  RowsView<T> q, g;  // the same rows in self mode
  bool self;
  bool farthest;                           // positives: the farthest one
  const int64_t *class_begin, *class_end;  // positives: packed gallery rows of each query row's class
  const T* beyond;                         // negatives: squared distance to be farther than, or null
  const int32_t* beyond_row;               // and the packed gallery row that lies there
  T share;                                 // tie_share
  T *best, *exact;    // (parts, padded q) squared distance of the winner, and its difference form, NaN until asked for
  int32_t* best_row;  // (parts, padded q) packed gallery row of the winner, -1 for none
};

template <class T>
struct SelectionKernels {
  // The positives of one tile of query rows; no two tiles share a row.
  void (*positives)(const SelectionProblem<T>& problem, int64_t i);
  // The negatives of one tile of pairs.
  void (*negatives)(const SelectionProblem<T>& problem, int64_t i, int64_t j, int64_t part);
  // The winners of the parts become those of the first one.
  void (*merge)(const SelectionProblem<T>& problem, int64_t parts);

  template <Isa isa>
  static SelectionKernels make();
};

}  // namespace dml
