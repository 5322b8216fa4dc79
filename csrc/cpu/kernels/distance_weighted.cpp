#include "cpu/distance_weighted_kernels.h"

#include "cpu/pair_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

// Scores of one query and a vector of gallery rows, -inf for those that are no candidates, and the roots beside them.
template <class T>
DML_INLINE DistanceWeight<Vec<T>> weigh(const PairView<T>& pairs, const DistanceDensity& density, Vec<T> dot, int64_t i,
                                        int64_t j) {
  using V = Vec<T>;
  const V squared = pairs.template squared<true>(dot, i, j);
  const auto candidates = without(is_candidate(squared, density), either(pairs.same_class(i, j), pairs.excluded(i, j)));
  if (!any(candidates)) return {V(-INFINITY), V(0)};
  // What is no candidate is weighed as if it were one: the logarithm asks for a positive number.
  const DistanceWeight<V> weight = distance_weight(select(candidates, squared, V(1)), density);
  return {select(candidates, weight.score, V(-INFINITY)), weight.root};
}

template <class T>
void tile_sums(const DistanceWeightedProblem<T>& p, int64_t ti, int64_t tj, T* largest_of, T* sums, int64_t stride) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  alignas(64) T s[kTile * kTileStride], scores[kTile], roots[kTile];
  const PairTile<T> tile(p.q, p.g, p.self, ti, tj);
  tile.dot_products(s);
  for (int64_t r = 0; r < tile.rows; ++r) {
    V most(-INFINITY);
    for (int64_t c = 0; c < tile.cols; c += L) {
      const V dot = load<V>(s + r * kTileStride + c);
      const DistanceWeight<V> weight = weigh<T>(tile, p.density, dot, tile.i0 + r, tile.j0 + c);
      store(scores + c, weight.score);
      store(roots + c, weight.root);
      most = max(most, weight.score);
    }
    const T top = largest(most);
    V total(0);
    if (top > -INFINITY)
      for (int64_t c = 0; c < tile.cols; c += L)
        total = fma(exp(load<V>(scores + c) - V(top)), load<V>(roots + c), total);
    largest_of[r * stride] = top;
    sums[r * stride] = sum(total);
  }
}

// Dot products of one query with C panels of gallery rows: the same chains of multiply-adds as in a tile.
template <int C, class T>
DML_INLINE void row_products(const T* a, const T* b, int64_t depth, T* to) {
  using V = Vec<T>;
  constexpr int W = panel_width<T>, P = Simd<T>::panel_vectors, L = Simd<T>::lanes;
  V acc[C * P];
#pragma GCC unroll 16
  for (int c = 0; c < C * P; ++c) acc[c] = V(0);
  for (int64_t k = 0; k < depth; ++k) {
    const V row(a[k * W]);
#pragma GCC unroll 16
    for (int c = 0; c < C * P; ++c) acc[c] = fma(row, load<V>(b + (c / P * depth + k) * W + c % P * L), acc[c]);
  }
#pragma GCC unroll 16
  for (int c = 0; c < C * P; ++c) store(to + c * L, acc[c]);
}

template <class T>
void row_weights(const DistanceWeightedProblem<T>& p, int64_t i, int64_t tj, T top, T* weights) {
  using V = Vec<T>;
  // Four panels of two vectors keep eight chains under way, what a core can.
  constexpr int W = panel_width<T>, L = Simd<T>::lanes, C = Simd<T>::panel_vectors == 2 ? 4 : 1;
  const PairView<T> pairs{p.q, p.g, p.self};
  const int64_t j0 = tj * kTile, cols = p.g.padded - j0 < kTile ? p.g.padded - j0 : kTile, d = p.q.d;
  const T *a = p.q.panels + i / W * d * W + i % W, *b = p.g.panels + j0 * d;
  alignas(64) T s[kTile];
  int64_t c = 0;
  for (; c + C * W <= cols; c += C * W) row_products<C>(a, b + c * d, d, s + c);
  for (; c < cols; c += W) row_products<1>(a, b + c * d, d, s + c);
  for (c = 0; c < cols; c += L) {
    const DistanceWeight<V> weight = weigh<T>(pairs, p.density, load<V>(s + c), i, j0 + c);
    store(weights + c, exp(weight.score - V(top)) * weight.root);
  }
  for (; c < kTile; ++c) weights[c] = 0;
}

template <class T>
DistanceWeightedKernels<T> table() {
  return {tile_sums<T>, row_weights<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
DistanceWeightedKernels<float> DistanceWeightedKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
DistanceWeightedKernels<double> DistanceWeightedKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
