#pragma once
// The distance_weighted operator as it is registered, once for every backend: Backend::forward<T> does the work.

#include "common/distance_weighted.h"
#include "common/pair_arguments.h"

namespace dml {

template <class Backend>
Tensor distance_weighted_fwd(const Tensor& embeddings, const Tensor& labels, std::optional<Tensor> ref_emb,
                             std::optional<Tensor> ref_labels, std::optional<Tensor> ids, std::optional<Tensor> ref_ids,
                             std::optional<int64_t> ignore_index, bool normalize, const Tensor& uniforms, double cutoff,
                             double nonzero_loss_cutoff, std::string precision, bool check) {
  const char* op = "distance_weighted";
  const PairArguments a(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize);
  DML_CHECK(uniforms.dim() == 2 && uniforms.size(0) == a.queries(), op, "uniforms", "(M, S)", uniforms);
  DML_CHECK(uniforms.scalar_type() == ScalarType::Double, op, "uniforms", "float64", uniforms.scalar_type());
  DML_CHECK(nonzero_loss_cutoff <= 2, op, "nonzero_loss_cutoff", "at most 2", std::to_string(nonzero_loss_cutoff));
  DML_CHECK(cutoff > 0 && cutoff < nonzero_loss_cutoff, op, "cutoff", "between 0 and nonzero_loss_cutoff",
            std::to_string(cutoff));
  const DistanceDensity density = DistanceDensity::make(embeddings.size(1), cutoff, nonzero_loss_cutoff);
  const Tensor u = torch::stable::contiguous(uniforms);
  return compute_type(embeddings) == ScalarType::Double
             ? Backend::template forward<double>(a, u, density, precision, check)
             : Backend::template forward<float>(a, u, density, precision, check);
}

}  // namespace dml
