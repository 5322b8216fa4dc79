#include "cpu/soft_triple_kernels.h"

#include "cpu/pair_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

// visit(class, its row in the tile) for the classes of tile j of the centers.
template <class T, class Visit>
DML_INLINE void for_each_class(const SoftTripleProblem<T>& p, int64_t j, const Visit& visit) {
  const int64_t per_tile = kTile / p.loss.per_class, first = j * per_tile;
  const int64_t count = p.classes - first < per_tile ? p.classes - first : per_tile;
  for (int64_t k = 0; k < count; ++k) visit(first + k, k * p.loss.per_class);
}

// Similarities of one class and a vector of embeddings, in a tile of dot products.
template <class T>
struct ClassColumn {
  T* s;
  DML_INLINE Vec<T> operator()(int64_t k) const { return load<Vec<T>>(s + k * kTileStride); }
};

template <class T>
void forward(const SoftTripleProblem<T>& p, int64_t i, int64_t j, int64_t part, int64_t parts) {
  using V = Vec<T>;
  alignas(64) T s[kTile * kTileStride];
  const PairTile<T> tile(p.centers, p.embeddings, false, j, i);
  tile.dot_products(s);
  const int64_t padded = p.embeddings.padded, length = parts * padded;
  for (int64_t c = 0; c < tile.cols; c += Simd<T>::lanes) {
    T* const at = p.sums + part * padded + tile.j0 + c;
    V sum = load<V>(at + kOtherSum * length), top = load<V>(at + kOtherMax * length);
    V own_logit = load<V>(at + kOwnLogit * length);
    const auto there = load<V>(p.embeddings.norms + tile.j0 + c) < V(kFar<T>);
    for_each_class(p, j, [&](int64_t label, int64_t row) {
      const V similarity = class_sums<V>(p.loss, ClassColumn<T>{s + row * kTileStride + c}).similarity();
      const auto own = equal_int<V>(p.labels + tile.j0 + c, static_cast<int32_t>(label));
      const V logit = V(p.loss.la) * (similarity - select(own, V(p.loss.margin), V(0)));
      add_logit(sum, top, without(there, own), logit);
      own_logit = select(own, logit, own_logit);
    });
    store(at + kOtherSum * length, sum);
    store(at + kOtherMax * length, top);
    store(at + kOwnLogit * length, own_logit);
  }
}

template <class T>
void backward(const SoftTripleProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  using V = Vec<T>;
  alignas(64) T s[kTile * kTileStride];
  const PairTile<T> tile(p.centers, p.embeddings, false, j, i);
  tile.dot_products(s);
  for (int64_t c = 0; c < tile.cols; c += Simd<T>::lanes) {
    const int64_t col = tile.j0 + c;
    const V log_sum = load<V>(p.log_sum + col), scale = load<V>(p.scale + col);
    const V own_slope = V(0) - scale * load<V>(p.miss + col);
    for_each_class(p, j, [&](int64_t label, int64_t row) {
      const ClassColumn<T> column{s + row * kTileStride + c};
      const ClassSums<V> sums = class_sums<V>(p.loss, column);
      const V similarity = sums.similarity();
      const auto own = equal_int<V>(p.labels + col, static_cast<int32_t>(label));
      const V slope = select(own, own_slope, other_slope(V(p.loss.la) * similarity, log_sum, scale));
      for (int64_t k = 0; k < p.loss.per_class; ++k)
        store(column.s + k * kTileStride, center_gradient(column(k), slope, similarity, sums, p.loss));
    });
  }
  // The rows of zeros that fill a tile up have dot products, and so weights, of 0.
  TileWeights<T> all;
  all.columns = all.dense = true;
  all.weights_g = nullptr;
  for (bool& strip : all.row_active) strip = true;
  for (bool& strip : all.col_active) strip = true;
  add_tile(tile, s, s, all, p.rows_c, p.rows_x + part * p.embeddings.padded * p.embeddings.stride);
}

template <class T>
SoftTripleKernels<T> table() {
  return {forward<T>, backward<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
SoftTripleKernels<float> SoftTripleKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
SoftTripleKernels<double> SoftTripleKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
