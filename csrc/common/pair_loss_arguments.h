#pragma once
// What the operators of pair_loss give, and what their arguments say.

#include <algorithm>
#include <cmath>
#include <tuple>

#include "common/pair_arguments.h"
#include "common/pair_loss.h"

namespace dml {

// stats, log_sums, sums, members, slopes, tile_active.
using Statistics = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline PairValue pair_value(const std::string& name) {
  return name == "similarity" ? PairValue::similarity : name == "distance" ? PairValue::distance : PairValue::squared;
}

inline PairTerm pair_term(const std::string& name) {
#define DML_KIND(kind, type) \
  if (name == #kind) return PairTerm::kind;
  DML_PAIR_TERMS(DML_KIND)
#undef DML_KIND
  return name == "none" ? PairTerm::none : name == "exp" ? PairTerm::exp : PairTerm::moment;
}

struct PairLossOptions {
  PairValue value;
  PairSide pos, neg;
  bool weight_grad, both_ends, apart, neg_totals;

  template <class Taken>
  explicit PairLossOptions(const Taken& a)
      : value(pair_value(a.value)),
        pos{pair_term(a.pos_term), a.pos_scale, a.pos_base, a.pos_ramp, a.pos_origin, a.pos_temperature},
        neg{pair_term(a.neg_term), a.neg_scale, a.neg_base, a.neg_ramp, a.neg_origin, a.neg_temperature},
        weight_grad(a.weight_grad),
        both_ends(a.grad == "full"),
        apart(a.apart),
        neg_totals(a.neg_totals) {}
  const PairSide& side(bool positive) const { return positive ? pos : neg; }
};

// What a backward is given beside the arguments of its forward, contiguous.
struct PairLossState {
  Tensor grad_stats, grad_log_sums, grad_sums, stats, log_sums, active;

  explicit PairLossState(const operators::pair_loss_bwd& a)
      : grad_stats(as_contiguous(a.grad_stats)),
        grad_log_sums(as_contiguous(a.grad_log_sums)),
        grad_sums(as_contiguous(a.grad_sums)),
        stats(as_contiguous(a.stats)),
        log_sums(as_contiguous(a.log_sums)),
        active(as_contiguous(a.tile_active)) {}
};

// Range of the scores of unit rows.
struct ScoreRange {
  double low, high;
};

inline ScoreRange score_range(const PairSide& side, PairValue value) {
  const double least = value == PairValue::similarity ? -1 : 0;
  const double most = value == PairValue::similarity ? 1 : value == PairValue::distance ? 2 : 4;
  if (side.term == PairTerm::moment) {
    // Only x > 0 counts.
    const double top = std::max({0.0, side.scale * (least - side.base), side.scale * (most - side.base)});
    return ScoreRange{std::min(0.0, side.temperature * top), std::max(0.0, side.temperature * top)};
  }
  const auto score = [&](double v) {
    const double ramp = side.ramp == 0 ? 1 : std::max(side.ramp * (v - side.origin), 0.0);
    return side.scale * ramp * (v - side.base);
  };
  ScoreRange range{score(least), score(least)};
  // With a ramp the score is quadratic, with its extremum halfway between the zeros.
  for (const double v : {most, side.base, side.origin, (side.base + side.origin) / 2}) {
    if (v < least || v > most) continue;
    range.low = std::min(range.low, score(v));
    range.high = std::max(range.high, score(v));
  }
  return range;
}

// Half the range beyond which maxima are running: whatever is subtracted, e^score of all gallery rows leaves float32 at
// 87 on either end, and the gradient of a mean over many rows times its inverse would be lost at 80 already.
constexpr double kScoreRange = 64;

// What is subtracted from every score of a side: constant, or a maximum that is kept as the pairs go by.
struct ScoreShift {
  bool running;
  double shift;
};

inline ScoreShift score_shift(const PairSide& side, PairValue value, bool normalize, int64_t gallery) {
  if (!side.scored()) return ScoreShift{false, 0};
  const ScoreRange range = score_range(side, value);
  const double half = (range.high - range.low) / 2,
               log_n = std::log(static_cast<double>(std::max<int64_t>(gallery, 1)));
  const bool running = !normalize || half + log_n >= kScoreRange;
  return ScoreShift{running, running ? 0 : range.low + half};
}

}  // namespace dml
