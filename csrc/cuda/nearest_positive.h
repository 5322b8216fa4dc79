#pragma once
// Kernels of the selections (nearest positive, hardest or semi-hard pairs) as the launcher calls them.

#include "cuda/pairs.h"

namespace dml {

template <class T>
struct Selection {
  bool positives, farthest;
  // Negatives, by the caller's row: the squared distance that a candidate must exceed, or null, and who lies there.
  const T* beyond;
  const int64_t* beyond_index;
  // Positives: both sides are in the order of their labels, and a tile of rows meets the columns of its own classes.
  const int64_t *row_labels, *col_labels;  // sorted
};

// best, best_index (splits, rows): of each row, in the order of side a, over the columns of each split.
template <class T>
void select_pairs(Precision precision, const PairSides<T>& sides, const Selection<T>& selection, int64_t splits,
                  T* best, int64_t* best_index, Stream stream);

template <class T>
struct SelectedRows {
  PairSides<T> sides;
  const T* best;
  const int64_t* best_index;
  int64_t splits;
  const RowState* state;
  const int32_t* gallery_non_finite;
  bool farthest;
  T *squared, *distance;  // by the caller's row, where not null; squared is infinite without a choice
  int64_t* index;
};
template <class T>
void finish_selection(Precision precision, const SelectedRows<T>& rows, Stream stream);

// The pairs (i, index_i) of a list with the gradients of their distances.
template <class T>
struct ListedPairs {
  const int64_t* index;          // (queries,), -1: none
  const T* grad;                 // (queries,)
  const int64_t *sorted, *from;  // index sorted, and the queries that the entries belong to
  T* weight;                     // (queries,) scratch
};

template <class T>
struct ListedSides {
  const void *x, *y;  // (queries, width), (gallery, width)
  const T *x_inverse, *y_inverse;
  int64_t queries, gallery, width;
};

// weight = grad / d, 0 for coincident points.
template <class T>
void listed_weights(Precision precision, const ListedSides<T>& sides, const ListedPairs<T>& list, Stream stream);

// Adds weights and weighted rows of the list to weight_sums and sums: of the query rows, or of the gallery rows.
template <class T>
void add_listed_rows(Precision precision, const ListedSides<T>& sides, const ListedPairs<T>& list, bool to_gallery,
                     T* sums, T* weight_sums, Stream stream);

}  // namespace dml
