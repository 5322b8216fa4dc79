// Log-determinants and inverses of matrices of up to 32 rows, in the registers of one warp.

#include "cuda/cholesky.cuh"
#include "cuda/cholesky.h"

namespace dml {
namespace {

// 4 warps: shared memory of 17 KB (34 KB of doubles) lets many blocks share a multiprocessor, and the tail is short.
constexpr int kWarpsPerBlock = 4;

// Rows are turned through shared memory, so that both sides are read without conflicts: one entry more than a row.
template <class T, int N>
constexpr int kStaged = kWarp / N * N * (N + 1);

// A lane of matrix lane / N holds row lane % N, and column lane % N of the inverse of the factor.
template <class T, int N>
DML_KERNEL(kWarpsPerBlock* kWarp)
factor_kernel(const T* a, int64_t batch, int n, T* logdet, T* inverse) {
  DML_SHARED(shared);
  const int own = lane_index() % N, place = lane_index() / N;
  const int64_t matrix = (static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index()) * (kWarp / N) + place;
  const bool here = matrix < batch && own < n;
  T* const staged = reinterpret_cast<T*>(shared) + warp_index() * kStaged<T, N> + place * N * (N + 1);
  const int64_t at = matrix * n * n;
  for (int r = 0; r < n; ++r)
    if (here && own <= r) staged[r * (N + 1) + own] = a[at + r * n + own];
  __syncwarp();
  T row[N];
#pragma unroll
  for (int k = 0; k < N; ++k) row[k] = here && k <= own ? staged[own * (N + 1) + k] : T(own == k ? 1 : 0);
  const T pivot = factor_rows<N>(row, n);
  const double sum = warp_sum<N>(static_cast<double>(log(pivot)));
  if (matrix < batch && own == 0) logdet[matrix] = static_cast<T>(sum);
  if (inverse == nullptr) return;

  // Column `own` of X = L^-1; it is 0 above the diagonal.
  T column[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i >= n) {
      column[i] = T(0);
      continue;
    }
    T s = T(i == own ? 1 : 0);
#pragma unroll
    for (int k = 0; k < i; ++k) s = fma(T(0) - __shfl_sync(kAllLanes, row[k], i, N), column[k], s);
    column[i] = s * __shfl_sync(kAllLanes, row[i], i, N);
  }
  // X^T X, row by row: what it adds up is the same on both sides of the diagonal.
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i >= n) continue;
    T s = T(0);
#pragma unroll
    for (int k = i; k < N; ++k) s = fma(__shfl_sync(kAllLanes, column[k], i, N), column[k], s);
    if (here) inverse[at + i * n + own] = s;
  }
}

template <class T, int N>
void run(const T* a, int64_t batch, int n, T* logdet, T* inverse, Stream stream) {
  launch(factor_kernel<T, N>, blocks_for(batch, kWarpsPerBlock * (kWarp / N)), kWarpsPerBlock * kWarp,
         kWarpsPerBlock * kStaged<T, N> * sizeof(T), stream, a, batch, n, logdet, inverse);
}

}  // namespace

template <class T>
void factor_in_registers(const T* a, int64_t batch, int n, T* logdet, T* inverse, Stream stream) {
  const auto chosen = n <= 8 ? run<T, 8> : n <= 16 ? run<T, 16> : run<T, 32>;
  chosen(a, batch, n, logdet, inverse, stream);
}

template void factor_in_registers<float>(const float*, int64_t, int, float*, float*, Stream);
template void factor_in_registers<double>(const double*, int64_t, int, double*, double*, Stream);

}  // namespace dml
