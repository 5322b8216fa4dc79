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

  template <class Taken>
  explicit PairArguments(const Taken& t)
      : op(Taken::subject),
        embeddings(as_contiguous(t.embeddings)),
        labels(as_contiguous(t.labels)),
        ref_emb(as_contiguous(t.ref_emb)),
        ref_labels(as_contiguous(t.ref_labels)),
        ids(as_contiguous(t.ids)),
        ref_ids(as_contiguous(t.ref_ids)),
        ignore_index(t.ignore_index),
        normalize(t.normalize) {}
  bool self() const { return !ref_emb.has_value(); }
  int64_t queries() const { return embeddings.size(0); }
  int64_t gallery() const { return ref_emb ? ref_emb->size(0) : embeddings.size(0); }
};

}  // namespace dml
