#include "common/nearest_positive.h"
#include "cpu/triplet_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

// Semi-hard: the lanes in `left` to one positive of one query, one by one since few get here.
template <class T>
DML_INLINE void offer(Vec<T> distance, uint32_t left, const int32_t* index, T& best, int32_t& best_index) {
  alignas(64) T d[Simd<T>::lanes];
  store(d, distance);
  for (; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (!wins(d[lane], index[lane], best, best_index, false)) continue;
    best = d[lane];
    best_index = index[lane];
  }
}

template <class T>
void choose(const TripletProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  alignas(64) T s[kTile * kTileStride];
  const NegativeTile<T> n(p, i, j, s, nullptr);
  const PairTile<T>& tile = n.tile;
  const auto at = [&](int64_t slot) { return (part * p.slots + slot) * p.q.padded; };
  for (int64_t r = 0; r < tile.rows; ++r) {
    const OwnPositives<T> own(p, tile.i0 + r);
    for (int k = 0; k < own.count; ++k) {
      const int64_t to = at(own.slot[k]) + tile.i0 + r;
      if (n.nearest[r] > p.nearest[to]) continue;
      const V positive(own.distance[k]);
      for (int64_t c = 0; c < tile.cols; c += L) {
        const V d = load<V>(n.row(r) + c);
        const auto chance = both(beyond_positive(d, positive), can_win(d, V(p.nearest[to]), false));
        if (any(chance)) offer<T>(d, bits(chance), p.g.index + tile.j0 + c, p.nearest[to], p.nearest_index[to]);
      }
    }
  }
  for (int64_t c = 0; n.mirrored() && c < tile.cols; c += L)
    for (int64_t k = 0; k < p.slots; ++k) {
      const V positive = load<V>(p.positives + k * p.q.padded + tile.j0 + c);
      if (largest(positive) == -INFINITY) continue;
      T* const to = p.nearest + at(k) + tile.j0 + c;
      int32_t* const to_index = p.nearest_index + at(k) + tile.j0 + c;
      V best = load<V>(to);
      for (int64_t r = 0; r < tile.rows; ++r) {
        const V d = load<V>(n.row(r) + c);
        auto better = both(both(beyond_positive(d, positive), can_win(d, best, false)), positive > V(-INFINITY));
        if (!any(better)) continue;
        // A tie goes to the lower row of the caller's.
        const int32_t own = p.q.index[tile.i0 + r];
        better = without(better, without(d == best, greater_int<V>(to_index, own)));
        best = select(better, d, best);
        store_int_where(to_index, better, own);
      }
      store(to, best);
    }
}

// The distances of one tile of queries to their positives: each strip meets the panels of its classes only.
template <class T>
void positives(const TripletProblem<T>& p, int64_t tile) {
  using V = Vec<T>;
  constexpr int W = panel_width<T>, R = Simd<T>::strip, L = Simd<T>::lanes;
  const PairView<T> pairs{p.q, p.g, p.self};
  const int64_t i0 = tile * kTile, i1 = p.q.n - i0 < kTile ? p.q.n : i0 + kTile, d = p.q.d;
  const auto begin = [&](int64_t i) { return p.class_begin[i] + p.first_slot; };
  const auto end = [&](int64_t i) { return p.class_end[i] < begin(i) + p.slots ? p.class_end[i] : begin(i) + p.slots; };
  alignas(64) T s[R * W], distance[L];
  for (int64_t i = i0; i < i1; i += R) {
    const int64_t last = (i1 - i < R ? i1 : i + R) - 1;
    for (int64_t j0 = begin(i) / W * W; j0 < end(last); j0 += W) {
      strip_product<T, false>(p.q.panels + i / W * d * W + i % W, 1, W, p.g.panels + j0 / W * d * W, W, d, s, W);
      for (int64_t row = i; row <= last; ++row)
        for (int c = 0; c < W; c += L) {
          const int64_t j = j0 + c;
          if (j + L <= begin(row) || j >= end(row)) continue;
          const auto chosen = without(pairs.same_class(row, j), pairs.excluded(row, j));
          if (!any(chosen)) continue;
          store(distance, sqrt(pairs.template squared<true>(load<V>(s + (row - i) * W + c), row, j)));
          for (uint32_t left = bits(chosen); left != 0; left &= left - 1) {
            const int lane = __builtin_ctz(left);
            const int64_t at = j + lane;
            if (at >= begin(row) && at < end(row)) p.positives[(at - begin(row)) * p.q.padded + row] = distance[lane];
          }
        }
    }
  }
}

template <class T>
TripletSelectionKernels<T> table() {
  return {positives<T>, choose<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
TripletSelectionKernels<float> TripletSelectionKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
TripletSelectionKernels<double> TripletSelectionKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
