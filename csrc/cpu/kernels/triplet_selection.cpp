#include "cpu/contest.h"
#include "cpu/triplet_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

template <class T>
BestRow<T> best_of(const TripletProblem<T>& p, int64_t at) {
  return {p.nearest[at], p.nearest_exact[at], p.nearest_row[at]};
}

// Gallery row j, at this distance, to query i and its positive in a slot.
template <class T>
inline void offer(const TripletProblem<T>& p, int64_t i, int64_t j, T distance, int64_t slot, int64_t part) {
  const Contest<T> contest{p.q, p.g, p.share, false, true};
  const T positive = p.positives[slot * p.q.padded + i], squared = distance * distance;
  if (contest.beyond(i, j, squared, p.class_begin[i] + p.first_slot + slot, positive * positive))
    contest.offer(i, j, squared, best_of(p, (part * p.slots + slot) * p.q.padded + i));
}

// The distances that may be beyond a positive and not beyond the nearest negative so far.
template <class V>
struct Reach {
  V from, to;

  DML_INLINE Reach(V positive, V nearest, V band)
      : from(sqrt(max(positive * positive - band, V(0)))), to(sqrt(nearest + band)) {}
  DML_INLINE auto holds(V distance) const { return both(from <= distance, distance <= to); }
};

template <class T>
void choose(const TripletProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  alignas(64) T s[kTile * kTileStride], distance[L];
  const NegativeTile<T> n(p, i, j, s, nullptr);
  const PairTile<T>& tile = n.tile;
  const T longest = tile.longest();
  const auto at = [&](int64_t slot) { return (part * p.slots + slot) * p.q.padded; };
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.i0 + r;
    const OwnPositives<T> own(p, row);
    const V band(p.share * (p.q.norms[row] + longest));
    for (int k = 0; k < own.count; ++k) {
      const T& nearest = p.nearest[at(own.slot[k]) + row];
      Reach<V> reach(V(own.distance[k]), V(nearest), band);
      if (!any(V(n.nearest[r]) <= reach.to)) continue;
      for (int64_t c = 0; c < tile.cols; c += L) {
        const V d = load<V>(n.row(r) + c);
        const auto chance = reach.holds(d);
        if (!any(chance)) continue;
        store(distance, d);
        for (uint32_t left = bits(chance); left != 0; left &= left - 1) {
          const int lane = __builtin_ctz(left);
          offer(p, row, tile.j0 + c + lane, distance[lane], own.slot[k], part);
        }
        reach = Reach<V>(V(own.distance[k]), V(nearest), band);
      }
    }
  }
  for (int64_t c = 0; n.mirrored() && c < tile.cols; c += L) {
    const int64_t column = tile.j0 + c;
    const V band = V(p.share) * (load<V>(p.q.norms + column) + V(tile.longest_query()));
    for (int64_t k = 0; k < p.slots; ++k) {
      const V positive = load<V>(p.positives + k * p.q.padded + column);
      if (largest(positive) == -INFINITY) continue;
      const auto there = positive > V(-INFINITY);
      Reach<V> reach(positive, load<V>(p.nearest + at(k) + column), band);
      for (int64_t r = 0; r < tile.rows; ++r) {
        const V d = load<V>(n.row(r) + c);
        const auto chance = both(reach.holds(d), there);
        if (!any(chance)) continue;
        store(distance, d);
        for (uint32_t left = bits(chance); left != 0; left &= left - 1) {
          const int lane = __builtin_ctz(left);
          offer(p, column + lane, tile.i0 + r, distance[lane], k, part);
        }
        reach = Reach<V>(positive, load<V>(p.nearest + at(k) + column), band);
      }
    }
  }
}

template <class T>
void merge(const TripletProblem<T>& p, int64_t parts) {
  const Contest<T> contest{p.q, p.g, p.share, false, true};
  const int64_t length = p.slots * p.q.padded;
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t at = 0; at < length; ++at) {
      const BestRow<T> other = best_of(p, part * length + at);
      if (other.row >= 0) contest.offer(at % p.q.padded, other.row, other.squared, best_of(p, at));
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
  return {positives<T>, choose<T>, merge<T>};
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
