#pragma once
// Cholesky factorisation of small matrices, one in each lane of a vector.

#include "cpu/kernel_table.h"

namespace dml {

constexpr int kSmallMatrix = 32;  // 16 matrices of floats are 64 KB; above, LAPACK on one matrix is as fast

template <class T>
struct CholeskyKernels {
  int lanes;
  // a: (n, n, lanes), lower triangles, destroyed. inverse: (n, n, lanes), or null. scratch: as large as a.
  void (*factor)(T* a, int n, double* logdet, T* inverse, T* scratch);

  template <Isa isa>
  static CholeskyKernels make();
};

}  // namespace dml
