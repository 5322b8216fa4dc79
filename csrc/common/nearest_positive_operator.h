#pragma once
// The operators nearest_positive and mine as they are registered, once for every backend: Backend::nearest_positive<T>,
// Backend::mine<T> and Backend::listed_backward<T> do the work.

#include <tuple>
#include <vector>

#include "common/pair_arguments.h"

namespace dml {

using Selected = std::tuple<Tensor, Tensor>;
using Mined = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// For each query the gallery row that it chose (-1 for nobody), and the gradient of their distance.
struct Listed {
  Tensor index, grad;
};

template <class Backend>
Selected nearest_positive_fwd(const Tensor& embeddings, const Tensor& labels, std::optional<Tensor> ref_emb,
                              std::optional<Tensor> ref_labels, std::optional<Tensor> ids,
                              std::optional<Tensor> ref_ids, std::optional<int64_t> ignore_index, bool normalize,
                              std::string precision, bool check) {
  const PairArguments a("nearest_positive", embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index,
                        normalize);
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template nearest_positive<double>(a, precision, check)
             : Backend::template nearest_positive<float>(a, precision, check);
}

template <class Backend>
Mined mine_fwd(const Tensor& embeddings, const Tensor& labels, std::optional<Tensor> ref_emb,
               std::optional<Tensor> ref_labels, std::optional<Tensor> ids, std::optional<Tensor> ref_ids,
               std::optional<int64_t> ignore_index, bool normalize, std::string positive, std::string negative,
               std::string precision, bool check) {
  check_choice("mine", "positive", positive, {"easy", "hard"});
  check_choice("mine", "negative", negative, {"hard", "semihard"});
  const PairArguments a("mine", embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  const bool farthest = positive == "hard", semihard = negative == "semihard";
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template mine<double>(a, farthest, semihard, precision, check)
             : Backend::template mine<float>(a, farthest, semihard, precision, check);
}

template <class Backend>
Selected listed_bwd(const char* op, const Tensor& embeddings, const std::optional<Tensor>& ref_emb,
                    std::vector<Listed> lists, bool normalize, bool need_grad_ref) {
  check_matrix(op, "embeddings", embeddings);
  if (ref_emb) check_like(op, "ref_emb", *ref_emb, embeddings);
  DML_CHECK(ref_emb || !need_grad_ref, op, "need_grad_ref", "false without ref_emb", std::string("true"));
  using torch::stable::contiguous;
  for (Listed& list : lists) {
    check_vector(op, "grad", list.grad, embeddings.size(0), compute_type(embeddings));
    check_vector(op, "index", list.index, embeddings.size(0), ScalarType::Long);
    list = Listed{contiguous(list.index), contiguous(list.grad)};
  }
  const Tensor x = contiguous(embeddings);
  const std::optional<Tensor> y = dml::contiguous(ref_emb);
  return compute_type(x) == ScalarType::Double
             ? Backend::template listed_backward<double>(op, x, y, lists, normalize, need_grad_ref)
             : Backend::template listed_backward<float>(op, x, y, lists, normalize, need_grad_ref);
}

template <class Backend>
Selected nearest_positive_bwd(const Tensor& grad, const Tensor& embeddings, std::optional<Tensor> ref_emb,
                              const Tensor& index, bool normalize, bool need_grad_ref) {
  return listed_bwd<Backend>("nearest_positive_bwd", embeddings, ref_emb, {{index, grad}}, normalize, need_grad_ref);
}

template <class Backend>
Selected mine_bwd(const Tensor& grad_pos, const Tensor& grad_neg, const Tensor& embeddings,
                  std::optional<Tensor> ref_emb, const Tensor& pos_index, const Tensor& neg_index, bool normalize,
                  bool need_grad_ref) {
  return listed_bwd<Backend>("mine_bwd", embeddings, ref_emb, {{pos_index, grad_pos}, {neg_index, grad_neg}}, normalize,
                             need_grad_ref);
}

}  // namespace dml
