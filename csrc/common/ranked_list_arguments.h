#pragma once
// The options of ranked_list and what its backward is given, checked.

#include <algorithm>
#include <cmath>

#include "common/pair_arguments.h"
#include "common/tile_schedule.h"

namespace dml {

constexpr int64_t kRowStats = 4;  // log_denom_pos, log_denom_neg, loss_pos, loss_neg
constexpr double kPmlEps = 1e-5;

struct RankedListOptions {
  double alpha, margin, pos_temperature, neg_temperature, pos_weight, neg_weight;
  bool weight_grad;
  std::string grad, positive, eps_mode;

  void check(const char* op) const {
    check_choice(op, "grad", grad, {"full", "query"});
    check_choice(op, "positive", positive, {"all", "easy"});
    check_choice(op, "eps_mode", eps_mode, {"none", "pml"});
  }
  bool easy() const { return positive == "easy"; }
  bool apart() const { return eps_mode == "pml"; }
  // What every row of the gallery adds to a denominator.
  double epsilon() const { return apart() ? kPmlEps : 0; }
};

// e^(T v) of all gallery rows adds up below e^80, so that plain sums neither overflow nor vanish.
inline bool needs_running_maximum(const RankedListOptions& o, bool normalize, int64_t gallery) {
  const double log_n = std::log(static_cast<double>(std::max<int64_t>(gallery, 1)));
  const double negative = std::fabs(o.neg_temperature) * std::fabs(o.alpha);
  const double positive = std::fabs(o.pos_temperature) * std::fabs(2 - o.alpha + o.margin);
  return !normalize || negative + log_n >= 80 || positive + log_n >= 80;
}

inline void check_ranked_list_state(const char* op, const PairArguments& a, const RankedListOptions& o,
                                    const Tensor& grad_loss, const Tensor& row_stats, const Tensor& easy_index,
                                    const Tensor& active, bool need_grad_ref) {
  const int64_t m = a.queries(), n = a.gallery();
  const ScalarType type = compute_type(a.embeddings);
  check_vector(op, "grad_loss", grad_loss, m, type);
  DML_CHECK(row_stats.dim() == 2 && row_stats.size(0) == kRowStats && row_stats.size(1) == m, op, "row_stats", "(4, M)",
            row_stats);
  DML_CHECK(row_stats.scalar_type() == type, op, "row_stats", text(type), row_stats.scalar_type());
  DML_CHECK(active.dim() == 2 && active.size(0) == (m + kTile - 1) / kTile && active.size(1) == (n + kTile - 1) / kTile,
            op, "tile_active", "(ceil(M/128), ceil(N/128))", active);
  DML_CHECK(active.scalar_type() == ScalarType::Byte, op, "tile_active", "uint8", active.scalar_type());
  check_vector(op, "easy_index", easy_index, o.easy() ? m : 0, ScalarType::Long);
  DML_CHECK(!a.self() || !need_grad_ref, op, "need_grad_ref", "false without ref_emb", std::string("true"));
}

}  // namespace dml
