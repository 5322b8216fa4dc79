#pragma once
// Coding rate R = 1/2 logdet(I + a Z Z^T) (Yu et al., NeurIPS 2020) and a small Cholesky factorisation on a number
// type: on a vector of numbers it factors as many matrices at once.

#include <math.h>
#include <stdint.h>

#include "common/hd.h"

namespace dml {
inline namespace DML_ISA {

// a of n rows of width d; official: the inverse scale of the Anti-Collapse authors' code.
DML_HD inline double rate_scale(int64_t n, int64_t d, double eps_squared, bool official) {
  const double rows = static_cast<double>(n), width = static_cast<double>(d);
  return (official ? rows / width : width / rows) / eps_squared;
}

// Factors the lower triangle in place, entry (i, j) at a[(i * n + j) * Step]. `pivot(j, d)` sees the squared diagonal
// of L, NaN where the matrix is not positive definite; everything after that is NaN too.
template <int Step, class V, class T, class Pivot>
DML_INLINE void cholesky_in_place(T* a, int n, const Pivot& pivot) {
  for (int j = 0; j < n; ++j) {
    V d = load<V>(a + (j * n + j) * Step);
    for (int k = 0; k < j; ++k) {
      const V l = load<V>(a + (j * n + k) * Step);
      d = fma(V(0) - l, l, d);
    }
    d = select(d > V(0), d + (d - d), V(NAN));  // an infinite pivot is none either
    pivot(j, d);
    const V root = sqrt(d), inverse_root = V(1) / root;
    store(a + (j * n + j) * Step, root);
    for (int i = j + 1; i < n; ++i) {
      V s = load<V>(a + (i * n + j) * Step);
      for (int k = 0; k < j; ++k) s = fma(V(0) - load<V>(a + (i * n + k) * Step), load<V>(a + (j * n + k) * Step), s);
      store(a + (i * n + j) * Step, s * inverse_root);
    }
  }
}

// X = L^-1 below and on the diagonal.
template <int Step, class V, class T>
DML_INLINE void invert_factor(const T* l, int n, T* x) {
  for (int i = 0; i < n; ++i) {
    const V inverse_diagonal = V(1) / load<V>(l + (i * n + i) * Step);
    store(x + (i * n + i) * Step, inverse_diagonal);
    for (int j = 0; j < i; ++j) {
      V s(0);
      for (int k = j; k < i; ++k) s = fma(load<V>(l + (i * n + k) * Step), load<V>(x + (k * n + j) * Step), s);
      store(x + (i * n + j) * Step, V(0) - s * inverse_diagonal);
    }
  }
}

// A^-1 = X^T X, both triangles.
template <int Step, class V, class T>
DML_INLINE void inverse_from_factor(const T* x, int n, T* inverse) {
  for (int i = 0; i < n; ++i)
    for (int j = 0; j <= i; ++j) {
      V s(0);
      for (int k = i; k < n; ++k) s = fma(load<V>(x + (k * n + i) * Step), load<V>(x + (k * n + j) * Step), s);
      store(inverse + (i * n + j) * Step, s);
      store(inverse + (j * n + i) * Step, s);
    }
}

}  // namespace DML_ISA
}  // namespace dml
