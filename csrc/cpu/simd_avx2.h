#pragma once
// AVX2 with FMA: 8 floats or 4 doubles, masks as vectors of all-one or all-zero lanes.

#include <immintrin.h>
#include <stdint.h>

namespace dml {
inline namespace DML_ISA {

struct F32 {
  __m256 v;
  F32() = default;
  DML_INLINE F32(__m256 x) : v(x) {}
  template <class U>
  DML_INLINE explicit F32(U x) : v(_mm256_set1_ps(static_cast<float>(x))) {}
};
struct F64 {
  __m256d v;
  F64() = default;
  DML_INLINE F64(__m256d x) : v(x) {}
  template <class U>
  DML_INLINE explicit F64(U x) : v(_mm256_set1_pd(static_cast<double>(x))) {}
};
struct M8 {
  __m256 m;
};
struct M4 {
  __m256d m;
};

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = F32;
  using M = M8;
  static constexpr int lanes = 8;
  static constexpr int panel_vectors = 2;
  static constexpr int strip = 4;  // 4 x 2 sums, 2 columns and 1 row fit the 16 registers
};
template <>
struct Simd<double> {
  using V = F64;
  using M = M4;
  static constexpr int lanes = 4;
  static constexpr int panel_vectors = 2;
  static constexpr int strip = 4;
};

template <class V, class T>
DML_INLINE V load(const T* p);
template <>
DML_INLINE F32 load<F32, float>(const float* p) {
  return _mm256_loadu_ps(p);
}
template <>
DML_INLINE F64 load<F64, double>(const double* p) {
  return _mm256_loadu_pd(p);
}
DML_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
DML_INLINE void store(double* p, F64 a) { _mm256_storeu_pd(p, a.v); }

#define DML_VECTOR(V, M, suffix)                                                                                \
  DML_INLINE V operator+(V a, V b) { return _mm256_add_##suffix(a.v, b.v); }                                    \
  DML_INLINE V operator-(V a, V b) { return _mm256_sub_##suffix(a.v, b.v); }                                    \
  DML_INLINE V operator*(V a, V b) { return _mm256_mul_##suffix(a.v, b.v); }                                    \
  DML_INLINE V operator/(V a, V b) { return _mm256_div_##suffix(a.v, b.v); }                                    \
  DML_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_##suffix(a.v, b.v, c.v); }                              \
  DML_INLINE V min(V a, V b) { return _mm256_min_##suffix(a.v, b.v); }                                          \
  DML_INLINE V max(V a, V b) { return _mm256_max_##suffix(a.v, b.v); }                                          \
  DML_INLINE V sqrt(V a) { return _mm256_sqrt_##suffix(a.v); }                                                  \
  DML_INLINE V round(V a) { return _mm256_round_##suffix(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); } \
  DML_INLINE M operator<(V a, V b) { return M{_mm256_cmp_##suffix(a.v, b.v, _CMP_LT_OQ)}; }                     \
  DML_INLINE M operator<=(V a, V b) { return M{_mm256_cmp_##suffix(a.v, b.v, _CMP_LE_OQ)}; }                    \
  DML_INLINE M operator>(V a, V b) { return M{_mm256_cmp_##suffix(a.v, b.v, _CMP_GT_OQ)}; }                     \
  DML_INLINE M operator==(V a, V b) { return M{_mm256_cmp_##suffix(a.v, b.v, _CMP_EQ_OQ)}; }                    \
  DML_INLINE M operator!=(V a, V b) { return M{_mm256_cmp_##suffix(a.v, b.v, _CMP_NEQ_UQ)}; }                   \
  DML_INLINE V select(M m, V a, V b) { return _mm256_blendv_##suffix(b.v, a.v, m.m); }                          \
  DML_INLINE V masked(M m, V a) { return _mm256_and_##suffix(m.m, a.v); }                                       \
  DML_INLINE bool any(M m) { return _mm256_movemask_##suffix(m.m) != 0; }                                       \
  DML_INLINE uint32_t bits(M m) { return static_cast<uint32_t>(_mm256_movemask_##suffix(m.m)); }                \
  DML_INLINE M both(M a, M b) { return M{_mm256_and_##suffix(a.m, b.m)}; }                                      \
  DML_INLINE M either(M a, M b) { return M{_mm256_or_##suffix(a.m, b.m)}; }                                     \
  DML_INLINE M without(M a, M b) { return M{_mm256_andnot_##suffix(b.m, a.m)}; }
DML_VECTOR(F32, M8, ps)
DML_VECTOR(F64, M4, pd)
#undef DML_VECTOR

DML_INLINE float sum(F32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
DML_INLINE double sum(F64 a) {
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
DML_INLINE float largest(F32 a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
DML_INLINE double largest(F64 a) {
  const __m128d s = _mm_max_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(s, _mm_unpackhi_pd(s, s)));
}
// The exponent is built in the integer unit; n lies in the normal range.
DML_INLINE F32 scale_by_power_of_two(F32 a, F32 n) {
  const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(126)), 23);
  return (a * F32(2.0f)) * F32(_mm256_castsi256_ps(e));
}
DML_INLINE F64 scale_by_power_of_two(F64 a, F64 n) {
  const __m256i wide = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n.v));
  const __m256i e = _mm256_slli_epi64(_mm256_add_epi64(wide, _mm256_set1_epi64x(1022)), 52);
  return (a * F64(2.0)) * F64(_mm256_castsi256_pd(e));
}
// floor(log2(a)) of positive normal numbers.
DML_INLINE F32 exponent(F32 a) {
  const __m256i e = _mm256_srli_epi32(_mm256_castps_si256(a.v), 23);
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(127)));
}
DML_INLINE F64 exponent(F64 a) {
  // There is no conversion of 64-bit integers: e in the low bits of 2^52 is the number 2^52 + e.
  const __m256d shift = _mm256_set1_pd(4503599627370496.0);
  const __m256i e = _mm256_srli_epi64(_mm256_castpd_si256(a.v), 52);
  return F64(_mm256_or_pd(_mm256_castsi256_pd(e), shift)) - F64(4503599627370496.0 + 1023);
}

// Masks of one bit a lane, and the int32 companions (class, index, id) of a vector.
DML_INLINE M8 mask_of(__m256i lanes) { return M8{_mm256_castsi256_ps(lanes)}; }
DML_INLINE M4 mask_of(__m128i lanes) { return M4{_mm256_castsi256_pd(_mm256_cvtepi32_epi64(lanes))}; }
DML_INLINE __m256i load8(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
DML_INLINE __m128i load4(const int32_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

template <class V>
DML_INLINE auto lane_mask(uint32_t b);
template <>
DML_INLINE auto lane_mask<F32>(uint32_t b) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return mask_of(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(b)), bit), bit));
}
template <>
DML_INLINE auto lane_mask<F64>(uint32_t b) {
  const __m128i bit = _mm_setr_epi32(1, 2, 4, 8);
  return mask_of(_mm_cmpeq_epi32(_mm_and_si128(_mm_set1_epi32(static_cast<int>(b)), bit), bit));
}
template <class V>
DML_INLINE auto equal_int(const int32_t* p, int32_t x);
template <>
DML_INLINE auto equal_int<F32>(const int32_t* p, int32_t x) {
  return mask_of(_mm256_cmpeq_epi32(load8(p), _mm256_set1_epi32(x)));
}
template <>
DML_INLINE auto equal_int<F64>(const int32_t* p, int32_t x) {
  return mask_of(_mm_cmpeq_epi32(load4(p), _mm_set1_epi32(x)));
}
template <class V>
DML_INLINE auto greater_int(const int32_t* p, int32_t x);
template <>
DML_INLINE auto greater_int<F32>(const int32_t* p, int32_t x) {
  return mask_of(_mm256_cmpgt_epi32(load8(p), _mm256_set1_epi32(x)));
}
template <>
DML_INLINE auto greater_int<F64>(const int32_t* p, int32_t x) {
  return mask_of(_mm_cmpgt_epi32(load4(p), _mm_set1_epi32(x)));
}
DML_INLINE void store_where(float* p, M8 m, F32 a) { _mm256_maskstore_ps(p, _mm256_castps_si256(m.m), a.v); }
DML_INLINE void store_where(double* p, M4 m, F64 a) { _mm256_maskstore_pd(p, _mm256_castpd_si256(m.m), a.v); }
DML_INLINE void store_int_where(int32_t* p, M8 m, int32_t x) {
  _mm256_maskstore_epi32(p, _mm256_castps_si256(m.m), _mm256_set1_epi32(x));
}
DML_INLINE void store_int_where(int32_t* p, M4 m, int32_t x) {
  const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
  const __m256i narrow = _mm256_permutevar8x32_epi32(_mm256_castpd_si256(m.m), even);
  _mm_maskstore_epi32(p, _mm256_castsi256_si128(narrow), _mm_set1_epi32(x));
}

}  // namespace DML_ISA
}  // namespace dml
