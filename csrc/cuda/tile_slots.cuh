#pragma once
// The values of a thread's pairs in shared memory, column by column: loops over columns then need not be unrolled,
// which would make 64 copies of a loss's formulae of each of its cases. The slots are the thread's own, in the place of
// the stages of the product.

#include "cuda/difference_tile.cuh"

namespace dml {

template <Product P>
struct TileSlots {
  using T = typename ProductTypes<P>::Value;
  using Rows = Piece<T>;
  static constexpr int kParts = kRowSlots / Rows::kCount;
  // Columns that there is room for at a time: all, or four of float64.
  static constexpr int kColumns = kTileShared / (kThreads * kRowSlots * static_cast<int>(sizeof(T)));
  static_assert(kColumns == kColSlots || kColumns == kColSlots / 2);
  unsigned char* shared;

  DML_DEVICE Rows& part(int c, int k) const {
    return reinterpret_cast<Rows*>(shared)[(c * kParts + k) * kThreads + static_cast<int>(threadIdx.x)];
  }
  DML_DEVICE void get(int c, T (&rows)[kRowSlots]) const {
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      const Rows values = part(c, k);
#pragma unroll
      for (int e = 0; e < Rows::kCount; ++e) rows[k * Rows::kCount + e] = values.at[e];
    }
  }
  DML_DEVICE void put(int c, const T (&rows)[kRowSlots]) const {
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      Rows values;
#pragma unroll
      for (int e = 0; e < Rows::kCount; ++e) values.at[e] = rows[k * Rows::kCount + e];
      part(c, k) = values;
    }
  }
  DML_DEVICE void set(int c, int r, T value) const { part(c, r / Rows::kCount).at[r % Rows::kCount] = value; }
  // Columns first.. of the tile.
  DML_DEVICE void put_tile(PairTile<P>& tile, int first) const {
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) {
      if (c / kColumns * kColumns != first) continue;
      T rows[kRowSlots];
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) rows[r] = tile.at(r, c);
      put(c % kColumns, rows);
    }
  }
  DML_DEVICE void get_tile(PairTile<P>& tile, int first) const {
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) {
      if (c / kColumns * kColumns != first) continue;
      T rows[kRowSlots];
      get(c % kColumns, rows);
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) tile.at(r, c) = rows[r];
    }
  }
};

}  // namespace dml
