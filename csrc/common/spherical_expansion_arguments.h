#pragma once
// Arguments of spherical_expansion, checked.

#include "common/check.h"

namespace dml {

inline void check_spherical_expansion(const char* op, const Tensor& z, const Tensor& proxies, const Tensor& noise,
                                      int64_t n) {
  check_matrix(op, "z", z);
  check_like(op, "proxies", proxies, z);
  DML_CHECK(proxies.size(0) == z.size(0), op, "proxies", "(k, D) like z", proxies);
  DML_CHECK(n >= 1 && n + 1 <= z.size(1), op, "n", "at least 1 and at most D - 1", n);
  DML_CHECK(noise.dim() == 3 && noise.size(0) == z.size(0) && noise.size(1) == n - 1 && noise.size(2) == z.size(1), op,
            "noise", "(k, n-1, D)", noise);
  DML_CHECK(noise.scalar_type() == z.scalar_type(), op, "noise", text(z.scalar_type()) + " like z",
            noise.scalar_type());
}

inline void check_spherical_expansion_bwd(const char* op, const Tensor& grad, const Tensor& z, const Tensor& proxies,
                                          const Tensor& noise, int64_t n) {
  check_spherical_expansion(op, z, proxies, noise, n);
  check_like(op, "grad", grad, z);
  DML_CHECK(grad.size(0) == z.size(0) * n, op, "grad", "(k*n, D)", grad);
}

}  // namespace dml
