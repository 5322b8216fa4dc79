// Log-determinants and inverses of matrices in shared memory, one to a block, and of those that cuSOLVER factored.

#include "cuda/cholesky.cuh"
#include "cuda/cholesky.h"

namespace dml {
namespace {

// Two warps up to 64 rows: half a warp to each of the four tiles of a column. Eight up to the limit of shared memory:
// half a warp to each of the 13 tiles.
constexpr int kFewWarps = 2, kManyWarps = 8, kFewWarpsMatrix = 64;

// The lower triangle of a (n, n) as tiles, with those of the identity around it.
template <int Warps, class T>
DML_DEVICE void load_triangle(const T* a, int n, T* store, int tile_rows) {
  const int half = static_cast<int>(threadIdx.x) / kHalf, c = lane_index() % kHalf;
  for (int number = half; number < tiles_in(tile_rows); number += 2 * Warps) {
    int row, column;
    triangle_place(number, row, column);
    T* const tile = store + number * kTileEntries;
    for (int r = 0; r < kSide; ++r) {
      const int i = row * kSide + r, j = column * kSide + c;
      tile[entry_at(r, c)] = i < n && j <= i ? a[static_cast<int64_t>(i) * n + j] : T(i == j ? 1 : 0);
    }
  }
}

// X = L^-1 in place, diagonals and zeros above them included.
template <class T>
DML_DEVICE void invert_tiles(T* store, int tile_rows) {
  const int half = static_cast<int>(threadIdx.x) / kHalf, c = lane_index() % kHalf;
  T column[kSide];  // c of a diagonal tile
  if (half < tile_rows) {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      T l[kSide];
      load_row(tile_at(store, half, half), i, l);
      T s = T(i == c ? 1 : 0);
#pragma unroll
      for (int k = 0; k < i; ++k) s = fma(T(0) - l[k], column[k], s);
      column[i] = s * l[i];
    }
  }
  __syncwarp();
  if (half < tile_rows)
    for (int i = 0; i < kSide; ++i) tile_at(store, half, half)[entry_at(i, c)] = column[i];
  __syncthreads();
  // X_ij = -X_ii sum_k L_ik X_kj, row of tiles by row of tiles: what is above is X already.
  for (int i = 1; i < tile_rows; ++i) {
    const int j = half;
    Patch<T> sum;
    sum.clear();
    for (int k = j; k < i; ++k) sum.add_nn(tile_at(store, i, k), tile_at(store, k, j));
    __syncthreads();  // the row of L has been read
    if (j < i) sum.store(tile_at(store, i, j), T(1));
    __syncwarp();
    if (j < i) {
      sum.clear();
      sum.add_nn(tile_at(store, i, i), tile_at(store, i, j));
    }
    __syncwarp();
    if (j < i) sum.store(tile_at(store, i, j), T(-1));
    __syncthreads();
  }
}

// X^T X, both triangles of it.
template <int Warps, class T>
DML_DEVICE void write_inverse(T* store, int tile_rows, int n, T* inverse) {
  const int half = static_cast<int>(threadIdx.x) / kHalf;
  for (int number = half; number < tiles_in(tile_rows); number += 2 * Warps) {
    int row, column;
    triangle_place(number, row, column);
    Patch<T> sum;
    sum.clear();
    for (int k = row; k < tile_rows; ++k) sum.add_tn(tile_at(store, k, row), tile_at(store, k, column));
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int i = row * kSide + 4 * Patch<T>::y() + r, j = column * kSide + 4 * Patch<T>::x() + c;
        if (i >= n || j >= n) continue;
        inverse[static_cast<int64_t>(i) * n + j] = sum.v[r][c];
        if (row != column) inverse[static_cast<int64_t>(j) * n + i] = sum.v[r][c];
      }
  }
}

// The matrix in shared memory limits the blocks of a multiprocessor: without the 1, registers spill for more of them.
template <class T, int Warps>
DML_KERNEL(Warps* kWarp, 1)
factor_kernel(const T* a, int n, T* logdet, T* inverse) {
  DML_SHARED(shared);
  T* const store = reinterpret_cast<T*>(shared);
  const int64_t matrix = blockIdx.x, at = matrix * n * n;
  const int tile_rows = (n + kSide - 1) / kSide;
  load_triangle<Warps>(a + at, n, store, tile_rows);
  __syncthreads();
  const double log_pivots = factor_tiles<Warps>(store, tile_rows);
  if (warp_index() == 0) {
    const double sum = warp_sum<kSide>(log_pivots);
    if (lane_index() == 0) logdet[matrix] = static_cast<T>(sum);
  }
  if (inverse == nullptr) return;
  invert_tiles(store, tile_rows);
  write_inverse<Warps>(store, tile_rows, n, inverse + at);
}

// A warp to a matrix.
template <class T>
DML_KERNEL(kWarp)
logdet_kernel(T* factors, const int32_t* info, int n, T* logdet) {
  const int64_t matrix = blockIdx.x;
  T* const l = factors + matrix * n * n;
  double sum = 0;
  for (int i = lane_index(); i < n; i += kWarp) sum += static_cast<double>(log(l[static_cast<int64_t>(i) * n + i]));
  sum = 2 * warp_sum(sum);
  const bool good = info[matrix] == 0 && sum - sum == 0;
  if (lane_index() == 0) logdet[matrix] = good ? static_cast<T>(sum) : not_a_number<T>();
  if (good) return;
  for (int64_t k = lane_index(); k < static_cast<int64_t>(n) * n; k += kWarp) l[k] = not_a_number<T>();
}

// A warp to up to 512 entries of one matrix: 16 rounds of full lines.
constexpr int64_t kScaledEntries = 512;
constexpr int kScalingWarps = 8;

template <class T>
DML_KERNEL(kScalingWarps* kWarp)
scale_kernel(const T* scale, const T* matrices, int64_t batch, int64_t entries, int64_t parts, T* out) {
  const int64_t work = static_cast<int64_t>(blockIdx.x) * kScalingWarps + warp_index(), matrix = work / parts;
  if (matrix >= batch) return;
  const int64_t first = work % parts * kScaledEntries;
  const int64_t end = first + kScaledEntries < entries ? first + kScaledEntries : entries;
  const T factor = scale[matrix];
  for (int64_t k = first + lane_index(); k < end; k += kWarp)
    out[matrix * entries + k] = factor * matrices[matrix * entries + k];
}

}  // namespace

template <class T>
void factor_in_shared(const T* a, int64_t batch, int n, T* logdet, T* inverse, Stream stream) {
  const int tile_rows = (n + kSide - 1) / kSide;
  const size_t shared = static_cast<size_t>(tile_rows * (tile_rows + 1) / 2 * kTileEntries) * sizeof(T);
  const bool few = n <= kFewWarpsMatrix;
  launch(few ? factor_kernel<T, kFewWarps> : factor_kernel<T, kManyWarps>, blocks_for(batch, 1),
         (few ? kFewWarps : kManyWarps) * kWarp, shared, stream, a, n, logdet, inverse);
}

template <class T>
void logdet_of_factors(T* factors, const int32_t* info, int64_t batch, int n, T* logdet, Stream stream) {
  launch(logdet_kernel<T>, blocks_for(batch, 1), kWarp, 0, stream, factors, info, n, logdet);
}

template <class T>
void scale_matrices(const T* scale, const T* matrices, int64_t batch, int64_t entries, T* out, Stream stream) {
  const int64_t parts = (entries + kScaledEntries - 1) / kScaledEntries;
  launch(scale_kernel<T>, blocks_for(batch * parts, kScalingWarps), kScalingWarps * kWarp, 0, stream, scale, matrices,
         batch, entries, parts, out);
}

#define DML_INSTANTIATE(T)                                                          \
  template void factor_in_shared<T>(const T*, int64_t, int, T*, T*, Stream);        \
  template void logdet_of_factors<T>(T*, const int32_t*, int64_t, int, T*, Stream); \
  template void scale_matrices<T>(const T*, const T*, int64_t, int64_t, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
