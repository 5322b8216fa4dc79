#include "cpu/proxy_anchor_kernels.h"

#include "common/ranked_list.h"
#include "cpu/pair_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

// Lanes of log-sum-exp of one proxy, merged into its sums.
template <class T>
struct LogSum {
  using V = Vec<T>;
  V sum{T(0)}, max{static_cast<T>(kNoMaximum)};

  DML_INLINE void add(typename Simd<T>::M members, V score) {
    const V top = dml::max(max, select(members, score, V(kNoMaximum)));
    sum = fma(sum, exp(max - top), select(members, exp(score - top), V(0)));
    max = top;
  }
  void merge_into(T& total, T& total_max) const {
    alignas(64) T lane_sum[Simd<T>::lanes], lane_max[Simd<T>::lanes];
    const T lane_top = largest(max), top = lane_top > total_max ? lane_top : total_max;
    store(lane_sum, sum * exp(max - V(top)));
    store(lane_max, exp(V(total_max) - V(top)));
    T added = 0;
    for (int lane = 0; lane < Simd<T>::lanes; ++lane) added += lane_sum[lane];
    total = total * lane_max[0] + added;
    total_max = top;
  }
};

template <class T>
void forward(const ProxyAnchorProblem<T>& p, int64_t i, int64_t j, int64_t part, int64_t parts) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  alignas(64) T s[kTile * kTileStride];
  const PairTile<T> tile(p.q, p.g, false, i, j);
  tile.dot_products(s);
  const int64_t length = parts * p.q.padded;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.i0 + r;
    LogSum<T> pos, neg;
    for (int64_t c = 0; c < tile.cols; c += L) {
      const V similarity = load<V>(s + r * kTileStride + c);
      const auto real = load<V>(p.g.norms + tile.j0 + c) < V(kFar<T>);
      const auto same = tile.same_class(row, tile.j0 + c);
      neg.add(without(real, same), proxy_score(similarity, p.loss, false));
      if (any(same)) pos.add(same, proxy_score(similarity, p.loss, true));
    }
    T* const at = p.sums + part * p.q.padded + row;
    pos.merge_into(at[kProxyPosSum * length], at[kProxyPosMax * length]);
    neg.merge_into(at[kProxyNegSum * length], at[kProxyNegMax * length]);
  }
}

template <class T>
void backward(const ProxyAnchorProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  alignas(64) T s[kTile * kTileStride];
  const PairTile<T> tile(p.q, p.g, false, i, j);
  tile.dot_products(s);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.i0 + r;
    const V pos_log_sum(p.pos_log_sum[row]), neg_log_sum(p.neg_log_sum[row]);
    for (int64_t c = 0; c < tile.cols; c += L) {
      T* const at = s + r * kTileStride + c;
      const V similarity = load<V>(at);
      const auto real = load<V>(p.g.norms + tile.j0 + c) < V(kFar<T>);
      const auto same = tile.same_class(row, tile.j0 + c);
      const V negative =
          proxy_gradient(proxy_score(similarity, p.loss, false), neg_log_sum, V(p.neg_share), p.loss, false);
      V weight = select(without(real, same), negative, V(0));
      if (any(same)) {
        const V score = proxy_score(similarity, p.loss, true);
        weight = select(same, proxy_gradient(score, pos_log_sum, V(p.pos_share), p.loss, true), weight);
      }
      store(at, weight);
    }
  }
  TileWeights<T> all;
  all.columns = all.dense = true;
  all.weights_g = nullptr;
  for (bool& strip : all.row_active) strip = true;
  for (bool& strip : all.col_active) strip = true;
  add_tile(tile, s, s, all, p.rows_q + part * p.q.padded * p.q.stride, p.rows_g);
}

template <class T>
ProxyAnchorKernels<T> table() {
  return {forward<T>, backward<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
ProxyAnchorKernels<float> ProxyAnchorKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
ProxyAnchorKernels<double> ProxyAnchorKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
