#pragma once
// The coding rate of a class of up to 16 rows and its gradient, by one warp.

#include "common/coding_rate.h"
#include "cuda/cholesky.cuh"
#include "cuda/coding_rate.cuh"
#include "cuda/coding_rate.h"

namespace dml {

// 16: the Gram matrix is one tile, and a lane keeps its column of a solve in registers, at two blocks of eight warps to
// a multiprocessor.
constexpr int kWarpClass = kSide;
constexpr int kWarpTiles = 2;  // the Gram matrix, and 16 features of each row

// a of a class.
template <class T>
DML_DEVICE T class_scale(const ClassRates<T>& p, int64_t n) {
  return static_cast<T>(p.gain * rate_scale(n, p.width, p.eps_squared, false));
}

// A class, of which lane r and lane r + 16 bring row r and its scale.
template <class T>
struct WarpClass {
  const ClassRates<T>& p;
  int n, own_row;
  T own_scale;
  T* tile;

  DML_DEVICE WarpClass(const ClassRates<T>& p, int64_t begin, int n, T* tiles) : p(p), n(n), tile(tiles) {
    const int r = lane_index() % kWarpClass;
    own_row = static_cast<int>(p.order[begin + (r < n ? r : 0)]);
    own_scale = p.scale[own_row];
  }
  DML_DEVICE int64_t row(int r) const { return __shfl_sync(kAllLanes, own_row, r); }
  DML_DEVICE T scale(int r) const { return __shfl_sync(kAllLanes, own_scale, r); }

  // The factor of I + a Z Z^T into the tile; returns its log-determinant.
  DML_DEVICE double factor() {
    constexpr int kRounds = kWarpClass / 2;  // half a warp reads 16 features of a row
    const int half = lane_index() / kHalf, column = lane_index() % kHalf;
    T* const staged = tile + kTileEntries;
    T next[kRounds];  // on its way while the chunk before it is multiplied
    const auto fetch = [&](int64_t k) {
#pragma unroll
      for (int r = 0; r < kRounds; ++r) {
        next[r] = T(0);
        if (2 * r >= n) continue;
        const int64_t at = row(2 * r + half) * p.width + k;
        if (2 * r + half < n && k < p.width) next[r] = read<T>(p.x, at);
      }
    };
    fetch(column);
    Patch<T> gram;  // each half of the warp takes half of a chunk's features
    gram.clear();
    for (int64_t k = column; k - column < p.width; k += kSide) {
      __syncwarp();
#pragma unroll
      for (int r = 0; r < kRounds; ++r) staged[entry_at(2 * r + half, column)] = next[r];
      __syncwarp();
      fetch(k + kSide);
      gram.add_nt(staged, staged, 2 * half, 2 * half + 2);
    }
#pragma unroll
    for (auto& values : gram.v)
#pragma unroll
      for (T& value : values) value += __shfl_xor_sync(kAllLanes, value, kHalf);
    if (half == 0) gram.store(tile, T(1));
    __syncwarp();
    T entries[kSide];
    load_row(tile, column, entries);
    const T a = class_scale(p, n) * own_scale;
#pragma unroll
    for (int k = 0; k < kSide; ++k) {
      entries[k] *= a * scale(k);
      entries[k] = (column < n && k <= column ? entries[k] : T(0)) + T(k == column ? 1 : 0);
    }
    const T pivot = factor_rows<kSide>(entries, n);
    __syncwarp();
    if (half == 0) store_row(tile, column, entries);
    __syncwarp();
    return warp_sum<kSide>(static_cast<double>(log(pivot)));
  }

  // p.y = (L L^T)^-1 f, a column to a lane.
  DML_DEVICE void solve() const {
    for (int64_t d = lane_index(); d - lane_index() < p.width; d += kWarp) {
      T y[kSide];
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
        y[i] = T(0);
        if (i >= n) continue;
        const int64_t at = row(i) * p.width + d;
        const T factor = scale(i);
        T l[kSide];
        load_row(tile, i, l);
        T s = d < p.width ? read<T>(p.x, at) * factor : T(0);
#pragma unroll
        for (int k = 0; k < i; ++k) s = fma(T(0) - l[k], y[k], s);
        y[i] = s * l[i];
      }
#pragma unroll
      for (int i = kSide - 1; i >= 0; --i) {
        if (i >= n) continue;
        T l[kSide];
        load_row(tile, i, l);
        y[i] *= l[i];
#pragma unroll
        for (int k = 0; k < i; ++k) y[k] = fma(T(0) - l[k], y[i], y[k]);
        const int64_t at = row(i) * p.width + d;
        if (d < p.width) p.y[at] = y[i];
      }
    }
  }
};

}  // namespace dml
