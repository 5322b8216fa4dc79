// Runs the kernels that this processor chooses against loops in double, without torch, so that it starts under an
// emulated older processor: an instruction that leaked from another unit ends it with SIGILL. Prints the instruction
// set.

#include <cmath>
#include <cstdio>

#include "common/nearest_positive.h"
#include "cpu/distance_weighted_kernels.h"
#include "cpu/nearest_positive_kernels.h"
#include "cpu/pair_loss_kernels.h"
#include "cpu/pairwise_kernels.h"
#include "isa_driver/data.h"
#include "isa_driver/triplet.h"

namespace {

// What a pair adds under each term of x, and its derivative by x; of a moment, as under "exp", before the mean is
// taken.
double term_of(PairTerm term, double x) {
  switch (term) {
    case PairTerm::hinge:
      return std::fmax(x, 0);
    case PairTerm::softplus:
      return std::log1p(std::exp(x));
    case PairTerm::exp:
      return std::exp(x);
    default:
      return x > 0 ? x * std::exp(x) : 0;
  }
}
double slope_of(PairTerm term, double x) {
  switch (term) {
    case PairTerm::softplus:
      return 1 / (1 + std::exp(-x));
    case PairTerm::exp:
      return std::exp(x);
    case PairTerm::hinge:
      return x > 0;
    default:
      return x > 0 ? std::exp(x) : 0;
  }
}

template <class T>
void prepare_side(PairLossSide<T>& s, const PairSide& side, bool running, const RowsView<T>& rows) {
  s.side = side;
  s.limit = MomentLimit::make(side.scale, side.base, true);
  s.running = running;
  s.sums = aligned<T>(kPairSums * rows.padded);
  T* factors = aligned<T>(kPairFactors * rows.padded);
  for (int64_t i = 0; i < kRows; ++i) {
    factors[kPairScale * rows.padded + i] = side.term == PairTerm::exp ? 1 : side.scale;
    if (running) s.sums[kPairMax * rows.padded + i] = kNoScore;
  }
  s.factors = factors;
}

// Sums of distances under a term of the positives and one of the negatives, and their gradient.
template <class T>
void run_pair_loss(const RowsView<T>& rows, const std::vector<double>& unit, PairTerm positives, PairTerm negatives,
                   bool running, double tolerance) {
  const TileSchedule schedule = TileSchedule::make(kRows, kRows, true);
  PairLossProblem<T> p{};
  p.q = p.g = rows;
  p.value = PairValue::distance;
  p.self = p.both_ends = true;
  p.col_tiles = schedule.col_tiles;
  std::vector<unsigned char> active(schedule.row_tiles * schedule.col_tiles);
  p.active = active.data();
  prepare_side(p.pos, PairSide{positives, kTemperature, kAlpha - kMargin, 0, 0, 1}, running, rows);
  prepare_side(p.neg, PairSide{negatives, -kTemperature, kAlpha, 0, 0, 1}, running, rows);
  T* sums = aligned<T>(rows.padded * rows.stride);
  p.rows_q = p.rows_g = sums;
  p.weights_q = p.weights_g = aligned<T>(rows.padded);
  const auto& kernel = kernels<PairLossKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.forward(p, t.row, t.col, t.part, 1); });
  for_each_tile(schedule, [&](const TilePair& t) { kernel.backward(p, t.row, t.col, t.part); });
  for (int64_t i = 0; i < kRows; ++i) {
    double wanted[2] = {}, gradient = 0;
    for (int64_t j = 0; j < kRows; ++j) {
      if (j == i) continue;
      const bool positive = rows.classes[i] == rows.classes[j];
      const PairSide& side = positive ? p.pos.side : p.neg.side;
      const double d = distance(unit, i, j), x = side.scale * (d - side.base);
      wanted[positive ? 0 : 1] += term_of(side.term, x);
      gradient += 2 * side.scale * slope_of(side.term, x) / d * unit[j * kWidth];
    }
    double largest = 0;
    for (const bool positive : {true, false}) {
      const PairLossSide<T>& side = positive ? p.pos : p.neg;
      const auto sum = [&](PairSum k) { return static_cast<double>(side.sums[k * rows.padded + i]); };
      const double max = running && side.side.scored() ? sum(kPairMax) : 0;
      const double got = sum(side.side.term == PairTerm::moment ? kPairMoment : kPairStat) * std::exp(max);
      const double expected = wanted[positive ? 0 : 1];
      expect(std::fabs(got - expected) < tolerance * (1 + expected), "pair loss", got, expected);
      largest = std::fmax(largest, expected);
    }
    const double got = sums[i * rows.stride];
    expect(std::fabs(got - gradient) < 30 * tolerance * (1 + largest), "its gradient", got, gradient);
  }
}

// Weights of the negatives: their sums by tile, and one row of a tile again.
template <class T>
void run_distance_weighted(const RowsView<T>& rows, const std::vector<double>& unit, double tolerance) {
  constexpr double kCutoff = 1.3, kFar = 1.5;
  const DistanceWeightedProblem<T> p{rows, rows, true, DistanceDensity::make(kWidth, kCutoff, kFar)};
  const int64_t tiles = (kRows + kTile - 1) / kTile;
  T *largest = aligned<T>(kRows * tiles), *sums = aligned<T>(kRows * tiles), *weights = aligned<T>(kTile);
  const auto& kernel = kernels<DistanceWeightedKernels<T>>();
  for (int64_t tile = 0; tile < tiles * tiles; ++tile) {
    const int64_t at = tile / tiles * kTile * tiles + tile % tiles;
    kernel.tile_sums(p, tile / tiles, tile % tiles, largest + at, sums + at, tiles);
  }
  const auto weight = [&](int64_t i, int64_t j) {
    const double d = std::fmax(distance(unit, i, j), kCutoff);
    if (rows.classes[i] == rows.classes[j] || d >= kFar) return 0.0;
    return std::pow(d, 2 - kWidth) * std::pow(1 - d * d / 4, (3 - kWidth) / 2.0);
  };
  for (int64_t at = 0; at < kRows * tiles; ++at) {
    double wanted = 0;
    for (int64_t j = at % tiles * kTile; j < kRows && j < (at % tiles + 1) * kTile; ++j)
      wanted += weight(at / tiles, j);
    const double got = sums[at] * std::exp(static_cast<double>(largest[at]));
    expect(std::fabs(got - wanted) < 20 * tolerance * wanted, "drawing weights", got, wanted);
  }
  constexpr int64_t kRow = 7;
  kernel.row_weights(p, kRow, 1, largest[kRow * tiles + 1], weights);
  for (int64_t c = 0; c < kTile; ++c) {
    const double wanted = kTile + c < kRows ? weight(kRow, kTile + c) : 0;
    const double got = weights[c] * std::exp(static_cast<double>(largest[kRow * tiles + 1]));
    expect(std::fabs(got - wanted) <= 20 * tolerance * wanted, "drawing weight", got, wanted);
  }
}

template <class T>
void run(double tolerance) {
  std::vector<double> unit;
  const RowsView<T> rows = make_rows(kernels<RowsKernels<T>>(), unit);
  for (const PairTerm positives : {PairTerm::hinge, PairTerm::softplus, PairTerm::exp, PairTerm::moment})
    for (const PairTerm negatives : {PairTerm::hinge, PairTerm::softplus, PairTerm::exp, PairTerm::moment})
      for (const bool running : {false, true}) run_pair_loss(rows, unit, positives, negatives, running, tolerance);
  for (const bool soft : {false, true}) run_triplet(rows, unit, soft, tolerance);
  run_distance_weighted(rows, unit, tolerance);
  const TileSchedule schedule = TileSchedule::make(kRows, kRows, true);
  const auto each_tile = [&](auto&& body) { for_each_tile(schedule, body); };

  T *best = aligned<T>(rows.padded), *nearest = aligned<T>(rows.padded), *exact = aligned<T>(rows.padded);
  int32_t *best_index = aligned<int32_t>(rows.padded), *nearest_index = aligned<int32_t>(rows.padded);
  const ClassRanges ranges(rows.classes);
  for (int64_t i = 0; i < kRows; ++i) {
    best[i] = nearest[i] = kFar<T> / 2;
    exact[i] = NAN;
    best_index[i] = nearest_index[i] = -1;
  }
  const auto& select = kernels<SelectionKernels<T>>();
  const T share = static_cast<T>(tie_share(kWidth, sizeof(T) == 4 ? 1.2e-7 : 2.3e-16));
  const SelectionProblem<T> positive{rows,    rows,  true, false, ranges.begin.data(), ranges.end.data(), nullptr,
                                     nullptr, share, best, exact, best_index};
  for (int64_t i = 0; i < schedule.row_tiles; ++i) select.positives(positive, i);
  for (int64_t i = 0; i < kRows; ++i) exact[i] = NAN;
  const SelectionProblem<T> negative{rows,    rows,    true,  false,   nullptr, nullptr,
                                     nullptr, nullptr, share, nearest, exact,   nearest_index};
  each_tile([&](const TilePair& t) { select.negatives(negative, t.row, t.col, t.part); });

  const auto& pairwise = kernels<PairwiseKernels<T>>();
  T* tile = aligned<T>(kTile * pairwise.tile_stride);
  const PairwiseProblem<T> distances{rows, rows, true, Metric::euclidean, nullptr, nullptr, nullptr, nullptr};
  pairwise.forward(distances, 0, 1, tile);
  for (int64_t j = kTile; j < kRows; ++j) {
    const T got = tile[3 * pairwise.tile_stride + j - kTile];
    expect(std::fabs(got - distance(unit, 3, j)) < tolerance, "distance", got, distance(unit, 3, j));
  }

  for (int64_t i = 0; i < kRows; ++i) {
    double near_pos = 1e9, near_neg = 1e9;
    for (int64_t j = 0; j < kRows; ++j) {
      double& near = rows.classes[i] == rows.classes[j] ? near_pos : near_neg;
      if (j != i) near = std::fmin(near, distance(unit, i, j));
    }
    expect(std::fabs(std::sqrt(best[i]) - near_pos) < tolerance, "nearest positive", std::sqrt(best[i]), near_pos);
    expect(std::fabs(std::sqrt(nearest[i]) - near_neg) < tolerance, "nearest negative", std::sqrt(nearest[i]),
           near_neg);
  }
}

}  // namespace

int main() {
  run<float>(2e-5);
  run<double>(1e-12);
  std::printf("%s\n", isa_name(cpu_isa()));
  return failures == 0 ? 0 : 1;
}
