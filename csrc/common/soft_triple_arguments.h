#pragma once
// The arguments of soft_triple, checked; what the labels hold is checked where they are (csrc/cpu) or gives NaN.

#include <cmath>

#include "common/check.h"
#include "common/soft_triple.h"

namespace dml {

inline SoftTriple check_soft_triple(const char* op, const Tensor& embeddings, const Tensor& labels,
                                    const Tensor& centers, int64_t centers_per_class, double la, double gamma,
                                    double margin) {
  check_matrix(op, "embeddings", embeddings);
  check_like(op, "centers", centers, embeddings);
  check_vector(op, "labels", labels, embeddings.size(0), ScalarType::Long);
  DML_CHECK(centers_per_class > 0 && centers_per_class <= kMaxCentersPerClass, op, "centers_per_class",
            "in [1, " + text(kMaxCentersPerClass) + "]", centers_per_class);
  DML_CHECK(centers.size(0) % centers_per_class == 0, op, "centers", "(C*K, D) with K=" + text(centers_per_class),
            centers);
  DML_CHECK(gamma > 0 && std::isfinite(gamma), op, "gamma", "a positive number", std::to_string(gamma));
  return SoftTriple{la, 1 / gamma, margin, centers_per_class};
}

inline void check_soft_triple_state(const char* op, const Tensor& grad_loss, const Tensor& row_stats,
                                    const Tensor& embeddings) {
  const ScalarType type = compute_type(embeddings);
  check_vector(op, "grad_loss", grad_loss, embeddings.size(0), type);
  DML_CHECK(row_stats.dim() == 2 && row_stats.size(0) == 2 && row_stats.size(1) == embeddings.size(0), op, "row_stats",
            "(2, M)", row_stats);
  DML_CHECK(row_stats.scalar_type() == type, op, "row_stats", text(type), row_stats.scalar_type());
}

}  // namespace dml
