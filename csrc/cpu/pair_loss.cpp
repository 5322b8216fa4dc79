#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "common/pair_loss_operator.h"
#include "cpu/dispatch.h"
#include "cpu/pair_loss_kernels.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"

namespace dml {
namespace {

// One side as the kernels take it, and the memory that it points to.
template <class T>
struct OwnedSide {
  PairLossSide<T> view{};
  Buffer<T> bounds, memory;

  OwnedSide(const PairLossOptions& o, bool positive, bool normalize, const RowsView<T>& q, int64_t gallery,
            const std::optional<Tensor>& all_bounds) {
    const ScoreShift shift = score_shift(o.side(positive), o.value(), normalize, gallery);
    view.side = o.side(positive);
    view.present = o.has(positive);
    view.running = o.exp() && shift.running;
    view.shift = shift.shift;
    if (!all_bounds) return;
    bounds = Buffer<T>(q.padded);
    const T* from = static_cast<const T*>(all_bounds->const_data_ptr()) + (positive ? 0 : all_bounds->size(1));
    for (int64_t i = 0; i < q.n; ++i) bounds[i] = from[q.index[i]];
    view.bounds = bounds.data();
  }
};

template <class T>
struct Problem {
  OwnedSide<T> pos, neg;
  PairLossProblem<T> view{};

  Problem(const PairRows<T>& rows, const PairLossOptions& o, bool normalize, const std::optional<Tensor>& bounds,
          const TileSchedule& schedule, unsigned char* active)
      : pos(o, true, normalize, rows.queries.view, rows.gallery().view.n, bounds),
        neg(o, false, normalize, rows.queries.view, rows.gallery().view.n, bounds) {
    view.q = rows.queries.view;
    view.g = rows.gallery().view;
    view.value = o.value();
    view.term = o.kind();
    view.self = rows.self;
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
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_as(const PairArguments& a, const PairLossOptions& o,
                                                              const std::optional<Tensor>& bounds, bool check) {
  const int64_t m = a.queries(), n = a.gallery();
  const ScalarType type = compute_type(a.embeddings);
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::panels);
  const bool all_nan = rows.gallery().any_non_finite;
  if (check) check_finite(a.op, all_nan || rows.queries.any_non_finite);

  Tensor stats = filled(a.embeddings, {2, m}, type, o.exp() ? -std::numeric_limits<double>::infinity() : 0);
  Tensor sums = filled(a.embeddings, {2, m}, type, 0), members = filled(a.embeddings, {2, m}, type, 0);
  Tensor slopes = filled(a.embeddings, {2, m}, type, 0);
  Tensor active = filled(a.embeddings, {(m + kTile - 1) / kTile, (n + kTile - 1) / kTile}, ScalarType::Byte, 0);
  const auto data = [](const Tensor& x) { return static_cast<T*>(x.mutable_data_ptr()); };
  for (int64_t i = 0; i < m; ++i) {
    const RowState state = rows.queries.state[i];
    if (state == RowState::kept ? !all_nan : state == RowState::ignored) continue;
    for (const int64_t at : {i, m + i}) data(stats)[at] = data(sums)[at] = std::numeric_limits<T>::quiet_NaN();
  }
  if (all_nan) return {stats, sums, members, slopes, active};

  const RowsView<T>& q = rows.queries.view;
  const TileSchedule schedule = TileSchedule::make(q.n, rows.gallery().view.n, rows.self);
  const int64_t parts = std::max<int64_t>(schedule.parts, 1), length = parts * q.padded;
  Problem<T> problem(rows, o, a.normalize, bounds, schedule, active.mutable_data_ptr<uint8_t>());
  for (const bool positive : {true, false}) {
    OwnedSide<T>& side = problem.side(positive);
    side.memory = Buffer<T>(kPairSums * length);
    side.view.sums = side.memory.data();
    std::fill_n(side.memory.data() + kPairMax * length, length,
                static_cast<T>(side.view.running ? kNoScore : side.view.shift));
  }
  const PairLossProblem<T>& p = problem.ready();
  const auto& kernel = kernels<PairLossKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.forward(p, t.row, t.col, t.part, parts); });

  for (const bool positive : {true, false}) {
    const PairLossSide<T>& side = positive ? p.pos : p.neg;
    if (!side.present) continue;
    for (int64_t i = 0; i < q.n; ++i) {
      PairLogSumExp log_sum;
      double added[kPairSums] = {};
      for (int64_t part = 0; part < parts; ++part) {
        const T* at = side.sums + part * q.padded + i;
        log_sum.add(at[kPairStat * length], at[kPairMax * length]);
        for (int k = 0; k < kPairSums; ++k) added[k] += at[k * length];
      }
      const int64_t row = q.index[i] + (positive ? 0 : m);
      data(stats)[row] = static_cast<T>(o.exp() ? log_sum.finish() : added[kPairStat]);
      data(sums)[row] = static_cast<T>(added[kPairTotal]);
      data(members)[row] = static_cast<T>(added[kPairMembers]);
      data(slopes)[row] = static_cast<T>(added[o.exp() && !bounds ? kPairMembers : kPairSlope]);
    }
  }
  return {stats, sums, members, slopes, active};
}

// Per-row factors of the gradient of one side, in the order of the packed rows (cpu/pair_loss_kernels.h: PairFactor).
template <class T>
Buffer<T> gradient_factors(const RowsView<T>& q, const PairLossSide<T>& side, bool exp, const T* grad_stats,
                           const T* grad_sums, const T* stats) {
  Buffer<T> factors(kPairFactors * q.padded);
  for (int64_t i = 0; i < q.n; ++i) {
    const int64_t row = q.index[i];
    double scale = grad_stats[row];
    if (!exp) {
      scale *= side.side.scale;
    } else if (!side.running) {
      // Nobody asks for the weights of a row without pairs.
      scale = std::isinf(stats[row]) ? 0 : scale * std::exp(side.shift - static_cast<double>(stats[row]));
    }
    T* const at = factors.data() + i;
    at[kPairScale * q.padded] = static_cast<T>(scale);
    at[kPairLog * q.padded] = stats[row];
    at[kPairAdd * q.padded] = grad_sums[row];
  }
  return factors;
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const PairArguments& a, const PairLossOptions& o,
                                       const std::optional<Tensor>& bounds, const PairLossState& state,
                                       bool need_grad_ref) {
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
  Problem<T> problem(rows, o, a.normalize, bounds, schedule,
                     static_cast<unsigned char*>(const_cast<void*>(state.active.const_data_ptr())));
  const auto data = [](const Tensor& x) { return static_cast<const T*>(x.const_data_ptr()); };
  for (const bool positive : {true, false}) {
    OwnedSide<T>& side = problem.side(positive);
    const int64_t first = positive ? 0 : m;
    side.memory = gradient_factors(q, side.view, o.exp(), data(state.grad_stats) + first, data(state.grad_sums) + first,
                                   data(state.stats) + first);
    side.view.factors = side.memory.data();
  }
  const int64_t parts = std::max<int64_t>(schedule.parts, 1);
  Buffer<T> sums_q(parts * q.padded * q.stride), weights_q(parts * q.padded), sums_g, weights_g;
  if (need_grad_ref) {
    sums_g = Buffer<T>(g.padded * g.stride);
    weights_g = Buffer<T>(g.padded);
  }
  PairLossProblem<T>& view = problem.view;
  view.gallery_grad = need_grad_ref;
  view.rows_q = sums_q.data();
  view.weights_q = weights_q.data();
  view.rows_g = rows.self ? sums_q.data() : sums_g.data();
  view.weights_g = rows.self ? weights_q.data() : weights_g.data();
  const PairLossProblem<T>& p = problem.ready();
  const auto& kernel = kernels<PairLossKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.backward(p, t.row, t.col, t.part); });

  // The gradient of a similarity is the other row, and its sums of weights are zero; that of a distance points to it.
  const T sign = o.value() == PairValue::similarity ? T(1) : T(-1);
  Tensor grad_emb = finish_gradient<T>(a.embeddings, rows.queries, sums_q, weights_q, parts, sign, a.normalize);
  if (!need_grad_ref) return {grad_emb, filled(a.embeddings, {0, d}, type, 0)};
  return {grad_emb, finish_gradient<T>(*a.ref_emb, rows.own_gallery, sums_g, weights_g, 1, sign, a.normalize)};
}

struct PairLossOnCpu {
  template <class T>
  static auto forward(const PairArguments& a, const PairLossOptions& o, const std::optional<Tensor>& bounds,
                      const std::string&, bool, bool check) {
    return forward_as<T>(a, o, bounds, check);
  }
  template <class T>
  static auto backward(const PairArguments& a, const PairLossOptions& o, const std::optional<Tensor>& bounds,
                       const PairLossState& state, const std::string&, bool need_grad_ref) {
    return backward_as<T>(a, o, bounds, state, need_grad_ref);
  }
};

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("pair_loss_fwd", TORCH_BOX(&dml::pair_loss_fwd<dml::PairLossOnCpu>));
  m.impl("pair_loss_bwd", TORCH_BOX(&dml::pair_loss_bwd<dml::PairLossOnCpu>));
}
