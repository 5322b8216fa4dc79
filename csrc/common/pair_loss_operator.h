#pragma once
// The pair_loss operators as they are registered, once for every backend: Backend::forward<T> and Backend::backward<T>
// do the work.

#include <tuple>

#include "common/pair_loss_arguments.h"

namespace dml {

// What a backward is given beside the arguments of its forward, contiguous.
struct PairLossState {
  Tensor grad_stats, grad_log_sums, grad_sums, stats, log_sums, active;
};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_loss_fwd(
    const Tensor& embeddings, const Tensor& labels, std::optional<Tensor> ref_emb, std::optional<Tensor> ref_labels,
    std::optional<Tensor> ids, std::optional<Tensor> ref_ids, std::optional<int64_t> ignore_index, bool normalize,
    std::optional<Tensor> bounds, std::optional<int64_t> classes, std::string value, std::string pos_term,
    double pos_scale, double pos_base, double pos_ramp, double pos_origin, double pos_temperature, std::string neg_term,
    double neg_scale, double neg_base, double neg_ramp, double neg_origin, double neg_temperature, bool weight_grad,
    std::string grad, bool apart, std::string precision, bool deterministic, bool check) {
  const char* op = "pair_loss";
  const PairArguments a(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  const PairLossOptions o{
      value,
      classes,
      {pair_term(op, "pos_term", pos_term), pos_scale, pos_base, pos_ramp, pos_origin, pos_temperature},
      {pair_term(op, "neg_term", neg_term), neg_scale, neg_base, neg_ramp, neg_origin, neg_temperature},
      weight_grad,
      grad,
      apart};
  o.check(op);
  check_bounds(op, bounds, o, a);
  const std::optional<Tensor> b = contiguous(bounds);
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template forward<double>(a, o, b, precision, deterministic, check)
             : Backend::template forward<float>(a, o, b, precision, deterministic, check);
}

template <class Backend>
std::tuple<Tensor, Tensor> pair_loss_bwd(
    const Tensor& grad_stats, const Tensor& grad_log_sums, const Tensor& grad_sums, const Tensor& embeddings,
    const Tensor& labels, std::optional<Tensor> ref_emb, std::optional<Tensor> ref_labels, std::optional<Tensor> ids,
    std::optional<Tensor> ref_ids, std::optional<int64_t> ignore_index, bool normalize, const Tensor& stats,
    const Tensor& log_sums, const Tensor& active, std::optional<Tensor> bounds, std::optional<int64_t> classes,
    std::string value, std::string pos_term, double pos_scale, double pos_base, double pos_ramp, double pos_origin,
    double pos_temperature, std::string neg_term, double neg_scale, double neg_base, double neg_ramp, double neg_origin,
    double neg_temperature, bool weight_grad, std::string grad, bool apart, std::string precision, bool,
    bool need_grad_ref) {
  const char* op = "pair_loss_bwd";
  const PairArguments a(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  const PairLossOptions o{
      value,
      classes,
      {pair_term(op, "pos_term", pos_term), pos_scale, pos_base, pos_ramp, pos_origin, pos_temperature},
      {pair_term(op, "neg_term", neg_term), neg_scale, neg_base, neg_ramp, neg_origin, neg_temperature},
      weight_grad,
      grad,
      apart};
  o.check(op);
  check_bounds(op, bounds, o, a);
  check_pair_loss_state(op, a, grad_stats, grad_log_sums, grad_sums, stats, log_sums, active, need_grad_ref);
  using torch::stable::contiguous;
  const PairLossState state{contiguous(grad_stats), contiguous(grad_log_sums), contiguous(grad_sums),
                            contiguous(stats),      contiguous(log_sums),      contiguous(active)};
  const std::optional<Tensor> b = dml::contiguous(bounds);
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template backward<double>(a, o, b, state, precision, need_grad_ref)
             : Backend::template backward<float>(a, o, b, state, precision, need_grad_ref);
}

}  // namespace dml
