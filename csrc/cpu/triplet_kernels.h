#pragma once
// Kernels of the triplet loss with all positives. Gallery rows are sorted by class, so that the positives of a query
// are one range, which the passes take in slots: slot s of a pass is the positive class_begin + first_slot + s.

#include "cpu/kernel_table.h"

namespace dml {

// Slots of a pass: a multiple of so many, which meet a distance at a time, and at most kMostSlots.
constexpr int64_t kSlotGroup = 4, kMostSlots = 1024;

template <class T>
struct TripletProblem {
  RowsView<T> q, g;  // the same rows in self mode
  bool self, soft;
  T margin;
  const int64_t *class_begin, *class_end;  // by query: gallery rows of its class
  int64_t first_slot, slots;
  T* positives;  // (slots, padded q) distances, -inf where the slot has no positive
  int64_t col_tiles;
  unsigned char* active;  // (row_tiles, col_tiles): 1 where a triplet with a negative in the tile costs something

  // Forward, each (parts, padded q).
  double* cost;
  int64_t *nonzero, *negatives;  // negatives: null after the first pass

  // Semi-hard: the chosen negatives, each (parts, slots, padded q).
  T share;                     // tie_share
  T *nearest, *nearest_exact;  // squared distances, and their difference forms, NaN until asked for
  int32_t* nearest_row;        // packed gallery rows, -1 for none

  // Backward.
  bool both_ends;            // the gradient of a pair reaches its gallery row
  const T* grad;             // (padded q) incoming gradients
  T* slopes;                 // (parts, slots, padded q): sums over the negatives of a positive
  T *rows_q, *rows_g;        // (parts, padded q, stride), (padded g, stride): sums of weight * other row
  T *weights_q, *weights_g;  // (parts, padded q), (padded g): sums of the weights
};

template <class T>
struct TripletKernels {
  // Of one tile of pairs: the triplets of its negatives; the weights of the negatives.
  void (*forward)(const TripletProblem<T>& problem, int64_t i, int64_t j, int64_t part);
  void (*backward)(const TripletProblem<T>& problem, int64_t i, int64_t j, int64_t part);
  // out += sum of w * x over the listed rows.
  void (*add_rows)(const int* list, const T* w, int count, const T* x, int64_t stride, int64_t width, T* out);

  template <Isa isa>
  static TripletKernels make();
};

template <class T>
struct TripletSelectionKernels {
  // The distances of one tile of queries to their positives in the slots of the pass; no two tiles share a row.
  void (*positives)(const TripletProblem<T>& problem, int64_t i);
  // The semi-hard negatives of one tile of pairs.
  void (*choose)(const TripletProblem<T>& problem, int64_t i, int64_t j, int64_t part);
  // The negatives of the parts become those of the first one.
  void (*merge)(const TripletProblem<T>& problem, int64_t parts);

  template <Isa isa>
  static TripletSelectionKernels make();
};

}  // namespace dml
