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

// A class of the block, seen from its smaller Gram matrix: entry k of element i of `side` elements is
// x[row of i][k], or x[row of k][i] where the class has more rows than features.
template <class T>
struct BlockClass {
  const ClassRates<T>& p;
  int64_t begin, n;
  DML_DEVICE bool turned() const { return n > p.width; }
  DML_DEVICE int64_t side() const { return turned() ? p.width : n; }
  DML_DEVICE int64_t depth() const { return turned() ? n : p.width; }
  DML_DEVICE int64_t row(int64_t i, int64_t k) const { return p.order[begin + (turned() ? k : i)]; }
  DML_DEVICE int64_t at(int64_t i, int64_t k) const { return row(i, k) * p.width + (turned() ? i : k); }
  DML_DEVICE T entry(int64_t i, int64_t k) const { return read<T>(p.x, at(i, k)) * p.scale[row(i, k)]; }
};

// store = I + a times the Gram matrix, lower triangle of tiles.
template <class T>
DML_DEVICE void gram_tiles(const BlockClass<T>& c, T a, T* store, T* staged) {
  const int thread = static_cast<int>(threadIdx.x), half = thread / kHalf;
  // Neighbouring threads read neighbouring features.
  const int fast = thread % kSide, slow = thread / kSide, i = c.turned() ? fast : slow, k = c.turned() ? slow : fast;
  const int tile_rows = static_cast<int>((c.side() + kSide - 1) / kSide);
  for (int row0 = 0; row0 < tile_rows; row0 += kRowTiles)
    for (int col0 = 0; col0 < row0 + kRowTiles && col0 < tile_rows; col0 += kColTiles) {
      Patch<T> gram[2];
      for (auto& patch : gram) patch.clear();
      const auto place = [&](int number, int& row, int& column) {
        row = row0 + number / kColTiles, column = col0 + number % kColTiles;
        return row < tile_rows && column <= row;
      };
      for (int64_t k0 = 0; k0 < c.depth(); k0 += kSide) {
        __syncthreads();
        for (int t = 0; t < kStagedTiles; ++t) {
          const int64_t element = static_cast<int64_t>(t < kRowTiles ? row0 + t : col0 + t - kRowTiles) * kSide + i;
          const bool here = element < c.side() && k0 + k < c.depth();
          staged[t * kTileEntries + entry_at(i, k)] = here ? c.entry(element, k0 + k) : T(0);
        }
        __syncthreads();
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int number = half + u * 2 * kClassWarps;
          int row, column;
          if (place(number, row, column))
            gram[u].add_nt(staged + number / kColTiles * kTileEntries,
                           staged + (kRowTiles + number % kColTiles) * kTileEntries);
        }
      }
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        int row, column;
        if (!place(half + u * 2 * kClassWarps, row, column)) continue;
        T* const tile = tile_at(store, row, column);
        gram[u].store(tile, a);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (row == column && Patch<T>::x() == Patch<T>::y())
            tile[entry_at(4 * Patch<T>::y() + e, 4 * Patch<T>::x() + e)] += T(1);
      }
    }
  __syncthreads();
}

// y = (L L^T)^-1 f, a thread to a right-hand side, which is scratch in global memory between tiles. Groups of four are
// not unrolled: the compiler would load all of a tile at once.
template <class T>
DML_DEVICE void solve_tiles(const BlockClass<T>& c, T* store) {
  const int side = static_cast<int>(c.side()), tile_rows = (side + kSide - 1) / kSide;
  for (int64_t q = threadIdx.x; q < c.depth(); q += kClassThreads) {
    T sum[kSide];
    const auto solved = [&](int i) { return i < side ? c.p.y[c.at(i, q)] : T(0); };
    const auto keep = [&](int tile) {
#pragma unroll
      for (int i = 0; i < kSide; ++i)
        if (tile * kSide + i < side) c.p.y[c.at(tile * kSide + i, q)] = sum[i];
    };
    for (int row = 0; row < tile_rows; ++row) {
#pragma unroll
      for (int i = 0; i < kSide; ++i) sum[i] = row * kSide + i < side ? c.entry(row * kSide + i, q) : T(0);
#pragma unroll 1
      for (int group = 0; group < row * 4; ++group) {
        T known[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) known[k] = solved(group * 4 + k);
#pragma unroll
        for (int i = 0; i < kSide; ++i) {
          const Four<T> l = four(tile_at(store, row, group / 4), i, group % 4);
#pragma unroll
          for (int k = 0; k < 4; ++k) sum[i] = fma(T(0) - l.v[k], known[k], sum[i]);
        }
      }
      solve_row(tile_at(store, row, row), sum);
      keep(row);
    }
    for (int column = tile_rows - 1; column >= 0; --column) {
#pragma unroll
      for (int i = 0; i < kSide; ++i) sum[i] = solved(column * kSide + i);
#pragma unroll 1
      for (int k = (column + 1) * kSide; k < tile_rows * kSide; ++k) {
        const T known = solved(k);
        T l[kSide];
        load_row(tile_at(store, k / kSide, column), k % kSide, l);
#pragma unroll
        for (int i = 0; i < kSide; ++i) sum[i] = fma(T(0) - l[i], known, sum[i]);
      }
      solve_column(tile_at(store, column, column), sum);
      keep(column);
    }
  }
}

// Sum of log pivots in lane 0 of warp 0.
template <class T>
DML_DEVICE double block_class(const BlockClass<T>& c, T* store, T* staged) {
  gram_tiles(c, class_scale(c.p, c.n), store, staged);
  const double logdet =
      warp_sum<kSide>(factor_tiles<kClassWarps>(store, static_cast<int>((c.side() + kSide - 1) / kSide)));
  if (!c.p.need_grad) return logdet;
  solve_tiles(c, store);
  __syncthreads();
  return logdet;
}

}  // namespace dml
