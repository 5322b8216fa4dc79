#pragma once
// The arguments of pairwise, checked.

#include "common/check.h"
#include "common/pairwise.h"

namespace dml {

inline Metric metric_of(const char* op, const std::string& name) {
  check_choice(op, "metric", name, {"dot", "euclidean", "squared"});
  return name == "dot" ? Metric::dot : name == "euclidean" ? Metric::euclidean : Metric::squared;
}

inline void check_pairwise(const char* op, const Tensor& x, const std::optional<Tensor>& y) {
  check_matrix(op, "x", x);
  if (y) check_like(op, "y", *y, x);
}

inline void check_pairwise_gradient(const char* op, const Tensor& grad_out, const Tensor& x,
                                    const std::optional<Tensor>& y) {
  check_matrix(op, "grad_out", grad_out);
  DML_CHECK(grad_out.size(0) == x.size(0) && grad_out.size(1) == (y ? *y : x).size(0), op, "grad_out", "(M, N)",
            grad_out);
  DML_CHECK(grad_out.scalar_type() == x.scalar_type(), op, "grad_out", text(x.scalar_type()) + " like x",
            grad_out.scalar_type());
}

}  // namespace dml
