#include "cpu/rows_kernels.h"

#include "cpu/tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

// sum of term(x[k], y[k])^2, in the order of common/pairwise.h.
template <class T, class Term>
DML_INLINE T reduce_squares(const T* x, const T* y, int64_t d, Term term) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  V acc[kPartialSums / L];
  for (V& a : acc) a = V(0);
  const auto add = [&](const T* a, const T* b) {
#pragma GCC unroll 16
    for (int c = 0; c < kPartialSums / L; ++c) {
      const V t = term(load<V>(a + c * L), load<V>(b + c * L));
      acc[c] = acc[c] + t * t;
    }
  };
  int64_t k = 0;
  for (; k + kPartialSums <= d; k += kPartialSums) add(x + k, y + k);
  T tail[2][kPartialSums] = {}, sums[kPartialSums];
  for (int64_t left = 0; k + left < d; ++left) {
    tail[0][left] = x[k + left];
    tail[1][left] = y[k + left];
  }
  add(tail[0], tail[1]);
  for (int c = 0; c < kPartialSums / L; ++c) store(sums + c * L, acc[c]);
  return add_halves(sums);
}

template <class T>
T sum_squares(const T* row, int64_t d) {
  return reduce_squares(row, row, d, [](Vec<T> a, Vec<T>) { return a; });
}

// In four chains a lane, so that the additions do not wait for each other.
template <class T>
T dot(const T* x, const T* y, int64_t d) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  V acc[4] = {V(0), V(0), V(0), V(0)};
  int64_t k = 0;
  for (; k + 4 * L <= d; k += 4 * L)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) acc[c] = fma(load<V>(x + k + c * L), load<V>(y + k + c * L), acc[c]);
  for (; k + L <= d; k += L) acc[0] = fma(load<V>(x + k), load<V>(y + k), acc[0]);
  T tail[2][L] = {};
  for (int64_t left = 0; k + left < d; ++left) {
    tail[0][left] = x[k + left];
    tail[1][left] = y[k + left];
  }
  acc[1] = fma(load<V>(tail[0]), load<V>(tail[1]), acc[1]);
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

template <class T>
T squared_difference(const T* x, const T* y, int64_t d) {
  return reduce_squares(x, y, d, [](Vec<T> a, Vec<T> b) { return a - b; });
}

template <class T>
void scale(T* row, int64_t d, T factor) {
  for (int64_t k = 0; k < d; ++k) row[k] *= factor;
}

template <class T>
void add_scaled(T* out, const T* x, int64_t n, T a) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  int64_t k = 0;
  for (; k + L <= n; k += L) store(out + k, fma(V(a), load<V>(x + k), load<V>(out + k)));
  for (; k < n; ++k) out[k] += a * x[k];
}

template <class T>
void pack_panel(const T* rows, int64_t stride, int64_t d, T* panel) {
  constexpr int W = panel_width<T>;
  for (int64_t k = 0; k < d; ++k)
    for (int lane = 0; lane < W; ++lane) panel[k * W + lane] = rows[lane * stride + k];
}

template <class T>
RowsKernels<T> table() {
  return {panel_width<T>, sum_squares<T>, pack_panel<T>, scale<T>, add_scaled<T>, dot<T>, squared_difference<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
RowsKernels<float> RowsKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
RowsKernels<double> RowsKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
