#pragma once
// The number type of the formulae in csrc/common on a device: one float or double. Include it before any of them.

#include <math.h>

#include "common/hd.h"
#include "cuda/launch.cuh"

namespace dml {
inline namespace DML_ISA {

#define DML_NUMBER(T, fma_of, sqrt_of, exp_of, log_of, add_of, mul_of)           \
  DML_DEVICE T fma(T a, T b, T c) { return ::fma_of(a, b, c); }                  \
  DML_DEVICE T sqrt(T a) { return ::sqrt_of(a); }                                \
  DML_DEVICE T exp(T a) { return ::exp_of(a); }                                  \
  DML_DEVICE T log(T a) { return ::log_of(a); }                                  \
  /* Rounded, where the compiler may not make an fma of it. */                   \
  DML_DEVICE T product(T a, T b) { return ::mul_of(a, b); }                      \
  DML_DEVICE T add_square(T sum, T a) { return ::add_of(sum, ::mul_of(a, a)); }  \
  /* The second operand where one is NaN, as the vector instructions of CPUs. */ \
  DML_DEVICE T max(T a, T b) { return a > b ? a : b; }                           \
  DML_DEVICE T min(T a, T b) { return a < b ? a : b; }                           \
  DML_DEVICE T select(bool m, T a, T b) { return m ? a : b; }
DML_NUMBER(float, fmaf, sqrtf, expf, logf, __fadd_rn, __fmul_rn)
DML_NUMBER(double, fma, sqrt, exp, log, __dadd_rn, __dmul_rn)
#undef DML_NUMBER

template <class V, class T>
DML_DEVICE V load(const T* p) {
  return *p;
}
template <class T>
DML_DEVICE void store(T* p, T a) {
  *p = a;
}

template <class T>
DML_DEVICE T not_a_number() {
  return static_cast<T>(NAN);
}

DML_DEVICE bool is_finite(float x) { return ::fabsf(x) <= 3.4028234663852886e38f; }
DML_DEVICE bool is_finite(double x) { return ::fabs(x) <= 1.7976931348623157e308; }

template <class T>
constexpr T kSmallestNormal = sizeof(T) == 4 ? T(1.17549435e-38) : T(2.2250738585072014e-308);
template <class T>
constexpr double kEps = sizeof(T) == 4 ? 1.1920928955078125e-07 : 2.220446049250313e-16;

}  // namespace DML_ISA
}  // namespace dml
