#pragma once
// Vectors of one instruction set: Vec<float>, Vec<double>, their masks, and the few functions that csrc/common asks of
// a number type. DML_ISA (plain, avx2, avx512) names the set; plain is one lane, the scalar itself.

#include <math.h>
#include <stdint.h>

#include "common/hd.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#if defined(__AVX512F__)
#include "cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "cpu/simd_avx2.h"
#else
#include "cpu/simd_plain.h"
#endif

namespace dml {
inline namespace DML_ISA {

template <class T>
using Vec = typename Simd<T>::V;

// Numbers below the normal range are zero for as long as this lives: a weight of 1e-40 changes no gradient, and is slow
// to multiply.
class WithoutDenormals {
 public:
#if defined(__SSE2__)
  DML_INLINE WithoutDenormals() : mode_(_mm_getcsr()) { _mm_setcsr(mode_ | 0x8040); }  // flush results, and operands
  DML_INLINE ~WithoutDenormals() { _mm_setcsr(mode_); }

 private:
  unsigned mode_;
#endif
};

// e^x as 2^n e^r, n = round(x log2 e), |r| <= ln(2)/2, e^r by its Taylor series (remainder under half an ulp at degree
// 7 and 13).
template <class V>
DML_INLINE V exp_scaled(V x, V log2e, V ln2_hi, V ln2_lo, const double* inverse_factorial, int degree) {
  const V n = round(x * log2e);
  const V r = fma(n, V(0) - ln2_lo, fma(n, V(0) - ln2_hi, x));
  V p = V(inverse_factorial[degree]);
#pragma GCC unroll 16
  for (int i = degree - 1; i >= 0; --i) p = fma(p, r, V(inverse_factorial[i]));
  return scale_by_power_of_two(p, n);
}

constexpr double inverse_factorial[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};

// e^x where it is a normal number, from -87 to 88.5 and from -708 to 709.5; anything elsewhere.
DML_INLINE Vec<float> exp_normal(Vec<float> x) {
  using V = Vec<float>;
  // ln 2 in two parts: the first has 11 trailing zero bits, so n times it is exact.
  return exp_scaled<V>(x, V(1.44269504f), V(0.693359375f), V(-2.12194440e-4f), inverse_factorial, 7);
}
DML_INLINE Vec<double> exp_normal(Vec<double> x) {
  using V = Vec<double>;
  return exp_scaled<V>(x, V(1.4426950408889634), V(0.693145751953125), V(1.42860682030941723e-6), inverse_factorial,
                       13);
}

// e^x everywhere; below the normal range it is 0.
template <class V>
DML_INLINE V exp_clamped(V x, V lo, V hi) {
  V e = exp_normal(max(min(x, hi), lo));
  e = select(x < lo, V(0), e);
  e = select(x > hi, V(INFINITY), e);
  return select(x != x, x, e);
}
DML_INLINE Vec<float> exp(Vec<float> x) { return exp_clamped(x, Vec<float>(-87.0f), Vec<float>(88.5f)); }
DML_INLINE Vec<double> exp(Vec<double> x) { return exp_clamped(x, Vec<double>(-708.0), Vec<double>(709.5)); }

// log(x) of a normal x = 2^n m, 0 < x < 2^126, m from sqrt(1/2) to sqrt(2), as n log 2 + 2 atanh(z), z = (m - 1) / (m +
// 1), by its series in z^2 <= 0.0295 (remainder under a tenth of an ulp at 5 and 11 terms after the first).
template <class V>
DML_INLINE V log_scaled(V x, V ln2_hi, V ln2_lo, int terms) {
  const V whole = exponent(x), mantissa = scale_by_power_of_two(x, V(0) - whole);
  const auto upper = mantissa > V(1.4142135623730951);
  const V m = select(upper, mantissa * V(0.5), mantissa), n = select(upper, whole + V(1), whole);
  const V z = (m - V(1)) / (m + V(1)), square = z * z;
  V series(1.0 / (2 * terms + 1));
#pragma GCC unroll 16
  for (int k = 2 * terms - 1; k > 1; k -= 2) series = fma(series, square, V(1.0 / k));
  // 2 z and the rest apart, so that the largest term is not rounded with the series.
  const V twice = z + z;
  return fma(n, ln2_hi, twice + fma(n, ln2_lo, twice * square * series));
}

DML_INLINE Vec<float> log(Vec<float> x) {
  using V = Vec<float>;
  return log_scaled<V>(x, V(0.693359375f), V(-2.12194440e-4f), 5);
}

DML_INLINE Vec<double> log(Vec<double> x) {
  using V = Vec<double>;
  return log_scaled<V>(x, V(0.693145751953125), V(1.42860682030941723e-6), 11);
}

}  // namespace DML_ISA
}  // namespace dml
