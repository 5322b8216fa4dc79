#pragma once
// One lane: a scalar with the interface of a vector, so that processors without a written vector unit run the same
// code.

#include <stdint.h>
#include <string.h>

namespace dml {
inline namespace DML_ISA {

template <class T>
struct Scalar {
  T v;
  Scalar() = default;
  DML_INLINE Scalar(T x) : v(x) {}
  template <class U>
  DML_INLINE explicit Scalar(U x) : v(static_cast<T>(x)) {}
};

template <class T>
struct Simd {
  using V = Scalar<T>;
  using M = bool;
  static constexpr int lanes = 1;
  static constexpr int panel_vectors = 16;  // a panel of 16 columns, which the compiler turns into what it has
  static constexpr int strip = 4;
};

template <class V, class T>
DML_INLINE V load(const T* p) {
  return V(*p);
}
template <class T>
DML_INLINE void store(T* p, Scalar<T> a) {
  *p = a.v;
}
#define DML_OPERATOR(op)                                       \
  template <class T>                                           \
  DML_INLINE Scalar<T> operator op(Scalar<T> a, Scalar<T> b) { \
    return Scalar<T>(a.v op b.v);                              \
  }
DML_OPERATOR(+)
DML_OPERATOR(-)
DML_OPERATOR(*)
DML_OPERATOR(/)
#undef DML_OPERATOR
#define DML_COMPARE(op)                                   \
  template <class T>                                      \
  DML_INLINE bool operator op(Scalar<T> a, Scalar<T> b) { \
    return a.v op b.v;                                    \
  }
DML_COMPARE(<)
DML_COMPARE(<=)
DML_COMPARE(>)
DML_COMPARE(==)
DML_COMPARE(!=)
#undef DML_COMPARE
template <class T>
DML_INLINE Scalar<T> fma(Scalar<T> a, Scalar<T> b, Scalar<T> c) {
  return Scalar<T>(a.v * b.v + c.v);  // not std::fma: without the instruction that is a slow library call
}
template <class T>
DML_INLINE Scalar<T> min(Scalar<T> a, Scalar<T> b) {
  return a.v < b.v ? a : b;  // b where one is NaN, as the vector instructions do
}
template <class T>
DML_INLINE Scalar<T> max(Scalar<T> a, Scalar<T> b) {
  return a.v > b.v ? a : b;
}
DML_INLINE Scalar<float> sqrt(Scalar<float> a) { return Scalar<float>(::sqrtf(a.v)); }
DML_INLINE Scalar<double> sqrt(Scalar<double> a) { return Scalar<double>(::sqrt(a.v)); }
DML_INLINE Scalar<float> round(Scalar<float> a) { return Scalar<float>(::rintf(a.v)); }
DML_INLINE Scalar<double> round(Scalar<double> a) { return Scalar<double>(::rint(a.v)); }
DML_INLINE Scalar<float> scale_by_power_of_two(Scalar<float> a, Scalar<float> n) {
  return Scalar<float>(::ldexpf(a.v, static_cast<int>(n.v)));
}
DML_INLINE Scalar<double> scale_by_power_of_two(Scalar<double> a, Scalar<double> n) {
  return Scalar<double>(::ldexp(a.v, static_cast<int>(n.v)));
}
// floor(log2(a)) of a positive normal number.
DML_INLINE Scalar<float> exponent(Scalar<float> a) {
  int32_t word;
  memcpy(&word, &a.v, sizeof(word));
  return Scalar<float>((word >> 23) - 127);
}
DML_INLINE Scalar<double> exponent(Scalar<double> a) {
  int64_t word;
  memcpy(&word, &a.v, sizeof(word));
  return Scalar<double>((word >> 52) - 1023);
}
template <class T>
DML_INLINE Scalar<T> select(bool m, Scalar<T> a, Scalar<T> b) {
  return m ? a : b;
}
template <class T>
DML_INLINE T sum(Scalar<T> a) {
  return a.v;
}
template <class T>
DML_INLINE T largest(Scalar<T> a) {
  return a.v;
}
DML_INLINE bool any(bool m) { return m; }
DML_INLINE uint32_t bits(bool m) { return m ? 1u : 0u; }
template <class T>
DML_INLINE Scalar<T> masked(bool m, Scalar<T> a) {
  return m ? a : Scalar<T>(T(0));
}
DML_INLINE bool both(bool a, bool b) { return a && b; }
DML_INLINE bool either(bool a, bool b) { return a || b; }
DML_INLINE bool without(bool a, bool b) { return a && !b; }

template <class V>
DML_INLINE bool equal_int(const int32_t* p, int32_t x) {
  return *p == x;
}
template <class V>
DML_INLINE bool greater_int(const int32_t* p, int32_t x) {
  return *p > x;
}
template <class V>
DML_INLINE bool lane_mask(uint32_t b) {
  return (b & 1u) != 0;
}
template <class T>
DML_INLINE void store_where(T* p, bool m, Scalar<T> a) {
  if (m) *p = a.v;
}
DML_INLINE void store_int_where(int32_t* p, bool m, int32_t x) {
  if (m) *p = x;
}

}  // namespace DML_ISA
}  // namespace dml
