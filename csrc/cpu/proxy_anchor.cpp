#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "common/proxy_anchor_arguments.h"
#include "common/ranked_list.h"
#include "cpu/dispatch.h"
#include "cpu/proxy_anchor_kernels.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"

namespace dml {
namespace {

Tensor arange(const Tensor& like, int64_t n) {
  Tensor out = torch::stable::new_empty(like, std::vector<int64_t>{n}, ScalarType::Long);
  for (int64_t i = 0; i < n; ++i) out.mutable_data_ptr<int64_t>()[i] = i;
  return out;
}

// Proxies as queries, each a class of its own, and the embeddings as the gallery.
PairArguments make_arguments(const char* op, const Tensor& embeddings, const Tensor& labels, const Tensor& proxies,
                             bool normalize) {
  check_proxy_anchor(op, embeddings, labels, proxies);
  const Tensor y = torch::stable::contiguous(labels);
  for (int64_t i = 0; i < y.size(0); ++i) {
    const int64_t label = y.const_data_ptr<int64_t>()[i];
    DML_CHECK(label >= 0 && label < proxies.size(0), op, "labels", "in [0, C) with C=" + text(proxies.size(0)), label);
  }
  return PairArguments(op, proxies, arange(proxies, proxies.size(0)), embeddings, y, {}, {}, {}, normalize);
}

int64_t proxies_with_positives(const Tensor& labels, int64_t count) {
  const Tensor y = torch::stable::contiguous(labels);
  std::vector<bool> seen(static_cast<size_t>(count));
  for (int64_t i = 0; i < y.size(0); ++i) seen[y.const_data_ptr<int64_t>()[i]] = true;
  return std::count(seen.begin(), seen.end(), true);
}

template <class T>
std::tuple<Tensor, Tensor> forward_as(const PairArguments& a, const ProxyAnchor& loss) {
  const int64_t c = a.embeddings.size(0);
  const ScalarType type = compute_type(a.embeddings);
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::panels);
  Tensor stats = filled(a.embeddings, {2, c}, type, 0);
  if (rows.queries.any_non_finite || rows.own_gallery.any_non_finite)
    return {filled(a.embeddings, {}, type, std::numeric_limits<double>::quiet_NaN()), stats};
  const RowsView<T>&q = rows.queries.view, &g = rows.own_gallery.view;
  const TileSchedule schedule = TileSchedule::make(q.n, g.n, false);
  const int64_t parts = std::max<int64_t>(schedule.parts, 1), length = parts * q.padded;
  const Buffer<T> sums(kProxySums * length);
  for (const int set : {kProxyPosMax, kProxyNegMax})
    std::fill_n(sums.data() + set * length, length, static_cast<T>(kNoMaximum));
  ProxyAnchorProblem<T> p{};
  p.q = q;
  p.g = g;
  p.loss = loss;
  p.sums = sums.data();
  const auto& kernel = kernels<ProxyAnchorKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.forward(p, t.row, t.col, t.part, parts); });

  double pos_total = 0, neg_total = 0;
  T* out = static_cast<T*>(stats.mutable_data_ptr());
  for (int64_t i = 0; i < q.n; ++i) {
    LogSumExp pos, neg;
    for (int64_t part = 0; part < parts; ++part) {
      const T* at = sums.data() + part * q.padded + i;
      pos.add(at[kProxyPosSum * length], at[kProxyPosMax * length]);
      neg.add(at[kProxyNegSum * length], at[kProxyNegMax * length]);
    }
    out[q.index[i]] = static_cast<T>(pos.log_one_plus());
    out[c + q.index[i]] = static_cast<T>(neg.log_one_plus());
    pos_total += pos.log_one_plus();
    neg_total += neg.log_one_plus();
  }
  const double positives = static_cast<double>(std::max<int64_t>(1, proxies_with_positives(*a.ref_labels, c)));
  const double value = pos_total / positives + neg_total / static_cast<double>(std::max<int64_t>(c, 1));
  return {filled(a.embeddings, {}, type, value), stats};
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const PairArguments& a, const ProxyAnchor& loss, double grad,
                                       const Tensor& stats) {
  const int64_t c = a.embeddings.size(0), d = a.embeddings.size(1);
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::both);
  if (rows.queries.any_non_finite || rows.own_gallery.any_non_finite) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const ScalarType type = a.embeddings.scalar_type();
    return {filled(a.embeddings, {a.ref_emb->size(0), d}, type, nan), filled(a.embeddings, {c, d}, type, nan)};
  }
  const RowsView<T>&q = rows.queries.view, &g = rows.own_gallery.view;
  const TileSchedule schedule = TileSchedule::make(q.n, g.n, false);
  const int64_t parts = std::max<int64_t>(schedule.parts, 1);
  const Buffer<T> pos_log_sum(q.padded), neg_log_sum(q.padded), weights_q(parts * q.padded), weights_g(g.padded);
  const T* at = static_cast<const T*>(stats.const_data_ptr());
  for (int64_t i = 0; i < q.n; ++i) {
    pos_log_sum[i] = at[q.index[i]];
    neg_log_sum[i] = at[c + q.index[i]];
  }
  const Buffer<T> sums_q(parts * q.padded * q.stride), sums_g(g.padded * g.stride);
  ProxyAnchorProblem<T> p{};
  p.q = q;
  p.g = g;
  p.loss = loss;
  p.pos_log_sum = pos_log_sum.data();
  p.neg_log_sum = neg_log_sum.data();
  p.pos_share = grad / static_cast<double>(std::max<int64_t>(1, proxies_with_positives(*a.ref_labels, c)));
  p.neg_share = grad / static_cast<double>(std::max<int64_t>(c, 1));
  p.rows_q = sums_q.data();
  p.rows_g = sums_g.data();
  const auto& kernel = kernels<ProxyAnchorKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.backward(p, t.row, t.col, t.part); });
  return {finish_gradient<T>(*a.ref_emb, rows.own_gallery, sums_g, weights_g, 1, T(1), a.normalize),
          finish_gradient<T>(a.embeddings, rows.queries, sums_q, weights_q, parts, T(1), a.normalize)};
}

std::tuple<Tensor, Tensor> proxy_anchor_fwd(const Tensor& embeddings, const Tensor& labels, const Tensor& proxies,
                                            double margin, double alpha, bool normalize, std::string) {
  const PairArguments a = make_arguments("proxy_anchor_loss", embeddings, labels, proxies, normalize);
  const ProxyAnchor loss{alpha, margin};
  return compute_type(embeddings) == ScalarType::Double ? forward_as<double>(a, loss) : forward_as<float>(a, loss);
}

std::tuple<Tensor, Tensor> proxy_anchor_bwd(const Tensor& grad_loss, const Tensor& embeddings, const Tensor& labels,
                                            const Tensor& proxies, const Tensor& proxy_stats, double margin,
                                            double alpha, bool normalize, std::string) {
  const char* op = "proxy_anchor_bwd";
  const PairArguments a = make_arguments(op, embeddings, labels, proxies, normalize);
  check_proxy_anchor_state(op, grad_loss, proxy_stats, proxies);
  const ProxyAnchor loss{alpha, margin};
  const Tensor stats = torch::stable::contiguous(proxy_stats);
  if (compute_type(embeddings) == ScalarType::Double)
    return backward_as<double>(a, loss, *static_cast<const double*>(grad_loss.const_data_ptr()), stats);
  return backward_as<float>(a, loss, *static_cast<const float*>(grad_loss.const_data_ptr()), stats);
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("proxy_anchor_fwd", TORCH_BOX(&dml::proxy_anchor_fwd));
  m.impl("proxy_anchor_bwd", TORCH_BOX(&dml::proxy_anchor_bwd));
}
