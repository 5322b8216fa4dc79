#pragma once
// Easy positives for other operations, and the gradient of listed distances.

#include "cpu/rows.h"

namespace dml {

// Chosen positive of each packed query: its packed gallery row (-1 for none) and squared distance.
template <class T>
struct ChosenPositives {
  Buffer<int32_t> row;
  Buffer<T> squared;
};

template <class T>
ChosenPositives<T> choose_positives(const PairRows<T>& rows, bool farthest);

// For every i with to[i] >= 0: w = weight[i] (f_i - g_to) adds to the sums of finish_gradient, sign -1, at row i of q
// and, unless sums_g is null, at row to[i] of g.
template <class T>
void add_listed_pairs(const RowsView<T>& q, const RowsView<T>& g, const int32_t* to, const T* weight, Buffer<T>& sums_q,
                      Buffer<T>& weights_q, Buffer<T>* sums_g, Buffer<T>* weights_g);

}  // namespace dml
