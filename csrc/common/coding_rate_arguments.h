#pragma once
// What follows from the arguments of the coding rates and of the log-determinant alone.

#include <algorithm>

#include "common/coding_rate.h"
#include "common/operators.h"

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

inline RateOptions rate_options(const operators::coding_rate_fwd& a) {
  return RateOptions{a.eps_squared, a.gain, a.scale == "official_proxy", a.normalize, a.need_grad};
}

// Not an error of the call: whether a matrix is definite is for the data to say.
[[noreturn]] inline void fail_not_positive_definite(int64_t matrix) {
  throw std::runtime_error("cholesky_logdet: A must be positive definite (check=True), got A[" + text(matrix) +
                           "] that is not");
}

}  // namespace dml
