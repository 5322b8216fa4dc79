#pragma once
// Products of tiles. Packed rows stand twice: as panels [panel][k][W], which serve as both sides of F Fᵀ, and (for a
// gradient) row-major. Every dot product is one chain of multiply-adds over ascending k, wherever its rows lie, so
// equal rows give equal bits, and s_ij = s_ji.

#include "common/pairwise.h"
#include "common/tile_schedule.h"
#include "cpu/kernel_table.h"
#include "cpu/simd.h"

namespace dml {
inline namespace DML_ISA {

template <class T>
constexpr int panel_width = Simd<T>::lanes * Simd<T>::panel_vectors;

// Row stride of a tile in memory: not a multiple of 4096 bytes over a few rows, or they would share cache sets.
constexpr int kTileStride = kTile + 16;

// c[r][0..W) (+)= sum_k a[r * a_row + k * a_k] * b[k * b_k + 0..W) for r < strip.
template <class T, bool Accumulate>
DML_INLINE void strip_product(const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t b_k, int64_t depth, T* c,
                              int64_t c_row) {
  using V = Vec<T>;
  constexpr int R = Simd<T>::strip, P = Simd<T>::panel_vectors, L = Simd<T>::lanes;
  V acc[R][P];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) acc[r][p] = Accumulate ? load<V>(c + r * c_row + p * L) : V(0);
  for (int64_t k = 0; k < depth; ++k) {
    V column[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) column[p] = load<V>(b + k * b_k + p * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V row(a[r * a_row + k * a_k]);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) acc[r][p] = fma(row, column[p], acc[r][p]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) store(c + r * c_row + p * L, acc[r][p]);
}

// Rows i0.. of q against rows j0.. of g, both from the start of a panel; n and m are padded to whole strips and panels.
template <class T>
inline void similarity_tile(const RowsView<T>& q, int64_t i0, int64_t n, const RowsView<T>& g, int64_t j0, int64_t m,
                            T* s) {
  constexpr int W = panel_width<T>, R = Simd<T>::strip;
  const int64_t d = q.d;
  // A panel of columns stays in the nearest cache while the strips of rows pass.
  for (int64_t j = 0; j < m; j += W)
    for (int64_t i = 0; i < n; i += R) {
      const T* a = q.panels + (i0 + i) / W * d * W + (i0 + i) % W;
      strip_product<T, false>(a, 1, W, g.panels + (j0 + j) / W * d * W, W, d, s + i * kTileStride + j, kTileStride);
    }
}

// out[r] += sum_k w[r * w_row + k * w_k] * x[k] for the strips of rows that have a weight; width: columns of x and out.
template <class T>
inline void add_weighted_rows(const T* w, int64_t w_row, int64_t w_k, int64_t n, int64_t depth,
                              const bool* strip_active, const T* x, T* out, int64_t stride, int64_t width) {
  constexpr int W = panel_width<T>, R = Simd<T>::strip;
  for (int64_t k = 0; k < width; k += W)
    for (int64_t r = 0; r < n; r += R)
      if (strip_active[r / R])
        strip_product<T, true>(w + r * w_row, w_row, w_k, x + k, stride, depth, out + r * stride + k, stride);
}

// sum_k (f_k - g_k)^2 of row i of q and the rows j.. of g, one vector of them, in the order of common/pairwise.h.
template <class T>
inline Vec<T> difference_form(const RowsView<T>& q, int64_t i, const RowsView<T>& g, int64_t j) {
  using V = Vec<T>;
  constexpr int W = panel_width<T>;
  const T* a = q.panels + i / W * q.d * W + i % W;
  const T* b = g.panels + j / W * g.d * W + j % W;
  V sums[kPartialSums];
  for (V& sum : sums) sum = V(0);
  for (int64_t first = 0; first < q.d; first += kPartialSums)
    for (int64_t k = first; k < q.d && k < first + kPartialSums; ++k) {
      const V t = V(a[k * W]) - load<V>(b + k * W);
      sums[k - first] = sums[k - first] + t * t;
    }
  return add_halves(sums);
}

}  // namespace DML_ISA
}  // namespace dml
