#include "cpu/nearest_positive_kernels.h"

#include "cpu/contest.h"

namespace dml {
inline namespace DML_ISA {
namespace {

template <class T>
Contest<T> contest_of(const SelectionProblem<T>& p) {
  return {p.q, p.g, p.share, p.farthest, false};
}

template <class T>
BestRow<T> best_of(const SelectionProblem<T>& p, int64_t at) {
  return {p.best[at], p.exact[at], p.best_row[at]};
}

// The gallery rows j.. in `left` to query i; few get here, so one by one.
template <class T>
inline void offer(const SelectionProblem<T>& p, int64_t i, int64_t j, Vec<T> squared, uint32_t left, int64_t at) {
  const Contest<T> contest = contest_of(p);
  alignas(64) T value[Simd<T>::lanes];
  store(value, squared);
  for (; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (p.beyond == nullptr || contest.beyond(i, j + lane, value[lane], p.beyond_row[i], p.beyond[i]))
      contest.offer(i, j + lane, value[lane], best_of(p, at));
  }
}

// Query i as a candidate of the gallery rows j.. in `left`, which are queries too.
template <class T>
inline void offer_to_columns(const SelectionProblem<T>& p, int64_t i, int64_t j, Vec<T> squared, uint32_t left,
                             int64_t first) {
  for (; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    alignas(64) T value[Simd<T>::lanes];
    store(value, squared);
    offer<T>(p, j + lane, i, Vec<T>(value[lane]), 1, first + j + lane);
  }
}

template <class T>
void positives(const SelectionProblem<T>& p, int64_t tile) {
  using V = Vec<T>;
  constexpr int W = panel_width<T>, R = Simd<T>::strip, L = Simd<T>::lanes;
  const PairView<T> pairs{p.q, p.g, p.self};
  const int64_t i0 = tile * kTile, i1 = p.q.n - i0 < kTile ? p.q.n : i0 + kTile, d = p.q.d;
  alignas(64) T s[R * W];
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
          const V band = V(p.share) * pairs.norms(row, j);
          const auto chance = both(candidates, can_win(squared, V(p.best[row]), band, p.farthest));
          if (any(chance)) offer<T>(p, row, j, squared, bits(chance), row);
        }
    }
}

template <bool Mixed, class T>
void negative_tile(const SelectionProblem<T>& p, const PairTile<T>& tile, int64_t part, const T* s) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const int64_t first = part * p.q.padded;
  T* const best = p.best + first;
  const bool columns = p.self && !tile.diagonal;
  const T longest = tile.longest();
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    const T width = p.share * (p.q.norms[i] + longest);
    const V band(width), limit(p.beyond == nullptr ? T(-1) : p.beyond[i] - width);
    V reach(best[i] + width);
    for (int64_t c = 0; c < tile.cols; c += L) {
      const int64_t j = tile.j0 + c;
      const V squared = tile.template squared<Mixed>(load<V>(s + r * kTileStride + c), i, j);
      auto to_row = both(squared <= reach, beyond_positive(squared, limit));
      auto to_column = columns ? can_win(squared, load<V>(best + j), band, false) : lane_mask<V>(0);
      if (columns && p.beyond != nullptr)
        to_column = both(to_column, beyond_positive(squared, load<V>(p.beyond + j) - band));
      if (!any(either(to_row, to_column))) continue;
      if (Mixed) {
        const auto out = either(tile.same_class(i, j), tile.excluded(i, j));
        to_row = without(to_row, out);
        to_column = without(to_column, out);
      }
      if (any(to_row)) {
        offer<T>(p, i, j, squared, bits(to_row), first + i);
        reach = V(best[i] + width);
      }
      if (any(to_column)) offer_to_columns<T>(p, i, j, squared, bits(to_column), first);
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
void merge(const SelectionProblem<T>& p, int64_t parts) {
  const Contest<T> contest = contest_of(p);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < p.q.n; ++i) {
      const BestRow<T> other = best_of(p, part * p.q.padded + i);
      if (other.row >= 0) contest.offer(i, other.row, other.squared, best_of(p, i));
    }
}

template <class T>
SelectionKernels<T> table() {
  return {positives<T>, negatives<T>, merge<T>};
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
