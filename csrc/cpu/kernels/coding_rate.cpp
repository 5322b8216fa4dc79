#include "cpu/coding_rate_kernels.h"

#include "cpu/simd.h"

#include "common/coding_rate.h"

namespace dml {
inline namespace DML_ISA {
namespace {

template <class T>
void factor(T* a, int n, double* logdet, T* inverse, T* scratch) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  for (int lane = 0; lane < L; ++lane) logdet[lane] = 0;
  cholesky_in_place<L, V>(a, n, [&](int, V d) {
    alignas(64) T pivot[L];
    store(pivot, d);
    for (int lane = 0; lane < L; ++lane) logdet[lane] += ::log(static_cast<double>(pivot[lane]));
  });
  if (inverse == nullptr) return;
  invert_factor<L, V>(a, n, scratch);
  inverse_from_factor<L, V>(scratch, n, inverse);
}

template <class T>
CholeskyKernels<T> table() {
  return {Simd<T>::lanes, factor<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
CholeskyKernels<float> CholeskyKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
CholeskyKernels<double> CholeskyKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
