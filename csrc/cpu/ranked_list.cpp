#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <unordered_map>

#include <torch/csrc/stable/library.h>

#include "common/ranked_list_operator.h"
#include "cpu/dispatch.h"
#include "cpu/nearest_positive.h"
#include "cpu/ranked_list_kernels.h"
#include "cpu/rows_kernels.h"
#include "cpu/tiles.h"

namespace dml {
namespace {

template <class T>
RankedListProblem<T> make_problem(const PairRows<T>& rows, const RankedListOptions& o, bool normalize,
                                  const TileSchedule& schedule, unsigned char* active) {
  RankedListProblem<T> p{};
  p.q = rows.queries.view;
  p.g = rows.gallery().view;
  p.pos = make_ranked_set(true, o.alpha - o.margin, o.pos_temperature, o.weight_grad);
  p.neg = make_ranked_set(false, o.alpha, o.neg_temperature, o.weight_grad);
  p.self = rows.self;
  p.easy = o.easy();
  p.apart = o.apart();
  p.running = needs_running_maximum(o, normalize, p.g.n);
  p.col_tiles = schedule.col_tiles;
  p.active = active;
  return p;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_as(const PairArguments& a, const RankedListOptions& o,
                                                              bool check) {
  const int64_t m = a.embeddings.size(0), n = a.ref_emb ? a.ref_emb->size(0) : m;
  const ScalarType type = compute_type(a.embeddings);
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::panels);
  const bool all_nan = rows.gallery().any_non_finite;
  if (check) check_finite(a.op, all_nan || rows.queries.any_non_finite);

  Tensor loss = filled(a.embeddings, {m}, type, 0), row_stats = filled(a.embeddings, {kRowStats, m}, type, 0);
  Tensor totals = filled(a.embeddings, {4}, type, 0);
  const bool easy = o.easy();
  Tensor easy_index = filled(a.embeddings, {easy ? m : 0}, ScalarType::Long, -1);
  Tensor active = filled(a.embeddings, {(m + kTile - 1) / kTile, (n + kTile - 1) / kTile}, ScalarType::Byte, 0);
  T* out = static_cast<T*>(loss.mutable_data_ptr());
  T* stats = static_cast<T*>(row_stats.mutable_data_ptr());
  for (int64_t i = 0; i < m; ++i) {
    const RowState state = rows.queries.state[i];
    if (state == RowState::non_finite || (all_nan && state == RowState::kept))
      out[i] = std::numeric_limits<T>::quiet_NaN();
  }
  if (all_nan) return {loss, row_stats, totals, easy_index, active};

  const RowsView<T>&q = rows.queries.view, &g = rows.gallery().view;
  const TileSchedule schedule = TileSchedule::make(q.n, g.n, rows.self);
  RankedListProblem<T> p = make_problem(rows, o, a.normalize, schedule, active.mutable_data_ptr<uint8_t>());
  const int64_t parts = std::max<int64_t>(schedule.parts, 1), length = parts * q.padded;
  const Buffer<T> sums(kRankedSums * length);
  if (p.running)
    for (const int set : {kPosMax, kNegMax})
      std::fill_n(sums.data() + set * length, length, static_cast<T>(kNoMaximum));
  p.sums = sums.data();
  const auto& kernel = kernels<RankedListKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.forward(p, t.row, t.col, t.part, parts); });

  const ChosenPositives<T> chosen = easy ? choose_positives(rows, false) : ChosenPositives<T>{};
  const double eps = o.epsilon() * static_cast<double>(g.n);
  double total[4] = {};
  for (int64_t i = 0; i < q.n; ++i) {
    const int64_t row = q.index[i];
    SetSums pos, neg;
    for (int64_t part = 0; part < parts; ++part) {
      const T* at = sums.data() + part * q.padded + i;
      pos.add(at[kPosSum * length], at[kPosMoment * length], at[kPosMax * length]);
      neg.add(at[kNegSum * length], at[kNegMoment * length], at[kNegMax * length]);
      for (int k = 0; k < 4; ++k) total[k] += at[(kPosCount + k) * length];
    }
    if (easy && chosen.row[i] >= 0) {
      easy_index.mutable_data_ptr<int64_t>()[row] = g.index[chosen.row[i]];
      const double d = std::sqrt(static_cast<double>(chosen.squared[i])), v = d - p.pos.boundary;
      if (v > 0 && !(p.apart && d == 0)) {
        pos.add(1, v, p.pos.temperature * v);
        total[0] += 1;
        total[2] += d;
      }
    }
    const SetResult in_pos = pos.finish(eps), in_neg = neg.finish(eps);
    out[row] = static_cast<T>(o.pos_weight * in_pos.loss + o.neg_weight * in_neg.loss);
    const double values[kRowStats] = {in_pos.log_denom, in_neg.log_denom, in_pos.loss, in_neg.loss};
    for (int64_t k = 0; k < kRowStats; ++k) stats[k * m + row] = static_cast<T>(values[k]);
  }
  for (int k = 0; k < 4; ++k) static_cast<T*>(totals.mutable_data_ptr())[k] = static_cast<T>(total[k]);
  return {loss, row_stats, totals, easy_index, active};
}

// Per-row factors of the gradient, in the order of the packed rows (csrc/common/ranked_list.h: RowGradient).
template <class T>
Buffer<T> gradient_factors(const RowsView<T>& q, const RankedListOptions& o, bool running, const T* grad,
                           const T* stats, int64_t m) {
  Buffer<T> factors(kRankedFactors * q.padded);
  for (int64_t i = 0; i < q.n; ++i) {
    const int64_t row = q.index[i];
    for (const bool positive : {true, false}) {
      const T log_denom = stats[(positive ? 0 : 1) * m + row], level = stats[(positive ? 2 : 3) * m + row];
      const double scale = static_cast<double>(grad[row]) * (positive ? o.pos_weight : o.neg_weight);
      T* const at = factors.data() + (positive ? kPosScale : kNegScale) * q.padded + i;
      at[0] =
          static_cast<T>(running || std::isinf(log_denom) ? scale : scale * std::exp(-static_cast<double>(log_denom)));
      at[q.padded] = level;
      at[2 * q.padded] = log_denom;
    }
  }
  return factors;
}

// Weights of the easy positives: (dL/dd)/d, with p = 1 up to the epsilon of eps_mode.
template <class T>
Buffer<T> easy_weights(const RankedListProblem<T>& p, const int32_t* chosen, const RankedListOptions& o, const T* grad,
                       const T* stats, int64_t m) {
  const auto& kernel = kernels<RowsKernels<T>>();
  const double eps = std::numeric_limits<T>::epsilon();
  Buffer<T> weight(p.q.padded);
  for (int64_t i = 0; i < p.q.n; ++i) {
    const int32_t to = chosen[i];
    if (to < 0) continue;
    const int64_t row = p.q.index[i];
    const double squared = kernel.squared_difference(p.q.rows + i * p.q.stride, p.g.rows + to * p.g.stride, p.q.d);
    const double d = std::sqrt(squared), v = d - p.pos.boundary;
    const double norms = static_cast<double>(p.q.norms[i]) + p.g.norms[to];
    // The forward has decided who is in the set: an empty one has no loss.
    const double level = stats[2 * m + row];
    if (level == 0 || squared <= norms * 8 * eps * eps) continue;
    const double share = std::exp(p.pos.temperature * v - stats[row]);
    weight[i] = static_cast<T>(grad[row] * o.pos_weight * share * (1 + p.pos.weight_slope * (v - level)) / d);
  }
  return weight;
}

// The packed gallery row that each packed query chose, from the caller's rows.
template <class T>
Buffer<int32_t> to_packed(const RowsView<T>& q, const RowsView<T>& g, const int64_t* easy_index) {
  std::unordered_map<int64_t, int32_t> packed;
  for (int64_t j = 0; j < g.n; ++j) packed[g.index[j]] = static_cast<int32_t>(j);
  Buffer<int32_t> chosen(q.padded);
  for (int64_t i = 0; i < q.n; ++i) {
    const auto found = packed.find(easy_index[q.index[i]]);
    chosen[i] = found == packed.end() ? -1 : found->second;
  }
  return chosen;
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const PairArguments& a, const RankedListOptions& o, const Tensor& grad_loss,
                                       const Tensor& row_stats, const Tensor& easy_index, const Tensor& active,
                                       bool need_grad_ref) {
  const ScalarType type = a.embeddings.scalar_type();
  const int64_t m = a.embeddings.size(0), d = a.embeddings.size(1);
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::both);
  if (rows.gallery().any_non_finite) {
    return {nan_gradient(a.embeddings, rows.queries),
            need_grad_ref ? nan_gradient(*a.ref_emb, rows.own_gallery) : filled(a.embeddings, {0, d}, type, 0)};
  }
  const RowsView<T>&q = rows.queries.view, &g = rows.gallery().view;
  const TileSchedule schedule = TileSchedule::make(q.n, g.n, rows.self);
  // The kernels only read the bitmap here.
  RankedListProblem<T> p = make_problem(rows, o, a.normalize, schedule,
                                        static_cast<unsigned char*>(const_cast<void*>(active.const_data_ptr())));
  p.both_ends = o.grad == "full" && (rows.self || need_grad_ref);
  const T *grad = static_cast<const T*>(grad_loss.const_data_ptr()),
          *stats = static_cast<const T*>(row_stats.const_data_ptr());
  const Buffer<T> factors = gradient_factors(q, o, p.running, grad, stats, m);
  p.factors = factors.data();
  const int64_t parts = std::max<int64_t>(schedule.parts, 1);
  Buffer<T> sums_q(parts * q.padded * q.stride), weights_q(parts * q.padded), sums_g, weights_g;
  if (need_grad_ref) {
    sums_g = Buffer<T>(g.padded * g.stride);
    weights_g = Buffer<T>(g.padded);
  }
  p.rows_q = sums_q.data();
  p.weights_q = weights_q.data();
  p.rows_g = rows.self ? sums_q.data() : sums_g.data();
  p.weights_g = rows.self ? weights_q.data() : weights_g.data();
  const auto& kernel = kernels<RankedListKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.backward(p, t.row, t.col, t.part); });

  if (p.easy) {
    const Buffer<int32_t> chosen = to_packed(q, g, easy_index.const_data_ptr<int64_t>());
    const Buffer<T> weight = easy_weights(p, chosen.data(), o, grad, stats, m);
    Buffer<T>*other = rows.self ? &sums_q : &sums_g, *other_weights = rows.self ? &weights_q : &weights_g;
    add_listed_pairs(q, g, chosen.data(), weight.data(), sums_q, weights_q, p.both_ends ? other : nullptr,
                     p.both_ends ? other_weights : nullptr);
  }
  Tensor grad_emb = finish_gradient<T>(a.embeddings, rows.queries, sums_q, weights_q, parts, T(-1), a.normalize);
  if (!need_grad_ref) return {grad_emb, filled(a.embeddings, {0, d}, type, 0)};
  return {grad_emb, finish_gradient<T>(*a.ref_emb, rows.own_gallery, sums_g, weights_g, 1, T(-1), a.normalize)};
}

struct RankedListOnCpu {
  template <class T>
  static auto forward(const PairArguments& a, const RankedListOptions& o, const std::string&, bool, bool check) {
    return forward_as<T>(a, o, check);
  }
  template <class T>
  static auto backward(const PairArguments& a, const RankedListOptions& o, const Tensor& grad_loss,
                       const Tensor& row_stats, const Tensor& easy_index, const Tensor& active, const std::string&,
                       bool need_grad_ref) {
    return backward_as<T>(a, o, grad_loss, row_stats, easy_index, active, need_grad_ref);
  }
};

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("ranked_list_fwd", TORCH_BOX(&dml::ranked_list_fwd<dml::RankedListOnCpu>));
  m.impl("ranked_list_bwd", TORCH_BOX(&dml::ranked_list_bwd<dml::RankedListOnCpu>));
}
