#include "cpu/pairwise_kernels.h"

#include "cpu/pair_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

template <class T>
void forward(const PairwiseProblem<T>& p, int64_t i, int64_t j, T* out) {
  using V = Vec<T>;
  const PairTile<T> tile(p.q, p.g, p.same, i, j);
  tile.dot_products(out);
  if (p.metric == Metric::dot) return;
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t c = 0; c < tile.cols; c += Simd<T>::lanes) {
      T* const at = out + r * kTileStride + c;
      const V squared = tile.template squared<false>(load<V>(at), tile.i0 + r, tile.j0 + c);
      store(at, p.metric == Metric::squared ? squared : sqrt(squared));
    }
}

// Weight of (f_i - g_j): 2 grad for squared distances, grad / d for distances. For dot products grad weighs g_j alone.
template <class T>
void backward(const PairwiseProblem<T>& p, int64_t i, int64_t j, int64_t part, T* grad) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const double eps = sizeof(T) == 4 ? 1.1920928955078125e-07 : 2.220446049250313e-16;
  const PairTile<T> tile(p.q, p.g, p.same, i, j);
  alignas(64) T s[kTile * kTileStride];
  if (p.metric == Metric::euclidean) tile.dot_products(s);
  const bool columns = !tile.diagonal;
  for (int64_t r = 0; r < tile.rows && p.metric != Metric::dot; ++r) {
    V row_weight(0);
    for (int64_t c = 0; c < tile.cols; c += L) {
      T* const at = grad + r * kTileStride + c;
      const int64_t row = tile.i0 + r, col = tile.j0 + c;
      V weight = load<V>(at);
      if (p.metric == Metric::squared) {
        weight = weight + weight;
      } else {
        const V squared = tile.template squared<false>(load<V>(s + r * kTileStride + c), row, col);
        weight = weight * gradient_scale(squared, tile.norms(row, col), eps);
      }
      store(at, weight);
      row_weight = row_weight + weight;
      if (columns) store(p.weights_g + col, load<V>(p.weights_g + col) + weight);
    }
    p.weights_q[part * p.q.padded + tile.i0 + r] += sum(row_weight);
  }
  TileWeights<T> all;
  all.columns = columns;
  all.dense = true;
  all.weights_g = p.weights_g;
  for (bool& strip : all.row_active) strip = true;
  for (bool& strip : all.col_active) strip = true;
  add_tile(tile, grad, grad, all, p.rows_q + part * p.q.padded * p.q.stride, p.rows_g);
}

template <class T>
PairwiseKernels<T> table() {
  return {kTileStride, forward<T>, backward<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
PairwiseKernels<float> PairwiseKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
PairwiseKernels<double> PairwiseKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
