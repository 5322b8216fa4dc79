#pragma once
// Gradients of a rate taken through the normalisation of its rows, a warp to a row.

#include "cuda/number.cuh"
#include "cuda/reduce.cuh"
#include "cuda/stored.cuh"

namespace dml {

// Rows shorter than 1 / this are zero rows: they get no gradient.
constexpr double kLargestScale = 1e12;

// grad = factor (y - (y.f) f) scale with f = scale x; a lane reads and writes the same places of y and grad, which may
// be one.
template <class T>
DML_DEVICE void finish_rate_row(const Stored& x, const Stored& grad, const T* y, int64_t row, int64_t width, T scale,
                                T factor, bool normalize) {
  const int64_t at = row * width;
  T along = T(0);
  if (normalize) {
    for (int64_t d = lane_index(); d < width; d += kWarp) along = fma(y[at + d], read<T>(x, at + d) * scale, along);
    along = warp_sum(along);
    factor *= scale < T(kLargestScale) ? scale : T(0);
  }
  for (int64_t d = lane_index(); d < width; d += kWarp)
    write(grad, at + d, factor * fma(T(0) - along, read<T>(x, at + d) * scale, y[at + d]));
}

}  // namespace dml
