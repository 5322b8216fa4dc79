#pragma once
// Arguments of the coding rates and of the log-determinant, checked, and what follows from them alone.

#include <algorithm>

#include "common/check.h"
#include "common/coding_rate.h"

namespace dml {

// The error of a float32 gradient grows as 1e-8 times the condition number: above this, factor in float64.
constexpr double kFloatCondition = 1e5;
// Up to this bound of the condition number a product with the inverse is as accurate as two triangular solves.
constexpr double kInvertible = 1e4;

struct RateOptions {
  double eps_squared, gain;
  bool official, normalize, need_grad;
};

// Largest eigenvalue of I + a Z Z^T, at most, where the squared norms of the n rows add up to `trace`.
inline double condition_bound(int64_t n, int64_t d, const RateOptions& o, double trace) {
  return 1 + o.gain * rate_scale(std::max<int64_t>(n, 1), std::max<int64_t>(d, 1), o.eps_squared, o.official) * trace;
}

inline RateOptions check_coding_rate(const Tensor& z, const std::optional<Tensor>& labels, double eps_squared,
                                     double gain, const std::string& scale, bool normalize, bool need_grad) {
  const char* op = "coding_rate";
  check_matrix(op, "z", z);
  check_choice(op, "scale", scale, {"mcr2", "official_proxy"});
  if (labels) check_vector(op, "labels", *labels, z.size(0), ScalarType::Long);
  DML_CHECK(eps_squared > 0 && gain > 0, op, "eps_squared and gain", "positive",
            std::to_string(eps_squared) + ", " + std::to_string(gain));
  return RateOptions{eps_squared, gain, scale == "official_proxy", normalize, need_grad};
}

inline void check_coding_rate_bwd(const Tensor& grad_rate, const Tensor& rate_grad) {
  const char* op = "coding_rate_bwd";
  check_matrix(op, "rate_grad", rate_grad);
  DML_CHECK(grad_rate.dim() == 0, op, "grad_rate", "()", grad_rate);
  DML_CHECK(grad_rate.scalar_type() == compute_type(rate_grad), op, "grad_rate", text(compute_type(rate_grad)),
            grad_rate.scalar_type());
}

inline void check_cholesky(const Tensor& A) {
  const char* op = "cholesky_logdet";
  DML_CHECK(A.dim() == 3 && A.size(1) == A.size(2), op, "A", "(B, n, n)", A);
  DML_CHECK(A.scalar_type() == ScalarType::Double || A.scalar_type() == ScalarType::Float, op, "A",
            "float64 or float32", A.scalar_type());
}

inline void check_cholesky_bwd(const Tensor& grad_logdet, const Tensor& inverse) {
  const char* op = "cholesky_bwd";
  DML_CHECK(inverse.dim() == 3 && inverse.size(1) == inverse.size(2), op, "inverse", "(B, n, n)", inverse);
  check_vector(op, "grad_logdet", grad_logdet, inverse.size(0), inverse.scalar_type());
  DML_CHECK(inverse.scalar_type() == ScalarType::Double || inverse.scalar_type() == ScalarType::Float, op, "inverse",
            "float64 or float32", inverse.scalar_type());
}

[[noreturn]] inline void fail_not_positive_definite(int64_t matrix) {
  fail("cholesky_logdet", "A", "positive definite (check=True)", "A[" + text(matrix) + "] that is not");
}

}  // namespace dml
