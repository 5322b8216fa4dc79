#pragma once
// Cholesky factorisations on a device: of a matrix in the registers of a warp, and of one in 16 x 16 tiles.

#include "cuda/number.cuh"
#include "cuda/reduce.cuh"

namespace dml {

// The pivot that factors: NaN where the matrix is not positive definite, and so is everything after it.
template <class T>
DML_DEVICE T checked_pivot(T d) {
  return select(d > T(0), d + (d - d), not_a_number<T>());  // an infinite pivot is none either
}

// Factors matrices of up to N rows, 32 / N to a warp: lane % N holds a row in registers; rows from n on are those of
// the identity. Afterwards the rows are those of L, with 1 / L_kk on the diagonal, which is all that solves need of it;
// what is right of the diagonal means nothing. Returns the pivot of the lane's row.
template <int N, class T>
DML_DEVICE T factor_rows(T (&row)[N], int n) {
  constexpr int kGroup = 8;  // columns that are skipped together where the matrix ends
  const int own = lane_index() % N;
  T mine = T(1);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k >= n) continue;
    const T pivot = checked_pivot(__shfl_sync(kAllLanes, row[k], k, N));
    const T inverse = T(1) / sqrt(pivot);
    mine = own == k ? pivot : mine;
    row[k] = own == k ? inverse : row[k] * inverse;
#pragma unroll
    for (int first = (k + 1) / kGroup * kGroup; first < N; first += kGroup) {
      if (first >= n) continue;
#pragma unroll
      for (int j = first; j < first + kGroup; ++j) {
        if (j <= k) continue;
        const T other = __shfl_sync(kAllLanes, row[k], j, N);
        row[j] = fma(T(0) - row[k], other, row[j]);
      }
    }
  }
  return mine;
}

// Larger matrices are lower triangles of tiles, row by row, in shared or in global memory; padding is that of the
// identity. 16: a diagonal tile is the work of one warp's registers, and half a warp multiplies two tiles with 4 x 4
// entries a lane, four loads of 16 bytes for 16 products.
constexpr int kSide = 16, kTileEntries = kSide * kSide, kHalf = 16;

DML_DEVICE int tiles_in(int tile_rows) { return tile_rows * (tile_rows + 1) / 2; }

template <class T>
DML_DEVICE T* tile_at(T* store, int row, int column) {
  return store + static_cast<int64_t>(tiles_in(row) + column) * kTileEntries;
}

template <class T>
struct alignas(16) Four {
  T v[4];
};

// Groups of four columns are exchanged with the row's group, so that four rows' groups meet different banks.
DML_DEVICE int group_at(int row, int group) { return row * kSide + (group ^ (row / 4 & 3)) * 4; }
DML_DEVICE int entry_at(int row, int column) { return group_at(row, column / 4) + column % 4; }

template <class T>
DML_DEVICE Four<T>& four(T* tile, int row, int group) {
  return *reinterpret_cast<Four<T>*>(tile + group_at(row, group));
}
template <class T>
DML_DEVICE const Four<T>& four(const T* tile, int row, int group) {
  return *reinterpret_cast<const Four<T>*>(tile + group_at(row, group));
}

// The 4 x 4 entries of a tile that belong to a lane of half a warp: rows 4y.., columns 4x...
template <class T>
struct Patch {
  T v[4][4];
  static DML_DEVICE int y() { return lane_index() % kHalf / 4; }
  static DML_DEVICE int x() { return lane_index() % 4; }

  DML_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) v[i][j] = T(0);
  }
  // += a b^T over the groups of columns of both from `first` to `last`.
  DML_DEVICE void add_nt(const T* a, const T* b, int first = 0, int last = 4) {
#pragma unroll 1
    for (int group = first; group < last; ++group) {
      Four<T> left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) left[i] = four(a, 4 * y() + i, group);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Four<T> right = four(b, 4 * x() + j, group);
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int i = 0; i < 4; ++i) v[i][j] = fma(left[i].v[k], right.v[k], v[i][j]);
      }
    }
  }
  // += a b
  DML_DEVICE void add_nn(const T* a, const T* b) {
#pragma unroll 1
    for (int group = 0; group < 4; ++group) {
      Four<T> left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) left[i] = four(a, 4 * y() + i, group);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Four<T> right = four(b, 4 * group + k, x());
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) v[i][j] = fma(left[i].v[k], right.v[j], v[i][j]);
      }
    }
  }
  // += a^T b
  DML_DEVICE void add_tn(const T* a, const T* b) {
#pragma unroll 4
    for (int k = 0; k < kSide; ++k) {
      const Four<T> left = four(a, k, y()), right = four(b, k, x());
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) v[i][j] = fma(left.v[i], right.v[j], v[i][j]);
    }
  }
  DML_DEVICE void store(T* tile, T sign) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Four<T> out;
#pragma unroll
      for (int j = 0; j < 4; ++j) out.v[j] = sign * v[i][j];
      four(tile, 4 * y() + i, x()) = out;
    }
  }
  DML_DEVICE void subtract_from(T* tile) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Four<T> out = four(tile, 4 * y() + i, x());
#pragma unroll
      for (int j = 0; j < 4; ++j) out.v[j] -= v[i][j];
      four(tile, 4 * y() + i, x()) = out;
    }
  }
};

// One row of a tile in registers.
template <class T>
DML_DEVICE void load_row(const T* tile, int row, T (&to)[kSide]) {
#pragma unroll
  for (int group = 0; group < 4; ++group) {
    const Four<T> from = four(tile, row, group);
#pragma unroll
    for (int k = 0; k < 4; ++k) to[4 * group + k] = from.v[k];
  }
}
template <class T>
DML_DEVICE void store_row(T* tile, int row, const T (&from)[kSide]) {
#pragma unroll
  for (int group = 0; group < 4; ++group)
    four(tile, row, group) = Four<T>{{from[4 * group], from[4 * group + 1], from[4 * group + 2], from[4 * group + 3]}};
}

// x L^T = row for the factor L of a diagonal tile, in place.
template <class T>
DML_DEVICE void solve_row(const T* l, T (&x)[kSide]) {
#pragma unroll
  for (int j = 0; j < kSide; ++j) {
    T factor[kSide];
    load_row(l, j, factor);
#pragma unroll
    for (int k = 0; k < j; ++k) x[j] = fma(T(0) - factor[k], x[k], x[j]);
    x[j] *= factor[j];
  }
}

// L^T x = column for the same factor, in place.
template <class T>
DML_DEVICE void solve_column(const T* l, T (&x)[kSide]) {
#pragma unroll
  for (int k = kSide - 1; k >= 0; --k) {
    T factor[kSide];
    load_row(l, k, factor);
    x[k] *= factor[k];
#pragma unroll
    for (int i = 0; i < k; ++i) x[i] = fma(T(0) - factor[i], x[k], x[i]);
  }
}

// Which of a triangle of tiles the number-th is, counted row by row.
DML_DEVICE void triangle_place(int number, int& row, int& column) {
  row = 0;
  while (tiles_in(row + 1) <= number) ++row;
  column = number - tiles_in(row);
}

// Factors a lower triangle of tiles in place by all threads of a block; diagonals become 1 / L_kk. The caller waits for
// the block before, this one does after. Lanes below 16 of warp 0 return the sum of log pivots of the rows lane,
// lane + 16, ...; other lanes return nothing of use.
// Float32 products are plain FMAs: the accumulators of tensor cores truncate, and up to this size the panels, which
// wait for one column after the other, take as long as the updates.
template <int Warps, class T>
DML_DEVICE double factor_tiles(T* store, int tile_rows) {
  const int thread = static_cast<int>(threadIdx.x), half = thread / kHalf;
  double log_pivots = 0;
  for (int panel = 0; panel < tile_rows; ++panel) {
    T* const diagonal = tile_at(store, panel, panel);
    if (warp_index() == 0) {  // both halves factor the tile, the first one keeps it
      const int row = lane_index() % kSide;
      T entries[kSide];
      load_row(diagonal, row, entries);
      log_pivots += static_cast<double>(log(factor_rows<kSide>(entries, kSide)));
      __syncwarp();
      if (lane_index() < kSide) store_row(diagonal, row, entries);
    }
    __syncthreads();
    const int below = tile_rows - panel - 1;
    for (int r = thread; r < below * kSide; r += Warps * kWarp) {
      T* const tile = tile_at(store, panel + 1 + r / kSide, panel);
      T entries[kSide];
      load_row(tile, r % kSide, entries);
      solve_row(diagonal, entries);
      store_row(tile, r % kSide, entries);
    }
    __syncthreads();
    for (int number = half; number < tiles_in(below); number += 2 * Warps) {
      int row, column;
      triangle_place(number, row, column);
      row += panel + 1, column += panel + 1;
      Patch<T> product;
      product.clear();
      product.add_nt(tile_at(store, row, panel), tile_at(store, column, panel));
      product.subtract_from(tile_at(store, row, column));
    }
    __syncthreads();
  }
  return log_pivots;
}

}  // namespace dml
