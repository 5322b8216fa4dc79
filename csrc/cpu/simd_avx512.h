#pragma once
// AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles, masks in mask registers.

#include <immintrin.h>
#include <stdint.h>

namespace dml {
inline namespace DML_ISA {

struct F32 {
  __m512 v;
  F32() = default;
  DML_INLINE F32(__m512 x) : v(x) {}
  template <class U>
  DML_INLINE explicit F32(U x) : v(_mm512_set1_ps(static_cast<float>(x))) {}
};
struct F64 {
  __m512d v;
  F64() = default;
  DML_INLINE F64(__m512d x) : v(x) {}
  template <class U>
  DML_INLINE explicit F64(U x) : v(_mm512_set1_pd(static_cast<double>(x))) {}
};
struct M16 {
  __mmask16 m;
};
struct M8 {
  __mmask8 m;
};

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = F32;
  using M = M16;
  static constexpr int lanes = 16;
  static constexpr int panel_vectors = 2;
  static constexpr int strip = 8;
};
template <>
struct Simd<double> {
  using V = F64;
  using M = M8;
  static constexpr int lanes = 8;
  static constexpr int panel_vectors = 2;
  static constexpr int strip = 8;
};

template <class V, class T>
DML_INLINE V load(const T* p);
template <>
DML_INLINE F32 load<F32, float>(const float* p) {
  return _mm512_loadu_ps(p);
}
template <>
DML_INLINE F64 load<F64, double>(const double* p) {
  return _mm512_loadu_pd(p);
}
DML_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
DML_INLINE void store(double* p, F64 a) { _mm512_storeu_pd(p, a.v); }

#define DML_VECTOR(V, M, T, suffix, round_scale)                                                     \
  DML_INLINE V operator+(V a, V b) { return _mm512_add_##suffix(a.v, b.v); }                         \
  DML_INLINE V operator-(V a, V b) { return _mm512_sub_##suffix(a.v, b.v); }                         \
  DML_INLINE V operator*(V a, V b) { return _mm512_mul_##suffix(a.v, b.v); }                         \
  DML_INLINE V operator/(V a, V b) { return _mm512_div_##suffix(a.v, b.v); }                         \
  DML_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_##suffix(a.v, b.v, c.v); }                   \
  DML_INLINE V min(V a, V b) { return _mm512_min_##suffix(a.v, b.v); }                               \
  DML_INLINE V max(V a, V b) { return _mm512_max_##suffix(a.v, b.v); }                               \
  DML_INLINE V sqrt(V a) { return _mm512_sqrt_##suffix(a.v); }                                       \
  DML_INLINE V round(V a) { return _mm512_roundscale_##suffix(a.v, _MM_FROUND_TO_NEAREST_INT); }     \
  DML_INLINE V scale_by_power_of_two(V a, V n) { return _mm512_scalef_##suffix(a.v, n.v); }          \
  DML_INLINE V exponent(V a) { return _mm512_getexp_##suffix(a.v); }                                 \
  DML_INLINE M operator<(V a, V b) { return M{_mm512_cmp_##suffix##_mask(a.v, b.v, _CMP_LT_OQ)}; }   \
  DML_INLINE M operator<=(V a, V b) { return M{_mm512_cmp_##suffix##_mask(a.v, b.v, _CMP_LE_OQ)}; }  \
  DML_INLINE M operator>(V a, V b) { return M{_mm512_cmp_##suffix##_mask(a.v, b.v, _CMP_GT_OQ)}; }   \
  DML_INLINE M operator==(V a, V b) { return M{_mm512_cmp_##suffix##_mask(a.v, b.v, _CMP_EQ_OQ)}; }  \
  DML_INLINE M operator!=(V a, V b) { return M{_mm512_cmp_##suffix##_mask(a.v, b.v, _CMP_NEQ_UQ)}; } \
  DML_INLINE V select(M m, V a, V b) { return _mm512_mask_blend_##suffix(m.m, b.v, a.v); }           \
  DML_INLINE T sum(V a) { return _mm512_reduce_add_##suffix(a.v); }                                  \
  DML_INLINE T largest(V a) { return _mm512_reduce_max_##suffix(a.v); }                              \
  DML_INLINE bool any(M m) { return m.m != 0; }                                                      \
  DML_INLINE uint32_t bits(M m) { return m.m; }                                                      \
  DML_INLINE V masked(M m, V a) { return _mm512_maskz_mov_##suffix(m.m, a.v); }                      \
  DML_INLINE M both(M a, M b) { return M{static_cast<decltype(a.m)>(a.m & b.m)}; }                   \
  DML_INLINE M either(M a, M b) { return M{static_cast<decltype(a.m)>(a.m | b.m)}; }                 \
  DML_INLINE M without(M a, M b) { return M{static_cast<decltype(a.m)>(a.m & ~b.m)}; }               \
  DML_INLINE void store_where(T* p, M m, V a) { _mm512_mask_storeu_##suffix(p, m.m, a.v); }
DML_VECTOR(F32, M16, float, ps, )
DML_VECTOR(F64, M8, double, pd, )
#undef DML_VECTOR

// Masks of one bit a lane, and the int32 companions (class, index, id) of a vector.
template <class V>
DML_INLINE auto lane_mask(uint32_t b);
template <>
DML_INLINE auto lane_mask<F32>(uint32_t b) {
  return M16{static_cast<__mmask16>(b)};
}
template <>
DML_INLINE auto lane_mask<F64>(uint32_t b) {
  return M8{static_cast<__mmask8>(b)};
}
template <class V>
DML_INLINE auto equal_int(const int32_t* p, int32_t x);
template <>
DML_INLINE auto equal_int<F32>(const int32_t* p, int32_t x) {
  return M16{_mm512_cmpeq_epi32_mask(_mm512_loadu_si512(p), _mm512_set1_epi32(x))};
}
template <>
DML_INLINE auto equal_int<F64>(const int32_t* p, int32_t x) {
  return M8{_mm256_cmpeq_epi32_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi32(x))};
}
template <class V>
DML_INLINE auto greater_int(const int32_t* p, int32_t x);
template <>
DML_INLINE auto greater_int<F32>(const int32_t* p, int32_t x) {
  return M16{_mm512_cmpgt_epi32_mask(_mm512_loadu_si512(p), _mm512_set1_epi32(x))};
}
template <>
DML_INLINE auto greater_int<F64>(const int32_t* p, int32_t x) {
  return M8{_mm256_cmpgt_epi32_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi32(x))};
}
DML_INLINE void store_int_where(int32_t* p, M16 m, int32_t x) {
  _mm512_mask_storeu_epi32(p, m.m, _mm512_set1_epi32(x));
}
DML_INLINE void store_int_where(int32_t* p, M8 m, int32_t x) { _mm256_mask_storeu_epi32(p, m.m, _mm256_set1_epi32(x)); }

}  // namespace DML_ISA
}  // namespace dml
