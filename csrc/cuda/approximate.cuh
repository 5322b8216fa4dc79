#pragma once
// Functions of the special-function units, each one instruction, for formulae that stand in the loops over pairs. Their
// relative errors are 2^-22 at most, less than what the rounding of an argument or of a distance already costs, and
// what is denormal counts as 0. Double has the exact ones.

#include <math.h>

#include "cuda/launch.cuh"

namespace dml {

#if defined(DML_CUDA_HOST)

// The bound on a device's error, always towards zero.
DML_DEVICE float approximately(double x) {
  const auto nearest = static_cast<float>(x * (1 - 1.5 * 5.9604644775390625e-08));
  return ::fabsf(nearest) < 1.17549435e-38f ? 0.0f : nearest;
}
DML_DEVICE float exp2_of(float x) { return approximately(::exp2(static_cast<double>(x))); }
// Of powers of 4 and of 2 the units are exact: their tables begin there.
DML_DEVICE float root_of(float x) {
  int exponent;
  if (::frexpf(x, &exponent) == 0.5f && exponent % 2 != 0) return ::sqrtf(x);
  return x > 0.0f && x < 1.17549435e-38f ? 0.0f : approximately(::sqrt(static_cast<double>(x)));
}
DML_DEVICE float reciprocal_of(float x) {
  int exponent;
  return ::fabsf(::frexpf(x, &exponent)) == 0.5f ? 1 / x : approximately(1 / static_cast<double>(x));
}

#else

DML_DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DML_DEVICE float root_of(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DML_DEVICE float reciprocal_of(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#endif

DML_DEVICE double exp2_of(double x) { return ::exp2(x); }
DML_DEVICE double root_of(double x) { return ::sqrt(x); }
DML_DEVICE double reciprocal_of(double x) { return 1 / x; }

// To half of the last bit, for scores of hundreds: by a step of Newton.
template <class T>
DML_DEVICE T sharp_root_of(T x) {
  const T root = root_of(x), sharp = fma(fma(-root, root, x) * T(0.5), reciprocal_of(root), root);
  return root > T(0) && root < T(INFINITY) ? sharp : root;
}

}  // namespace dml
