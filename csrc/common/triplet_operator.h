#pragma once
// The triplet operators as they are registered, once for every backend: Backend::forward<T> and Backend::backward<T> do
// the work.

#include <tuple>

#include "common/triplet_arguments.h"

namespace dml {

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> triplet_fwd(const Tensor& embeddings, const Tensor& labels,
                                                       std::optional<Tensor> ref_emb, std::optional<Tensor> ref_labels,
                                                       std::optional<Tensor> ids, std::optional<Tensor> ref_ids,
                                                       std::optional<int64_t> ignore_index, bool normalize,
                                                       std::string negative, double margin, bool soft,
                                                       std::string precision, bool, bool check) {
  const char* op = "triplet";
  const PairArguments a(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  const TripletOptions o{negative, margin, soft};
  o.check(op);
  return compute_type(embeddings) == ScalarType::Double ? Backend::template forward<double>(a, o, precision, check)
                                                        : Backend::template forward<float>(a, o, precision, check);
}

template <class Backend>
std::tuple<Tensor, Tensor> triplet_bwd(const Tensor& grad_loss_sum, const Tensor& embeddings, const Tensor& labels,
                                       std::optional<Tensor> ref_emb, std::optional<Tensor> ref_labels,
                                       std::optional<Tensor> ids, std::optional<Tensor> ref_ids,
                                       std::optional<int64_t> ignore_index, bool normalize, const Tensor& active,
                                       std::string negative, double margin, bool soft, std::string precision, bool,
                                       bool need_grad_ref) {
  const char* op = "triplet_bwd";
  const PairArguments a(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  const TripletOptions o{negative, margin, soft};
  o.check(op);
  check_triplet_state(op, a, o, grad_loss_sum, active, need_grad_ref);
  const Tensor grad = torch::stable::contiguous(grad_loss_sum), tiles = torch::stable::contiguous(active);
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template backward<double>(a, o, grad, tiles, precision, need_grad_ref)
             : Backend::template backward<float>(a, o, grad, tiles, precision, need_grad_ref);
}

}  // namespace dml
