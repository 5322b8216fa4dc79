#pragma once
// The pair_loss operators as they are registered, once for every backend: Backend::forward<T> and Backend::backward<T>
// do the work.

#include <tuple>

#include "common/pair_loss_arguments.h"

namespace dml {

// What a backward is given beside the arguments of its forward, contiguous.
struct PairLossState {
  Tensor grad_stats, grad_sums, stats, active;
};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pair_loss_fwd(
    const Tensor& embeddings, const Tensor& labels, std::optional<Tensor> ref_emb, std::optional<Tensor> ref_labels,
    std::optional<Tensor> ids, std::optional<Tensor> ref_ids, std::optional<int64_t> ignore_index, bool normalize,
    std::optional<Tensor> bounds, std::string value, std::string term, std::string sides, double pos_scale,
    double pos_base, double pos_ramp, double pos_origin, double neg_scale, double neg_base, double neg_ramp,
    double neg_origin, std::string precision, bool deterministic, bool check) {
  const char* op = "pair_loss";
  const PairArguments a(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  const PairLossOptions o{
      value, term, sides, {pos_scale, pos_base, pos_ramp, pos_origin}, {neg_scale, neg_base, neg_ramp, neg_origin}};
  o.check(op);
  check_bounds(op, bounds, a);
  const std::optional<Tensor> b = contiguous(bounds);
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template forward<double>(a, o, b, precision, deterministic, check)
             : Backend::template forward<float>(a, o, b, precision, deterministic, check);
}

template <class Backend>
std::tuple<Tensor, Tensor> pair_loss_bwd(const Tensor& grad_stats, const Tensor& grad_sums, const Tensor& embeddings,
                                         const Tensor& labels, std::optional<Tensor> ref_emb,
                                         std::optional<Tensor> ref_labels, std::optional<Tensor> ids,
                                         std::optional<Tensor> ref_ids, std::optional<int64_t> ignore_index,
                                         bool normalize, const Tensor& stats, const Tensor& active,
                                         std::optional<Tensor> bounds, std::string value, std::string term,
                                         std::string sides, double pos_scale, double pos_base, double pos_ramp,
                                         double pos_origin, double neg_scale, double neg_base, double neg_ramp,
                                         double neg_origin, std::string precision, bool, bool need_grad_ref) {
  const char* op = "pair_loss_bwd";
  const PairArguments a(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  const PairLossOptions o{
      value, term, sides, {pos_scale, pos_base, pos_ramp, pos_origin}, {neg_scale, neg_base, neg_ramp, neg_origin}};
  o.check(op);
  check_bounds(op, bounds, a);
  check_pair_loss_state(op, a, grad_stats, grad_sums, stats, active, need_grad_ref);
  using torch::stable::contiguous;
  const PairLossState state{contiguous(grad_stats), contiguous(grad_sums), contiguous(stats), contiguous(active)};
  const std::optional<Tensor> b = dml::contiguous(bounds);
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template backward<double>(a, o, b, state, precision, need_grad_ref)
             : Backend::template backward<float>(a, o, b, state, precision, need_grad_ref);
}

}  // namespace dml
