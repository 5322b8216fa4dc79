// What surrounds the factorisation of a coding rate: its rows before, its gradient and its sum after.

#include "cuda/coding_rate.h"

#include "cuda/coding_rate.cuh"

namespace dml {
namespace {

// 8 warps, a row each: rows are read by full lines, and no row waits for another.
constexpr int kRowWarps = 8;
// One block adds up what the others left: a few hundred terms.
constexpr int kSumWarps = 8;
// Two rounds of a block's lanes to an element-wise block: enough loads under way without a long tail.
constexpr int kElementThreads = 256;
constexpr int64_t kElements = 2 * kElementThreads;

template <class T>
DML_KERNEL(kRowWarps* kWarp)
scale_rows_kernel(Stored x, int64_t rows, int64_t width, bool normalize, T* scale, T* scaled) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + warp_index(), at = row * width;
  if (row >= rows) return;
  T squared = T(0);
  for (int64_t d = lane_index(); d < width; d += kWarp) {
    const T value = read<T>(x, at + d);
    squared = fma(value, value, squared);
  }
  squared = warp_sum(squared);
  T factor = T(1);
  if (normalize) factor = squared > T(1 / (kLargestScale * kLargestScale)) ? T(1) / sqrt(squared) : T(kLargestScale);
  if (!is_finite(squared)) factor = not_a_number<T>();
  if (lane_index() == 0) scale[row] = factor;
  if (scaled == nullptr) return;
  for (int64_t d = lane_index(); d < width; d += kWarp) scaled[at + d] = factor * read<T>(x, at + d);
}

template <class T>
DML_KERNEL(kElementThreads)
add_identity_kernel(const T* parts, int64_t splits, int64_t side, T a, T* gram) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kElements, end = side * side;
  for (int64_t k = first + threadIdx.x; k < first + kElements && k < end; k += kElementThreads) {
    T sum = T(0);
    for (int64_t split = 0; split < splits; ++split) sum += parts[split * end + k];
    gram[k] = fma(a, sum, T(k % (side + 1) == 0 ? 1 : 0));
  }
}

template <class T>
DML_KERNEL(kRowWarps* kWarp)
finish_kernel(RateGradient<T> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + warp_index();
  if (row >= p.rows) return;
  // A factor that failed may leave numbers that look like any others.
  const T factor = is_finite(*p.logdet) ? static_cast<T>(p.factor) : not_a_number<T>();
  finish_rate_row(p.x, p.grad, p.y, row, p.width, p.scale[row], factor, p.normalize);
}

template <class T>
DML_KERNEL(kSumWarps* kWarp)
sum_kernel(const T* terms, int64_t count, double factor, Stored rate) {
  DML_SHARED(shared);
  double sum = 0;
  for (int64_t k = threadIdx.x; k < count; k += kSumWarps * kWarp) sum += static_cast<double>(terms[k]);
  sum = block_sum<kSumWarps>(sum, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) write(rate, 0, factor * sum);
}

// In the compute type of grad_rate.
template <class T>
DML_KERNEL(kElementThreads)
scale_gradient_kernel(const T* grad_rate, Stored rate_grad, int64_t elements, Stored out) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kElements;
  const T factor = *grad_rate;
  for (int64_t k = first + threadIdx.x; k < first + kElements && k < elements; k += kElementThreads)
    write(out, k, factor * read<T>(rate_grad, k));
}

}  // namespace

template <class T>
void scale_rows(Stored x, int64_t rows, int64_t width, bool normalize, T* scale, T* scaled, Stream stream) {
  launch(scale_rows_kernel<T>, blocks_for(rows, kRowWarps), kRowWarps * kWarp, 0, stream, x, rows, width, normalize,
         scale, scaled);
}

template <class T>
void add_identity(const T* parts, int64_t splits, int64_t side, double a, T* gram, Stream stream) {
  launch(add_identity_kernel<T>, blocks_for(side * side, kElements), kElementThreads, 0, stream, parts, splits, side,
         static_cast<T>(a), gram);
}

template <class T>
void finish_rate_gradient(const RateGradient<T>& p, Stream stream) {
  launch(finish_kernel<T>, blocks_for(p.rows, kRowWarps), kRowWarps * kWarp, 0, stream, p);
}

template <class T>
void sum_terms(const T* terms, int64_t count, double factor, Stored rate, Stream stream) {
  launch(sum_kernel<T>, 1, kSumWarps * kWarp, kSumWarps * sizeof(double), stream, terms, count, factor, rate);
}

void scale_rate_gradient(Stored grad_rate, Stored rate_grad, int64_t elements, Stored out, Stream stream) {
  const unsigned blocks = blocks_for(elements, kElements);
  if (grad_rate.type == StoredType::float64) {
    launch(scale_gradient_kernel<double>, blocks, kElementThreads, 0, stream,
           static_cast<const double*>(grad_rate.data), rate_grad, elements, out);
  } else {
    launch(scale_gradient_kernel<float>, blocks, kElementThreads, 0, stream, static_cast<const float*>(grad_rate.data),
           rate_grad, elements, out);
  }
}

#define DML_INSTANTIATE(T)                                                       \
  template void scale_rows<T>(Stored, int64_t, int64_t, bool, T*, T*, Stream);   \
  template void add_identity<T>(const T*, int64_t, int64_t, double, T*, Stream); \
  template void finish_rate_gradient<T>(const RateGradient<T>&, Stream);         \
  template void sum_terms<T>(const T*, int64_t, double, Stored, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
