#pragma once
// One tile of pairs: which rows it has, which pairs it leaves out, their distances, and the sums of weighted rows.

#include "cpu/tile.h"

namespace dml {
inline namespace DML_ISA {

// Pairs of a packed query row i and a vector of packed gallery rows j...
template <class T>
struct PairView {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  const RowsView<T>&q, &g;
  bool self;

  DML_INLINE M same_class(int64_t i, int64_t j) const { return equal_int<V>(g.classes + j, q.classes[i]); }
  // The pair (i, i) of self mode, and pairs of equal ids.
  DML_INLINE M excluded(int64_t i, int64_t j) const {
    const int64_t own = i - j;
    const M itself = lane_mask<V>(self && own >= 0 && own < Simd<T>::lanes ? 1u << own : 0u);
    return q.ids == nullptr ? itself : either(itself, equal_int<V>(g.ids + j, q.ids[i]));
  }
  DML_INLINE V norms(int64_t i, int64_t j) const { return V(q.norms[i]) + load<V>(g.norms + j); }
  // Squared distances from dot products; near-duplicates in difference form, which excluded pairs do not need.
  template <bool MayExclude>
  DML_INLINE V squared(V dot, int64_t i, int64_t j) const {
    const V sum_of_norms = norms(i, j), product = product_form(dot, sum_of_norms);
    M near = is_near(product, sum_of_norms);
    if (MayExclude) near = without(near, excluded(i, j));
    return corrected(product, near, i, j);
  }
  DML_INLINE V corrected(V product, M near, int64_t i, int64_t j) const {
    if (__builtin_expect(any(near), false)) return select(near, difference_form(q, i, g, j), product);
    return product;
  }
};

template <class T>
struct PairTile : PairView<T> {
  int64_t i, j, i0, j0, rows, padded_rows, cols;  // cols is padded: the norms of the padding keep it out of every set
  bool diagonal;                                  // self mode, i = j
  bool mixed;  // may hold positives or excluded pairs; otherwise every pair is a negative

  DML_INLINE PairTile(const RowsView<T>& q, const RowsView<T>& g, bool self, int64_t i, int64_t j)
      : PairView<T>{q, g, self}, i(i), j(j), i0(i * kTile), j0(j * kTile), diagonal(self && i == j) {
    rows = q.n - i0 < kTile ? q.n - i0 : kTile;
    padded_rows = q.padded - i0 < kTile ? q.padded - i0 : kTile;
    cols = g.padded - j0 < kTile ? g.padded - j0 : kTile;
    const int64_t last = (g.n - j0 < kTile ? g.n : j0 + kTile) - 1;
    // Rows are sorted by class, so a tile off the classes' diagonal holds negatives only.
    mixed = q.classes == nullptr || q.ids != nullptr ||
            (q.classes[i0] <= g.classes[last] && g.classes[j0] <= q.classes[i0 + rows - 1]);
  }
  // The largest squared norm of the query rows, and of the gallery rows.
  DML_INLINE T longest_query() const { return largest_of(this->q.norms + i0, rows); }
  DML_INLINE T longest() const { return largest_of(this->g.norms + j0, this->g.n - j0 < cols ? this->g.n - j0 : cols); }
  static DML_INLINE T largest_of(const T* norms, int64_t n) {
    T top = 0;
    for (int64_t k = 0; k < n; ++k) top = norms[k] > top ? norms[k] : top;
    return top;
  }
  // Every dot product of the tile, (padded_rows, cols) with row stride kTileStride.
  DML_INLINE void dot_products(T* s) const { similarity_tile(this->q, i0, padded_rows, this->g, j0, cols, s); }
};

// Under one pair in kSparse with a weight, adding rows one by one beats the product with the whole tile.
constexpr int kSparse = 10;

template <class T>
struct TileWeights {
  bool columns;  // the gallery rows get a gradient
  bool dense;
  T* weights_g;
  bool row_active[kTile / 4 + 1] = {}, col_active[kTile / 4 + 1] = {};  // by strips
};

// out += sum of w * x over the listed rows, chunks of the width in registers.
template <int C, class T>
DML_INLINE void add_listed_chunk(const int* list, const T* w, int count, const T* x, int64_t stride, T* out) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  V acc[C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) acc[c] = load<V>(out + c * L);
  for (int e = 0; e < count; ++e)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[c] = fma(V(w[e]), load<V>(x + list[e] * stride + c * L), acc[c]);
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) store(out + c * L, acc[c]);
}

template <class T>
DML_INLINE void add_listed_rows(const int* list, const T* w, int count, const T* x, int64_t stride, int64_t width,
                                T* out) {
  constexpr int L = Simd<T>::lanes;
  int64_t k = 0;
  for (; k + 8 * L <= width; k += 8 * L) add_listed_chunk<8>(list, w, count, x + k, stride, out + k);
  for (; k < width; k += L) add_listed_chunk<1>(list, w, count, x + k, stride, out + k);
}

// The non-zero weights of one row of a tile, as a list.
template <class T>
DML_INLINE int list_weights(const T* w, int64_t n, int* list, T* values) {
  using V = Vec<T>;
  int count = 0;
  for (int64_t c = 0; c < n; c += Simd<T>::lanes)
    for (uint32_t left = bits(load<V>(w + c) != V(0)); left != 0; left &= left - 1) {
      list[count] = static_cast<int>(c) + __builtin_ctz(left);
      values[count] = w[list[count]];
      ++count;
    }
  return count;
}

// rows_q[i] += sum_j s_ij g_j and, where the gallery gets a gradient, rows_g[j] += sum_i back_ij f_i.
template <class T>
inline void add_tile(const PairTile<T>& tile, const T* s, const T* back, const TileWeights<T>& w, T* rows_q,
                     T* rows_g) {
  const int64_t stride = tile.g.stride, width = (tile.g.d + panel_width<T> - 1) / panel_width<T> * panel_width<T>;
  const T *f = tile.q.rows + tile.i0 * stride, *g = tile.g.rows + tile.j0 * stride;
  T *out_q = rows_q + tile.i0 * stride, *out_g = rows_g + tile.j0 * stride;
  if (w.dense) {
    add_weighted_rows(s, kTileStride, 1, tile.padded_rows, tile.cols, w.row_active, g, out_q, stride, width);
    if (w.columns) add_weighted_rows(back, 1, kTileStride, tile.cols, tile.rows, w.col_active, f, out_g, stride, width);
    return;
  }
  int list[kTile];
  T values[kTile];
  for (int64_t r = 0; r < tile.rows; ++r) {
    if (!w.row_active[r / Simd<T>::strip]) continue;
    int count = list_weights(s + r * kTileStride, tile.cols, list, values);
    add_listed_rows(list, values, count, g, stride, width, out_q + r * stride);
    if (!w.columns) continue;
    if (back != s) count = list_weights(back + r * kTileStride, tile.cols, list, values);
    const int own = static_cast<int>(r);
    for (int e = 0; e < count; ++e) add_listed_rows(&own, values + e, 1, f, stride, width, out_g + list[e] * stride);
  }
}

}  // namespace DML_ISA
}  // namespace dml
