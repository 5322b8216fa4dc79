#pragma once
// The chosen positives of the queries, for whoever needs them.

#include "cuda/nearest_positive.h"
#include "cuda/pair_launcher.h"

namespace dml {

// squared, distance (may be null), index (M,) by the caller's rows: nearest positives, or farthest ones.
template <class T>
void choose_positives(const PairArguments& a, const PairsOnDevice<T>& pairs, bool farthest, T* squared, int64_t* index,
                      Stream stream, T* distance = nullptr) {
  const int64_t m = a.queries(), n = a.gallery();
  const auto [row_labels, row_order] = stable_sort(a.labels);
  const auto [col_labels, col_order] =
      a.self() ? std::array<Tensor, 2>{row_labels, row_order} : stable_sort(*a.ref_labels);
  PairSides<T> sides = pairs.sides;
  sides.a.order = data<int64_t>(row_order);
  sides.b.order = data<int64_t>(col_order);
  // Few tiles of columns share a class with a tile of rows; one huge class makes them all, which the splits share.
  const int64_t splits = column_splits((m + kTile - 1) / kTile, (n + kTile - 1) / kTile);
  const Tensor best = empty(a.embeddings, {splits, m}, compute_type(a.embeddings));
  const Tensor best_index = empty(a.embeddings, {splits, m}, ScalarType::Long);
  select_pairs<T>(pairs.precision, sides,
                  Selection<T>{true, farthest, nullptr, nullptr, data<int64_t>(row_labels), data<int64_t>(col_labels)},
                  splits, data<T>(best), data<int64_t>(best_index), stream);
  finish_selection<T>(pairs.precision,
                      SelectedRows<T>{sides, data<T>(best), data<int64_t>(best_index), splits, pairs.queries.states(),
                                      pairs.gallery().flag(), farthest, squared, distance, index},
                      stream);
}

}  // namespace dml
