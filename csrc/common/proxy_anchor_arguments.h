#pragma once
// The arguments of proxy_anchor, checked; what the labels hold is checked where they are (csrc/cpu) or gives NaN.

#include "common/check.h"

namespace dml {

inline void check_proxy_anchor(const char* op, const Tensor& embeddings, const Tensor& labels, const Tensor& proxies) {
  check_matrix(op, "embeddings", embeddings);
  check_like(op, "proxies", proxies, embeddings);
  check_vector(op, "labels", labels, embeddings.size(0), ScalarType::Long);
}

inline void check_proxy_anchor_state(const char* op, const Tensor& grad_loss, const Tensor& proxy_stats,
                                     const Tensor& proxies) {
  const ScalarType type = compute_type(proxies);
  DML_CHECK(grad_loss.dim() == 0 && grad_loss.scalar_type() == type, op, "grad_loss", "() " + text(type), grad_loss);
  DML_CHECK(proxy_stats.dim() == 2 && proxy_stats.size(0) == 2 && proxy_stats.size(1) == proxies.size(0), op,
            "proxy_stats", "(2, C)", proxy_stats);
  DML_CHECK(proxy_stats.scalar_type() == type, op, "proxy_stats", text(type), proxy_stats.scalar_type());
}

}  // namespace dml
