#pragma once
// The options of pair_loss and what its backward is given, checked.

#include <algorithm>
#include <cmath>

#include "common/pair_arguments.h"
#include "common/pair_loss.h"
#include "common/tile_schedule.h"

namespace dml {

struct PairLossOptions {
  std::string value_name;
  std::optional<int64_t> classes;
  PairSide pos, neg;
  bool weight_grad;
  std::string grad;
  bool apart;

  void check(const char* op) const {
    check_choice(op, "value", value_name, {"similarity", "distance", "squared"});
    check_choice(op, "grad", grad, {"full", "query"});
  }
  PairValue value() const {
    return value_name == "similarity" ? PairValue::similarity
           : value_name == "distance" ? PairValue::distance
                                      : PairValue::squared;
  }
  bool both_ends() const { return grad == "full"; }
  const PairSide& side(bool positive) const { return positive ? pos : neg; }
};

inline PairTerm pair_term(const char* op, const char* argument, const std::string& name) {
#define DML_NAME(name, type) #name,
  check_choice(op, argument, name, {"none", DML_PAIR_TERMS(DML_NAME) "exp", "moment"});
#undef DML_NAME
#define DML_KIND(kind, type) \
  if (name == #kind) return PairTerm::kind;
  DML_PAIR_TERMS(DML_KIND)
#undef DML_KIND
  return name == "none" ? PairTerm::none : name == "exp" ? PairTerm::exp : PairTerm::moment;
}

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

inline void check_bounds(const char* op, const std::optional<Tensor>& bounds, const PairLossOptions& o,
                         const PairArguments& a) {
  if (!bounds) return;
  const bool moment = o.pos.term == PairTerm::moment || o.neg.term == PairTerm::moment;
  DML_CHECK(!moment, op, "bounds", "None with a term moment", *bounds);
  DML_CHECK(bounds->dim() == 2 && bounds->size(0) == 2 && bounds->size(1) == a.queries(), op, "bounds", "(2, M)",
            *bounds);
  const ScalarType type = compute_type(a.embeddings);
  DML_CHECK(bounds->scalar_type() == type, op, "bounds", text(type), bounds->scalar_type());
}

inline void check_pair_loss_state(const char* op, const PairArguments& a, const Tensor& grad_stats,
                                  const Tensor& grad_log_sums, const Tensor& grad_sums, const Tensor& stats,
                                  const Tensor& log_sums, const Tensor& active, bool need_grad_ref) {
  const int64_t m = a.queries(), n = a.gallery();
  const ScalarType type = compute_type(a.embeddings);
  const auto check = [&](const char* name, const Tensor& x) {
    DML_CHECK(x.dim() == 2 && x.size(0) == 2 && x.size(1) == m, op, name, "(2, M)", x);
    DML_CHECK(x.scalar_type() == type, op, name, text(type), x.scalar_type());
  };
  check("grad_stats", grad_stats);
  check("grad_log_sums", grad_log_sums);
  check("grad_sums", grad_sums);
  check("stats", stats);
  check("log_sums", log_sums);
  DML_CHECK(active.dim() == 2 && active.size(0) == (m + kTile - 1) / kTile && active.size(1) == (n + kTile - 1) / kTile,
            op, "tile_active", "(ceil(M/128), ceil(N/128))", active);
  DML_CHECK(active.scalar_type() == ScalarType::Byte, op, "tile_active", "uint8", active.scalar_type());
  DML_CHECK(!a.self() || !need_grad_ref, op, "need_grad_ref", "false without ref_emb", std::string("true"));
}

}  // namespace dml
