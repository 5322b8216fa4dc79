#pragma once
// The coding rate of a class of any size and its gradient, by the eight warps of a block.

#include "common/coding_rate.h"
#include "cuda/cholesky.cuh"
#include "cuda/class_warp.cuh"

namespace dml {

constexpr int kClassWarps = 8, kClassThreads = kClassWarps * kWarp;
// A step of the Gram matrix takes 8 x 4 tiles, two to each half of a warp.
constexpr int kRowTiles = 8, kColTiles = 4, kStagedTiles = kRowTiles + kColTiles;
// Sides up to this are factored in shared memory: 48 tiles are 96 KiB of doubles, 48 of floats.
constexpr int kBlockTiles = kClassSide / kSide * (kClassSide / kSide + 1) / 2;
constexpr int kClassTiles = kBlockTiles + kStagedTiles;

// A class of n rows from a place of the sorted ones, seen from its smaller Gram matrix: entry k of element i of `side`
// elements is x[row of i][k], or x[row of k][i] where the class has more rows than features.
template <class T>
struct BlockClass {
  const ClassRates<T>& p;
  int begin, n;

  DML_DEVICE bool turned() const { return n > p.width; }
  DML_DEVICE int side() const { return turned() ? static_cast<int>(p.width) : n; }
  DML_DEVICE int64_t depth() const { return turned() ? n : p.width; }
  DML_DEVICE int tile_rows() const { return (side() + kSide - 1) / kSide; }
  DML_DEVICE int64_t row(int i, int64_t k) const { return p.order[begin + (turned() ? k : i)]; }
  DML_DEVICE int64_t at(int i, int64_t k) const { return row(i, k) * p.width + (turned() ? i : k); }
  DML_DEVICE T entry(int i, int64_t k) const {
    return i < side() && k < depth() ? read<T>(p.x, at(i, k)) * p.scale[row(i, k)] : T(0);
  }

  // The block's term of the rate and, where it is needed, y = (L L^T)^-1 f, which all threads see.
  DML_DEVICE void factor_and_solve(T* store, T* staged) const {
    for (int row0 = 0; row0 < tile_rows(); row0 += kRowTiles)
      for (int col0 = 0; col0 < row0 + kRowTiles && col0 < tile_rows(); col0 += kColTiles)
        gram(row0, col0, class_scale(p, n), store, staged);
    __syncthreads();
    const double logdet = warp_sum<kSide>(factor_tiles<kClassWarps>(store, tile_rows()));
    if (threadIdx.x == 0) p.terms[blockIdx.x] = n * logdet;
    if (!p.need_grad) return;
    for (int64_t k = threadIdx.x; k < depth(); k += kClassThreads) solve(store, k);
    __syncthreads();
  }

 private:
  // I + a times the Gram matrix: 8 x 4 tiles of its lower triangle.
  DML_DEVICE void gram(int row0, int col0, T a, T* store, T* staged) const {
    const int thread = static_cast<int>(threadIdx.x), half = thread / kHalf;
    // Neighbouring threads read neighbouring features.
    const int fast = thread % kSide, slow = thread / kSide, i = turned() ? fast : slow, k = turned() ? slow : fast;
    const auto row_of = [&](int u) { return half / kColTiles + u * (kRowTiles / 2); };
    const int col = half % kColTiles;
    const auto wanted = [&](int u) { return row0 + row_of(u) < tile_rows() && col0 + col <= row0 + row_of(u); };
    Patch<T> sum[2];
    for (auto& patch : sum) patch.clear();
    for (int64_t k0 = 0; k0 < depth(); k0 += kSide) {
      __syncthreads();
#pragma unroll 2
      for (int t = 0; t < kStagedTiles; ++t) {
        const int tile = t < kRowTiles ? row0 + t : col0 + t - kRowTiles;
        staged[t * kTileEntries + entry_at(i, k)] = entry(tile * kSide + i, k0 + k);
      }
      __syncthreads();
#pragma unroll
      for (int u = 0; u < 2; ++u)
        if (wanted(u)) sum[u].add_nt(staged + row_of(u) * kTileEntries, staged + (kRowTiles + col) * kTileEntries);
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if (!wanted(u)) continue;
      T* const tile = tile_at(store, row0 + row_of(u), col0 + col);
      sum[u].store(tile, a);
      if (row0 + row_of(u) != col0 + col || Patch<T>::x() != Patch<T>::y()) continue;
      for (int e = 4 * Patch<T>::x(); e < 4 * Patch<T>::x() + 4; ++e) tile[entry_at(e, e)] += T(1);
    }
  }

  DML_DEVICE T solved(int i, int64_t k) const { return i < side() ? p.y[at(i, k)] : T(0); }
  DML_DEVICE void keep(int first, int64_t k, const T (&x)[kSide]) const {
#pragma unroll
    for (int i = 0; i < kSide; ++i)
      if (first + i < side()) p.y[at(first + i, k)] = x[i];
  }

  // Right-hand side k by one thread, 16 entries at a time in registers and the others in global memory. Groups of four
  // are not unrolled: the compiler would load all of a tile at once.
  DML_DEVICE void solve(T* store, int64_t k) const {
    T x[kSide];
    for (int row = 0; row < tile_rows(); ++row) {
#pragma unroll
      for (int i = 0; i < kSide; ++i) x[i] = entry(row * kSide + i, k);
#pragma unroll 1
      for (int group = 0; group < row * 4; ++group) {
        T known[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) known[j] = solved(group * 4 + j, k);
#pragma unroll
        for (int i = 0; i < kSide; ++i) {
          const Four<T> l = four(tile_at(store, row, group / 4), i, group % 4);
#pragma unroll
          for (int j = 0; j < 4; ++j) x[i] = fma(T(0) - l.v[j], known[j], x[i]);
        }
      }
      solve_row(tile_at(store, row, row), x);
      keep(row * kSide, k, x);
    }
    for (int column = tile_rows() - 1; column >= 0; --column) {
#pragma unroll
      for (int i = 0; i < kSide; ++i) x[i] = solved(column * kSide + i, k);
#pragma unroll 1
      for (int j = (column + 1) * kSide; j < tile_rows() * kSide; ++j) {
        const T known = solved(j, k);
        T l[kSide];
        load_row(tile_at(store, j / kSide, column), j % kSide, l);
#pragma unroll
        for (int i = 0; i < kSide; ++i) x[i] = fma(T(0) - l[i], known, x[i]);
      }
      solve_column(tile_at(store, column, column), x);
      keep(column * kSide, k, x);
    }
  }
};

}  // namespace dml
