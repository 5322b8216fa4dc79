#pragma once
// The ranked_list operators as they are registered, once for every backend: Backend::forward<T> and
// Backend::backward<T> do the work.

#include <tuple>

#include "common/ranked_list_arguments.h"

namespace dml {

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ranked_list_fwd(
    const Tensor& embeddings, const Tensor& labels, std::optional<Tensor> ref_emb, std::optional<Tensor> ref_labels,
    std::optional<Tensor> ids, std::optional<Tensor> ref_ids, std::optional<int64_t> ignore_index, bool normalize,
    double alpha, double margin, double pos_temperature, double neg_temperature, double pos_weight, double neg_weight,
    bool weight_grad, std::string grad, std::string positive, std::string eps_mode, std::string precision,
    bool deterministic, bool check) {
  const char* op = "ranked_list";
  const PairArguments a(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  const RankedListOptions o{alpha,       margin, pos_temperature, neg_temperature, pos_weight, neg_weight,
                            weight_grad, grad,   positive,        eps_mode};
  o.check(op);
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template forward<double>(a, o, precision, deterministic, check)
             : Backend::template forward<float>(a, o, precision, deterministic, check);
}

template <class Backend>
std::tuple<Tensor, Tensor> ranked_list_bwd(const Tensor& grad_loss, const Tensor& embeddings, const Tensor& labels,
                                           std::optional<Tensor> ref_emb, std::optional<Tensor> ref_labels,
                                           std::optional<Tensor> ids, std::optional<Tensor> ref_ids,
                                           std::optional<int64_t> ignore_index, bool normalize, const Tensor& row_stats,
                                           const Tensor& easy_index, const Tensor& active, double alpha, double margin,
                                           double pos_temperature, double neg_temperature, double pos_weight,
                                           double neg_weight, bool weight_grad, std::string grad, std::string positive,
                                           std::string eps_mode, std::string precision, bool, bool need_grad_ref) {
  const char* op = "ranked_list_bwd";
  const PairArguments a(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  const RankedListOptions o{alpha,       margin, pos_temperature, neg_temperature, pos_weight, neg_weight,
                            weight_grad, grad,   positive,        eps_mode};
  o.check(op);
  check_ranked_list_state(op, a, o, grad_loss, row_stats, easy_index, active, need_grad_ref);
  using torch::stable::contiguous;
  const Tensor g = contiguous(grad_loss), stats = contiguous(row_stats), easy = contiguous(easy_index),
               tiles = contiguous(active);
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template backward<double>(a, o, g, stats, easy, tiles, precision, need_grad_ref)
             : Backend::template backward<float>(a, o, g, stats, easy, tiles, precision, need_grad_ref);
}

}  // namespace dml
