#pragma once
// Distance of a pair from its dot product (MATH: "Distances and their numerics"). V is a number type or a vector of
// them.

#include "common/hd.h"

namespace dml {

enum class Metric { dot, euclidean, squared };

inline namespace DML_ISA {

// Squared distances up to this share of ||f||^2 + ||g||^2 are recomputed in difference form: the product form cancels.
constexpr double kNear = 0.005;
// norms = ||f||^2 + ||g||^2. max returns its second operand where one is NaN, so a NaN stays one.
template <class V>
DML_INLINE V product_form(V dot, V norms) {
  return max(V(0), fma(V(-2), dot, norms));
}

template <class V>
DML_INLINE auto is_near(V squared, V norms) {
  return squared <= norms * V(kNear);
}

// 1/d as the weight of a gradient; coincident points, up to 4 eps of the rows' norm, get none.
template <class V>
DML_INLINE V gradient_scale(V squared, V distance, V norms, double eps) {
  return select(squared > norms * V(8 * eps * eps), V(1) / distance, V(0));
}
template <class V>
DML_INLINE V gradient_scale(V squared, V norms, double eps) {
  return gradient_scale(squared, sqrt(squared), norms, eps);
}

}  // namespace DML_ISA
}  // namespace dml
