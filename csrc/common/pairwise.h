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

// ||x||^2 and the difference form are added up in one order on every backend, without contraction, so that their bits
// agree: partial sums of the k that are equal mod 16, whose halves are added until one is left.
constexpr int kPartialSums = 16;
template <class V>
DML_INLINE V add_halves(V (&sums)[kPartialSums]) {
  for (int half = kPartialSums / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) sums[k] = sums[k] + sums[k + half];
  return sums[0];
}

// Rows are divided by their norm, but at least by this. Then ||f||^2 is 1 by definition (norm / norm: NaN where the
// norm is not finite); of a shorter row it is the sum of the squares of the scaled row, which do not underflow.
constexpr double kShortest = 1e-12;

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
