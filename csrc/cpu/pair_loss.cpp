#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "common/pair_loss_arguments.h"
#include "cpu/dispatch.h"
#include "cpu/pair_loss_kernels.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"

namespace dml {
namespace {

// A side as the kernels take it, and the memory that it points to.
template <class T>
struct OwnedSide {
  PairLossSide<T> view{};
  Buffer<T> bounds, memory;

  OwnedSide(const PairSide& side, PairValue value, bool normalize, const RowsView<T>& q, int64_t gallery,
            const T* all_bounds) {
    const ScoreShift shift = score_shift(side, value, normalize, gallery);
    view.side = side;
    view.limit = MomentLimit::make(side.scale, side.base, value == PairValue::distance);
    view.running = shift.running;
    view.shift = shift.shift;
    if (all_bounds == nullptr) return;
    bounds = Buffer<T>(q.padded);
    for (int64_t i = 0; i < q.n; ++i) bounds[i] = all_bounds[q.index[i]];
    view.bounds = bounds.data();
  }
};

template <class T>
struct Problem {
  OwnedSide<T> pos, neg;
  PairLossProblem<T> view{};

  Problem(const PairRows<T>& rows, const PairLossOptions& o, bool normalize, const T* bounds, int64_t queries,
          const TileSchedule& schedule, unsigned char* active)
      : pos(o.pos, o.value, normalize, rows.queries.view, rows.gallery().view.n, bounds),
        neg(o.neg, o.value, normalize, rows.queries.view, rows.gallery().view.n,
            bounds == nullptr ? nullptr : bounds + queries) {
    view.q = rows.queries.view;
    view.g = rows.gallery().view;
    view.value = o.value;
    view.self = rows.self;
    view.apart = o.apart;
    view.col_tiles = schedule.col_tiles;
    view.active = active;
  }
  // After the memory of the sides has been filled.
  const PairLossProblem<T>& ready() {
    view.pos = pos.view;
    view.neg = neg.view;
    return view;
  }
  OwnedSide<T>& side(bool positive) { return positive ? pos : neg; }
};

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

// The statistics of one side by the caller's queries (M,).
template <class T>
struct SideStatistics {
  T *stats, *log_sums, *sums, *members, *slopes;
};

// Merges what the parts of a query have of one side.
template <class T>
void finish_side(const PairLossSide<T>& side, const RowsView<T>& q, int64_t parts, const SideStatistics<T>& to) {
  const int64_t length = parts * q.padded;
  const bool moment = side.side.term == PairTerm::moment;
  for (int64_t i = 0; i < q.n; ++i) {
    LogSumExp scores;
    double added[kPairSums] = {};
    for (int64_t part = 0; part < parts; ++part) {
      const T* at = side.sums + part * q.padded + i;
      scores.add(at[kPairStat * length], side.running ? at[kPairMax * length] : side.shift, at[kPairMoment * length]);
      for (int k = 0; k < kPairSums; ++k) added[k] += at[k * length];
    }
    const int64_t row = q.index[i];
    const double log_sum = scores.log_sum();
    to.stats[row] = static_cast<T>(moment ? scores.mean() : side.side.scored() ? log_sum : added[kPairStat]);
    if (moment) to.log_sums[row] = static_cast<T>(log_sum);
    to.sums[row] = static_cast<T>(added[kPairTotal]);
    to.members[row] = static_cast<T>(added[kPairMembers]);
    // Without bounds, all members are kept.
    const bool all = side.side.term == PairTerm::exp && side.bounds == nullptr;
    to.slopes[row] = static_cast<T>(added[all ? kPairMembers : kPairSlope]);
  }
}

template <class T>
Statistics forward_as(const operators::pair_loss_fwd& t) {
  const PairArguments a(t);
  const PairLossOptions o(t);
  const std::optional<Tensor> bounds = as_contiguous(t.bounds);
  const int64_t m = a.queries(), n = a.gallery();
  const ScalarType type = compute_type(a.embeddings);
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::panels);
  const bool all_nan = rows.gallery().any_non_finite;
  if (t.check_finite) check_finite(a.op, all_nan || rows.queries.any_non_finite);

  constexpr double kNone = -std::numeric_limits<double>::infinity();
  // Filled here: of few rows, a call of the dispatcher costs more than their pairs.
  const auto by_row = [&](double value) {
    Tensor x = aten::empty(a.embeddings, {2, m}, type);
    std::fill_n(static_cast<T*>(x.mutable_data_ptr()), 2 * m, static_cast<T>(value));
    return x;
  };
  const Tensor stats = by_row(0), log_sums = by_row(kNone), sums = by_row(0), members = by_row(0), slopes = by_row(0);
  const Tensor active = filled(a.embeddings, {(m + kTile - 1) / kTile, (n + kTile - 1) / kTile}, ScalarType::Byte, 0);
  SideStatistics<T> of_side[2];  // of the positives, and of the negatives
  for (const int64_t k : {0, 1}) {
    const auto at = [&](const Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()) + k * m; };
    const SideStatistics<T>& to = of_side[k] = {at(stats), at(log_sums), at(sums), at(members), at(slopes)};
    if (o.side(k == 0).term == PairTerm::exp) std::fill_n(to.stats, m, static_cast<T>(kNone));
    for (int64_t i = 0; i < m; ++i) {
      const RowState state = rows.queries.state[i];
      if (state == RowState::kept ? !all_nan : state == RowState::ignored) continue;
      to.stats[i] = to.log_sums[i] = to.sums[i] = std::numeric_limits<T>::quiet_NaN();
    }
  }
  if (all_nan) return {stats, log_sums, sums, members, slopes, active};

  const RowsView<T>& q = rows.queries.view;
  const TileSchedule schedule = TileSchedule::make(q.n, rows.gallery().view.n, rows.self);
  const int64_t parts = std::max<int64_t>(schedule.parts, 1), length = parts * q.padded;
  Problem<T> problem(rows, o, a.normalize, bounds ? data<T>(*bounds) : nullptr, m, schedule,
                     active.mutable_data_ptr<uint8_t>());
  for (const bool positive : {true, false}) {
    OwnedSide<T>& side = problem.side(positive);
    if (!side.view.side.present()) continue;
    side.memory = Buffer<T>(kPairSums * length);
    side.view.sums = side.memory.data();
    if (side.view.running) std::fill_n(side.view.sums + kPairMax * length, length, static_cast<T>(kNoScore));
  }
  const PairLossProblem<T>& p = problem.ready();
  const auto& kernel = kernels<PairLossKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.forward(p, t.row, t.col, t.part, parts); });
  if (p.pos.side.present()) finish_side(p.pos, q, parts, of_side[0]);
  if (p.neg.side.present()) finish_side(p.neg, q, parts, of_side[1]);
  return {stats, log_sums, sums, members, slopes, active};
}

// What a backward is given of one side, by the caller's queries (M,).
template <class T>
struct SideState {
  const T *grad_stats, *grad_log_sums, *grad_sums, *stats, *log_sums;
};

// Per-row factors of the gradient of one side, in the order of the packed rows (cpu/pair_loss_kernels.h: PairFactor).
template <class T>
Buffer<T> gradient_factors(const RowsView<T>& q, const PairLossSide<T>& view, bool weight_grad,
                           const SideState<T>& state) {
  Buffer<T> factors(kPairFactors * q.padded);
  const PairSide& side = view.side;
  const bool moment = side.term == PairTerm::moment;
  for (int64_t i = 0; i < q.n; ++i) {
    const int64_t row = q.index[i];
    const double log_sum = (moment ? state.log_sums : state.stats)[row];
    MomentGradient gradient{state.grad_stats[row], 0};
    if (moment)
      gradient = MomentGradient::make(side.temperature, weight_grad, state.grad_stats[row], state.grad_log_sums[row]);
    double factor = side.term == PairTerm::exp ? 1 : side.scale;
    // Nobody asks for the weights of a row without pairs.
    if (side.scored() && !view.running) factor *= std::isinf(log_sum) ? 0 : std::exp(view.shift - log_sum);
    T* const at = factors.data() + i;
    at[kPairScale * q.padded] = static_cast<T>(gradient.constant * factor);
    at[kPairLinear * q.padded] = static_cast<T>(gradient.linear * factor);
    at[kPairLevel * q.padded] = state.stats[row];
    at[kPairLog * q.padded] = static_cast<T>(log_sum);
    at[kPairAdd * q.padded] = state.grad_sums[row];
  }
  return factors;
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const operators::pair_loss_bwd& t) {
  const PairArguments a(t);
  const PairLossOptions o(t);
  const PairLossState state(t);
  const std::optional<Tensor> bounds = as_contiguous(t.bounds);
  const bool need_grad_ref = t.need_grad_ref;
  const ScalarType type = a.embeddings.scalar_type();
  const int64_t m = a.queries(), d = a.embeddings.size(1);
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::both);
  if (rows.gallery().any_non_finite) {
    return {nan_gradient(a.embeddings, rows.queries),
            need_grad_ref ? nan_gradient(*a.ref_emb, rows.own_gallery) : filled(a.embeddings, {0, d}, type, 0)};
  }
  const RowsView<T>&q = rows.queries.view, &g = rows.gallery().view;
  const TileSchedule schedule = TileSchedule::make(q.n, g.n, rows.self);
  // The kernels only read the bitmap here.
  Problem<T> problem(rows, o, a.normalize, bounds ? data<T>(*bounds) : nullptr, m, schedule,
                     static_cast<unsigned char*>(const_cast<void*>(state.active.const_data_ptr())));
  for (const bool positive : {true, false}) {
    OwnedSide<T>& side = problem.side(positive);
    const auto at = [&](const Tensor& x) { return data<T>(x) + (positive ? 0 : m); };
    const SideState<T> of_side{at(state.grad_stats), at(state.grad_log_sums), at(state.grad_sums), at(state.stats),
                               at(state.log_sums)};
    side.memory = gradient_factors(q, side.view, o.weight_grad, of_side);
    side.view.factors = side.memory.data();
  }
  const int64_t parts = std::max<int64_t>(schedule.parts, 1);
  Buffer<T> sums_q(parts * q.padded * q.stride), weights_q(parts * q.padded), sums_g, weights_g;
  if (need_grad_ref) {
    sums_g = Buffer<T>(g.padded * g.stride);
    weights_g = Buffer<T>(g.padded);
  }
  PairLossProblem<T>& view = problem.view;
  view.both_ends = o.both_ends && (rows.self || need_grad_ref);
  view.rows_q = sums_q.data();
  view.weights_q = weights_q.data();
  view.rows_g = rows.self ? sums_q.data() : sums_g.data();
  view.weights_g = rows.self ? weights_q.data() : weights_g.data();
  const PairLossProblem<T>& p = problem.ready();
  const auto& kernel = kernels<PairLossKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.backward(p, t.row, t.col, t.part); });

  // The gradient of a similarity is the other row, and its sums of weights are zero; that of a distance points to it.
  const T sign = o.value == PairValue::similarity ? T(1) : T(-1);
  Tensor grad_emb = finish_gradient<T>(a.embeddings, rows.queries, sums_q, weights_q, parts, sign, a.normalize);
  if (!need_grad_ref) return {grad_emb, filled(a.embeddings, {0, d}, type, 0)};
  return {grad_emb, finish_gradient<T>(*a.ref_emb, rows.own_gallery, sums_g, weights_g, 1, sign, a.normalize)};
}

Statistics pair_loss_fwd(const operators::pair_loss_fwd& t) {
  return in_compute_type(t.embeddings, [&]<class T>() { return forward_as<T>(t); });
}

std::tuple<Tensor, Tensor> pair_loss_bwd(const operators::pair_loss_bwd& t) {
  return in_compute_type(t.embeddings, [&]<class T>() { return backward_as<T>(t); });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("pair_loss_fwd", dml::boxed<&dml::pair_loss_fwd, dml::Read::numbers>);
  m.impl("pair_loss_bwd", dml::boxed<&dml::pair_loss_bwd, dml::Read::numbers>);
}
