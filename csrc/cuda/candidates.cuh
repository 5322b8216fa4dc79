#pragma once
// Which pairs of a tile may matter to their rows, told from the registers of the product, so that only these are looked
// at: of columns in no particular order, the t-th strip of 128 holds something better than all before it for one row in
// t only.

#include "cuda/contest.cuh"
#include "cuda/difference_tile.cuh"

namespace dml {

// A part of a tile is cut into segments: the neighbouring columns of a row that one thread has, or half of them of
// float64, so that their values have room in the place of the stages of the product.
template <Product P, int Strips>
struct Candidates {
  using T = typename ProductTypes<P>::Value;
  using Values = Piece<T>;
  static constexpr int kSegment = sizeof(T) == 4 ? kColSlots : kColSlots / 2;
  static constexpr int kParts = Strips * kColSlots / kSegment, kSegmentPieces = kSegment / Values::kCount;
  static_assert(kThreads * kRowSlots * kSegment * sizeof(T) <= kWorkBytes<T, Strips>);
  static constexpr size_t kBytes = kTile * sizeof(T) + kThreads;

  const PairBlock<P, Strips>& block;
  T sign, of_norm;
  T* bounds;             // a pair is looked at if sign * squared - error * norms <= sign * best: the row's part of it
  Values* values;        // of the segments that are marked
  unsigned char* marks;  // of each thread its segments, a bit a row

  // Behind the shared memory of the block's pairs lie kBytes more. error: of squared distances, times their norms.
  DML_DEVICE Candidates(const PairBlock<P, Strips>& block, T error, bool farthest)
      : block(block),
        sign(farthest ? T(-1) : T(1)),
        of_norm(sign - error),
        bounds(reinterpret_cast<T*>(block.shared + kPairShared<P, Strips>)),
        values(reinterpret_cast<Values*>(block.shared)),
        marks(reinterpret_cast<unsigned char*>(bounds + kTile)) {
    if (threadIdx.x < kTile) set_limit(static_cast<int>(threadIdx.x), nothing<T>(farthest).squared);
  }

  // The best of a row so far.
  DML_DEVICE void set_limit(int row, T squared) const {
    bounds[row] = sign * squared - block.facts.rows.norm[row] * of_norm;
  }

  // Marks this thread's segments of a part in which a pair may be the best of its row, and keeps their dot products;
  // whether there are any. A barrier follows before `visit`.
  DML_DEVICE bool mark(int part) const {
    unsigned found = 0;
    // The registers of a part have fixed names.
#pragma unroll
    for (int k = 0; k < kParts; ++k)
      if (k == part) found = look(k);
#pragma unroll
    for (int k = 0; k < kParts; ++k)
      if (k == part && found != 0) keep(k, found);
    marks[threadIdx.x] = static_cast<unsigned char>(found);
    return found != 0;
  }

  // Calls back with the column in the tile and the dot product of every fourth pair of a row's marked segments: four
  // neighbouring lanes share a row.
  template <class Call>
  DML_DEVICE void visit(int part, int row, const Call& call) const {
    // The segments are those of four lanes in each of four warps: bytes of a word, and bits of a byte.
    const int first_warp = row / kWarpRows * 4, quad = row % kRowStep, slot = row % kWarpRows / kRowStep;
    uint32_t left = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const uint32_t four = reinterpret_cast<const uint32_t*>(marks)[(first_warp + w) * kWarp / 4 + quad];
      left |= (four >> slot & 0x01010101u) << w;
    }
    // Two quads begin with the same lane: where all segments are marked, the values of all quads lie in other banks.
    const int turn = quad / 2, bits = turn * 8;
    left = left >> bits | left << (-bits & 31);
#pragma unroll 1
    for (; left != 0; left &= left - 1) {
      const int bit = __ffs(static_cast<int>(left)) - 1, warp = bit % 8, lane = (bit / 8 + turn) % 4;
      const int holder = (first_warp + warp) * kWarp + quad * 4 + lane;
#pragma unroll 1
      for (int c = lane_index() % 4; c < kSegment; c += 4)
        call(first_col(part) + warp * kWarpCols + lane * kColSlots + c,
             values[place(slot, c / Values::kCount, holder)].at[c % Values::kCount]);
    }
  }

 private:
  static DML_DEVICE int place(int row_slot, int piece, int thread) {
    return (row_slot * kSegmentPieces + piece) * kThreads + thread;
  }
  static DML_DEVICE int first_col(int part) {
    return part * kSegment / kColSlots * kTile + part * kSegment % kColSlots;
  }

  DML_DEVICE unsigned look(int part) const {
    const int first = PairTile<P>::first_col() + first_col(part);
    T inverse[kSegment], norm[kSegment];
    load_neighbours(block.facts.cols.inverse + first, inverse);
    load_neighbours(block.facts.cols.norm + first, norm);
#pragma unroll
    for (int c = 0; c < kSegment; ++c) inverse[c] *= T(-2) * sign, norm[c] *= of_norm;
    unsigned found = 0;
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      const int row = PairTile<P>::row(r);
      const T row_inverse = block.facts.rows.inverse[row], bound = bounds[row];
      bool any = false;
#pragma unroll
      for (int c = 0; c < kSegment; ++c)
        any |= fma(block.tile.at(r, part * kSegment + c), row_inverse * inverse[c], norm[c]) <= bound;
      if (any) found |= 1u << r;
    }
    return found;
  }

  DML_DEVICE void keep(int part, unsigned found) const {
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      if ((found >> r & 1) == 0) continue;
#pragma unroll
      for (int k = 0; k < kSegmentPieces; ++k) {
        Values piece;
#pragma unroll
        for (int e = 0; e < Values::kCount; ++e)
          piece.at[e] = block.tile.at(r, part * kSegment + k * Values::kCount + e);
        values[place(r, k, static_cast<int>(threadIdx.x))] = piece;
      }
    }
  }
};

}  // namespace dml
