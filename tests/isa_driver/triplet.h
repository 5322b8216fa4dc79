#pragma once
// The kernels of the triplet loss against loops in double.

#include <algorithm>

#include "common/nearest_positive.h"
#include "cpu/triplet_kernels.h"
#include "isa_driver/data.h"

namespace {

// The triplets of every positive: their sums, what the negatives and the positives get, and the semi-hard negatives.
template <class T>
void run_triplet(const RowsView<T>& rows, const std::vector<double>& unit, bool soft, double tolerance) {
  const TileSchedule schedule = TileSchedule::make(kRows, kRows, true);
  const ClassRanges ranges(rows.classes);
  TripletProblem<T> p{};
  p.q = p.g = rows;
  p.self = p.both_ends = true;
  p.soft = soft;
  p.margin = static_cast<T>(kMargin);
  p.class_begin = ranges.begin.data();
  p.class_end = ranges.end.data();
  p.slots = (kRows / kClasses + 1 + kSlotGroup - 1) / kSlotGroup * kSlotGroup;
  p.col_tiles = schedule.col_tiles;
  std::vector<unsigned char> active(schedule.row_tiles * schedule.col_tiles);
  p.active = active.data();
  const int64_t length = p.slots * rows.padded;
  p.positives = aligned<T>(length);
  p.nearest = aligned<T>(length);
  p.nearest_exact = aligned<T>(length);
  p.nearest_row = aligned<int32_t>(length);
  p.share = static_cast<T>(tie_share(kWidth, sizeof(T) == 4 ? 1.2e-7 : 2.3e-16));
  std::fill_n(p.positives, length, static_cast<T>(-INFINITY));
  std::fill_n(p.nearest, length, static_cast<T>(1e9));
  std::fill_n(p.nearest_exact, length, static_cast<T>(NAN));
  std::fill_n(p.nearest_row, length, -1);
  p.cost = aligned<double>(rows.padded);
  p.nonzero = aligned<int64_t>(rows.padded);
  p.negatives = aligned<int64_t>(rows.padded);
  T* const grad = aligned<T>(rows.padded);
  std::fill_n(grad, kRows, T(1));
  p.grad = grad;
  p.slopes = aligned<T>(length);
  p.rows_q = p.rows_g = aligned<T>(rows.padded * rows.stride);
  p.weights_q = p.weights_g = aligned<T>(rows.padded);
  const auto& kernel = kernels<TripletKernels<T>>();
  const auto& selection = kernels<TripletSelectionKernels<T>>();
  for (int64_t i = 0; i < schedule.row_tiles; ++i) selection.positives(p, i);
  for_each_tile(schedule, [&](const TilePair& t) { kernel.forward(p, t.row, t.col, t.part); });
  for_each_tile(schedule, [&](const TilePair& t) { selection.choose(p, t.row, t.col, t.part); });
  for_each_tile(schedule, [&](const TilePair& t) { kernel.backward(p, t.row, t.col, t.part); });

  const auto slope = [&](double x) { return soft ? 1 / (1 + std::exp(-x)) : x > 0 ? 1.0 : 0.0; };
  // Of an anchor and a distance: the slopes of all of its positives.
  const auto slopes = [&](int64_t i, double d) {
    double sum = 0;
    for (int64_t k = ranges.begin[i]; k < ranges.end[i]; ++k)
      if (k != i) sum += slope(distance(unit, i, k) + kMargin - d);
    return sum;
  };
  for (int64_t i = 0; i < kRows; ++i) {
    double cost = 0, gradient = 0;
    for (int64_t j = 0; j < kRows; ++j) {
      if (rows.classes[i] == rows.classes[j]) continue;
      const double d = distance(unit, i, j);
      for (int64_t k = ranges.begin[i]; k < ranges.end[i]; ++k) {
        const double x = distance(unit, i, k) + kMargin - d;
        if (k != i) cost += soft ? std::log1p(std::exp(x)) : std::fmax(x, 0);
      }
      gradient -= (slopes(i, d) + slopes(j, d)) / d * unit[j * kWidth];
    }
    const double got = p.rows_q[i * rows.stride];
    expect(std::fabs(p.cost[i] - cost) < tolerance * (1 + cost), "triplets", p.cost[i], cost);
    expect(std::fabs(got - gradient) < 30 * tolerance * (1 + cost), "their gradient", got, gradient);
    for (int64_t k = ranges.begin[i]; k < ranges.end[i]; ++k) {
      if (k == i) continue;
      const int64_t at = (k - ranges.begin[i]) * rows.padded + i;
      double pull = 0, nearest = std::sqrt(1e9);  // of no negative
      for (int64_t j = 0; j < kRows; ++j) {
        const double d = distance(unit, i, j), positive = distance(unit, i, k);
        if (rows.classes[i] == rows.classes[j]) continue;
        pull += slope(positive + kMargin - d);
        if (d > positive) nearest = std::fmin(nearest, d);
      }
      expect(std::fabs(p.slopes[at] - pull) < tolerance * (1 + pull), "a positive's slopes", p.slopes[at], pull);
      const double got = std::sqrt(p.nearest[at]);
      expect(std::fabs(got - nearest) < tolerance * nearest, "semi-hard negative", got, nearest);
    }
  }
}

}  // namespace
