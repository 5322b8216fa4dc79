#pragma once
// The arguments that every pair operator begins with, checked, contiguous.

#include "common/operators.h"

namespace dml {

struct PairArguments {
  const char* op;
  Tensor embeddings, labels;
  std::optional<Tensor> ref_emb, ref_labels, ids, ref_ids;
  std::optional<int64_t> ignore_index;
  bool normalize;

  PairArguments(const char* op, const Tensor& embeddings, const Tensor& labels, const std::optional<Tensor>& ref_emb,
                const std::optional<Tensor>& ref_labels, const std::optional<Tensor>& ids,
                const std::optional<Tensor>& ref_ids, std::optional<int64_t> ignore_index, bool normalize)
      : op(op),
        embeddings(torch::stable::contiguous(embeddings)),
        labels(torch::stable::contiguous(labels)),
        ref_emb(contiguous(ref_emb)),
        ref_labels(contiguous(ref_labels)),
        ids(contiguous(ids)),
        ref_ids(contiguous(ref_ids)),
        ignore_index(ignore_index),
        normalize(normalize) {
    check_matrix(op, "embeddings", embeddings);
    check_vector(op, "labels", labels, embeddings.size(0), ScalarType::Long);
    if (ids) check_vector(op, "ids", *ids, embeddings.size(0), ScalarType::Long);
    DML_CHECK(ref_emb.has_value() == ref_labels.has_value(), op, "ref_labels", "given with ref_emb, and only then",
              std::string(ref_labels ? "a tensor" : "None"));
    DML_CHECK(ref_ids.has_value() == (ref_emb.has_value() && ids.has_value()), op, "ref_ids",
              "given with ids and ref_emb, and only then", std::string(ref_ids ? "a tensor" : "None"));
    if (!ref_emb) return;
    check_like(op, "ref_emb", *ref_emb, embeddings);
    check_vector(op, "ref_labels", *ref_labels, ref_emb->size(0), ScalarType::Long);
    if (ref_ids) check_vector(op, "ref_ids", *ref_ids, ref_emb->size(0), ScalarType::Long);
  }
  // Of what is checked.
  template <class Taken>
  explicit PairArguments(const Taken& t)
      : op(Taken::subject),
        embeddings(torch::stable::contiguous(t.embeddings)),
        labels(torch::stable::contiguous(t.labels)),
        ref_emb(contiguous(t.ref_emb)),
        ref_labels(contiguous(t.ref_labels)),
        ids(contiguous(t.ids)),
        ref_ids(contiguous(t.ref_ids)),
        ignore_index(t.ignore_index),
        normalize(t.normalize) {}
  bool self() const { return !ref_emb.has_value(); }
  int64_t queries() const { return embeddings.size(0); }
  int64_t gallery() const { return ref_emb ? ref_emb->size(0) : embeddings.size(0); }
};

}  // namespace dml
