#include "cpu/nearest_positive_kernels.h"

#include "common/nearest_positive.h"
#include "cpu/pair_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

// Offers the lanes in `left` to one row; few get here, so one by one.
template <class T>
DML_INLINE void offer(Vec<T> squared, uint32_t left, const int32_t* index, bool farthest, T& best,
                      int32_t& best_index) {
  alignas(64) T value[Simd<T>::lanes];
  store(value, squared);
  for (; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (!wins(value[lane], index[lane], best, best_index, farthest)) continue;
    best = value[lane];
    best_index = index[lane];
  }
}

template <class T>
void positives(const SelectionProblem<T>& p, int64_t tile) {
  using V = Vec<T>;
  constexpr int W = panel_width<T>, R = Simd<T>::strip, L = Simd<T>::lanes;
  const PairView<T> pairs{p.q, p.g, p.self};
  const int64_t i0 = tile * kTile, i1 = p.q.n - i0 < kTile ? p.q.n : i0 + kTile, d = p.q.d;
  alignas(64) T s[R * W];
  int32_t position[L];
  // Rows and gallery are sorted by class: each strip of rows meets the panels of its own classes only.
  for (int64_t j0 = p.class_begin[i0] / W * W; j0 < p.class_end[i1 - 1]; j0 += W)
    for (int64_t i = i0; i < i1; i += R) {
      const int64_t last = (i1 - i < R ? i1 : i + R) - 1;
      if (p.class_begin[i] >= j0 + W || p.class_end[last] <= j0) continue;
      strip_product<T, false>(p.q.panels + i / W * d * W + i % W, 1, W, p.g.panels + j0 / W * d * W, W, d, s, W);
      for (int64_t row = i; row <= last; ++row)
        for (int c = 0; c < W; c += L) {
          const int64_t j = j0 + c;
          const auto candidates = without(pairs.same_class(row, j), pairs.excluded(row, j));
          if (!any(candidates)) continue;
          const V squared = pairs.template squared<true>(load<V>(s + (row - i) * W + c), row, j);
          const auto chance = both(candidates, can_win(squared, V(p.best[row]), p.farthest));
          if (!any(chance)) continue;
          for (int lane = 0; lane < L; ++lane) position[lane] = static_cast<int32_t>(j) + lane;
          offer<T>(squared, bits(chance), position, p.farthest, p.best[row], p.best_index[row]);
        }
    }
}

template <bool Mixed, class T>
void negative_tile(const SelectionProblem<T>& p, const PairTile<T>& tile, int64_t part, const T* s) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  T* const best = p.best + part * p.q.padded;
  int32_t* const best_index = p.best_index + part * p.q.padded;
  const bool columns = p.self && !tile.diagonal;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    const V limit(p.beyond == nullptr ? T(-1) : p.beyond[i]);
    for (int64_t c = 0; c < tile.cols; c += L) {
      const int64_t j = tile.j0 + c;
      const V squared = tile.template squared<Mixed>(load<V>(s + r * kTileStride + c), i, j);
      auto to_row = both(can_win(squared, V(best[i]), false), beyond_positive(squared, limit));
      const V column_best = columns ? load<V>(best + j) : V(-1);
      auto to_column = can_win(squared, column_best, false);
      if (columns && p.beyond != nullptr) to_column = both(to_column, beyond_positive(squared, load<V>(p.beyond + j)));
      if (!any(either(to_row, to_column))) continue;
      if (Mixed) {
        const auto out = either(tile.same_class(i, j), tile.excluded(i, j));
        to_row = without(to_row, out);
        to_column = without(to_column, out);
      }
      if (any(to_row)) offer<T>(squared, bits(to_row), p.g.index + j, false, best[i], best_index[i]);
      if (!columns) continue;
      // A tie goes to the lower row of the caller's.
      const auto tie = squared == column_best;
      to_column = without(to_column, without(tie, greater_int<V>(best_index + j, p.q.index[i])));
      store_where(best + j, to_column, squared);
      store_int_where(best_index + j, to_column, p.q.index[i]);
    }
  }
}

template <class T>
void negatives(const SelectionProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  alignas(64) T s[kTile * kTileStride];
  const PairTile<T> tile(p.q, p.g, p.self, i, j);
  tile.dot_products(s);
  tile.mixed ? negative_tile<true>(p, tile, part, s) : negative_tile<false>(p, tile, part, s);
}

template <class T>
SelectionKernels<T> table() {
  return {positives<T>, negatives<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
SelectionKernels<float> SelectionKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
SelectionKernels<double> SelectionKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
