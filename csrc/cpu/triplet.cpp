#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "cpu/triplet_passes.h"

#include "common/triplet.h"
#include "common/triplet_arguments.h"

namespace dml {
namespace {

template <class T>
struct Results {
  Tensor loss_sum, nonzero, count, active;

  Results(const PairArguments& a, const TripletOptions& o, const PairRows<T>& rows)
      : loss_sum(filled(a.embeddings, {a.queries()}, compute_type(a.embeddings), 0)),
        nonzero(filled(a.embeddings, {a.queries()}, ScalarType::Long, 0)),
        count(filled(a.embeddings, {a.queries()}, ScalarType::Long, 0)),
        active(filled(a.embeddings, {o.tiles(a.queries()), o.tiles(a.gallery())}, ScalarType::Byte, 0)) {
    const bool all_nan = rows.gallery().any_non_finite;
    for (int64_t i = 0; i < a.queries(); ++i) {
      const RowState state = rows.queries.state[i];
      if (state == RowState::kept ? all_nan : state == RowState::non_finite)
        static_cast<T*>(loss_sum.mutable_data_ptr())[i] = std::numeric_limits<T>::quiet_NaN();
    }
  }
  void set(int64_t row, double cost, int64_t costing, int64_t triplets) {
    static_cast<T*>(loss_sum.mutable_data_ptr())[row] = static_cast<T>(cost);
    nonzero.mutable_data_ptr<int64_t>()[row] = costing;
    count.mutable_data_ptr<int64_t>()[row] = triplets;
  }
};

// What the triplets of each packed query add up to.
struct Totals {
  Buffer<double> cost;
  Buffer<int64_t> nonzero, triplets;
  explicit Totals(int64_t length) : cost(length), nonzero(length), triplets(length) {}
};

template <class T>
void all_negatives(TripletPasses<T>& passes, unsigned char* active, Totals& totals) {
  TripletProblem<T>& p = passes.problem;
  const int64_t length = passes.parts * p.q.padded;
  const Buffer<double> cost(length);
  const Buffer<int64_t> nonzero(length), negatives(length);
  p.active = active;
  p.cost = cost.data();
  p.nonzero = nonzero.data();
  const auto& kernel = kernels<TripletKernels<T>>();
  const Buffer<int64_t> positives(p.q.padded);
  passes.for_each([&] {
    p.negatives = p.first_slot == 0 ? negatives.data() : nullptr;
    for_each_tile(passes.schedule, [&](const TilePair& t) { kernel.forward(p, t.row, t.col, t.part); });
    for (int64_t at = 0; at < p.slots * p.q.padded; ++at) positives[at % p.q.padded] += p.positives[at] >= 0;
  });
  for (int64_t at = 0; at < length; ++at) {
    const int64_t i = at % p.q.padded;
    totals.cost[i] += cost[at];
    totals.nonzero[i] += nonzero[at];
    totals.triplets[i] += negatives[at] * positives[i];
  }
}

template <class T>
void semihard_negatives(TripletPasses<T>& passes, Totals& totals) {
  const TripletProblem<T>& p = passes.problem;
  passes.for_each([&] {
    const ChosenNegatives<T> chosen = choose_negatives(passes);
    for (int64_t slot = 0; slot < p.slots; ++slot)
      for (int64_t i = 0; i < p.q.n; ++i) {
        const int64_t at = slot * p.q.padded + i;
        if (chosen.row[at] < 0) continue;
        const double cost =
            triplet_term(static_cast<double>(p.positives[at] + p.margin - chosen.distance[at]), p.soft).cost;
        totals.cost[i] += cost;
        totals.nonzero[i] += cost > 0;
        totals.triplets[i] += 1;
      }
  });
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward_as(const PairArguments& a, const TripletOptions& o, bool check) {
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::panels);
  const bool all_nan = rows.gallery().any_non_finite;
  if (check) check_finite(a.op, all_nan || rows.queries.any_non_finite);
  Results<T> out(a, o, rows);
  if (!all_nan) {
    TripletPasses<T> passes(rows, o);
    Totals totals(passes.problem.q.padded);
    if (o.semihard) {
      semihard_negatives(passes, totals);
    } else {
      all_negatives(passes, out.active.template mutable_data_ptr<uint8_t>(), totals);
    }
    const RowsView<T>& q = rows.queries.view;
    for (int64_t i = 0; i < q.n; ++i) out.set(q.index[i], totals.cost[i], totals.nonzero[i], totals.triplets[i]);
  }
  return {out.loss_sum, out.nonzero, out.count, out.active};
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const PairArguments& a, const TripletOptions& o, const Tensor& grad,
                                       const Tensor& active, bool need_grad_ref) {
  const ScalarType type = a.embeddings.scalar_type();
  const int64_t d = a.embeddings.size(1);
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::both);
  if (rows.gallery().any_non_finite) {
    return {nan_gradient(a.embeddings, rows.queries),
            need_grad_ref ? nan_gradient(*a.ref_emb, rows.own_gallery) : filled(a.embeddings, {0, d}, type, 0)};
  }
  TripletPasses<T> passes(rows, o);
  TripletProblem<T>& p = passes.problem;
  const Buffer<T> incoming(p.q.padded);
  for (int64_t i = 0; i < p.q.n; ++i) incoming[i] = static_cast<const T*>(grad.const_data_ptr())[p.q.index[i]];
  TripletGradient<T> sums(passes, need_grad_ref);
  p.grad = incoming.data();
  // The kernels only read the bitmap here.
  p.active = static_cast<unsigned char*>(const_cast<void*>(active.const_data_ptr()));
  passes.for_each([&] { o.semihard ? sums.add_semihard() : sums.add_all(); });
  Tensor grad_emb =
      finish_gradient<T>(a.embeddings, rows.queries, sums.rows_q, sums.weights_q, passes.parts, T(-1), a.normalize);
  if (!need_grad_ref) return {grad_emb, filled(a.embeddings, {0, d}, type, 0)};
  return {grad_emb,
          finish_gradient<T>(*a.ref_emb, rows.own_gallery, sums.rows_g, sums.weights_g, 1, T(-1), a.normalize)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> triplet_fwd(const operators::triplet_fwd& t) {
  const PairArguments a(t);
  return in_compute_type(a.embeddings, [&]<class T>() { return forward_as<T>(a, TripletOptions(t), t.check_finite); });
}

std::tuple<Tensor, Tensor> triplet_bwd(const operators::triplet_bwd& t) {
  const PairArguments a(t);
  const Tensor grad = as_contiguous(t.grad_loss_sum), active = as_contiguous(t.tile_active);
  return in_compute_type(
      a.embeddings, [&]<class T>() { return backward_as<T>(a, TripletOptions(t), grad, active, t.need_grad_ref); });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("triplet_fwd", dml::boxed<&dml::triplet_fwd, dml::Read::numbers>);
  m.impl("triplet_bwd", dml::boxed<&dml::triplet_bwd, dml::Read::numbers>);
}
