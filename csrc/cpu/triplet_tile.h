#pragma once
// The negatives of a tile of pairs and the positives of its queries, for the kernels of the triplet loss.

#include "cpu/pair_tile.h"
#include "cpu/triplet_kernels.h"

namespace dml {
inline namespace DML_ISA {

// A tile's distances in place of its dot products; +inf for every pair that is no negative.
template <class T>
struct NegativeTile {
  using V = Vec<T>;
  static constexpr int L = Simd<T>::lanes;
  static constexpr int64_t kStride = kTileStride;
  PairTile<T> tile;
  T* s;
  T nearest[kTile];  // of each row
  T nearest_of_all = INFINITY;

  // negatives: of each query, added to unless null; the columns' too where the tile is its mirror as well.
  NegativeTile(const TripletProblem<T>& p, int64_t i, int64_t j, T* s, int64_t* negatives)
      : tile(p.q, p.g, p.self, i, j), s(s) {
    tile.dot_products(s);
    tile.mixed ? to_distances<true>(negatives) : to_distances<false>(negatives);
  }
  // Self mode: whether (i, j) stands for (j, i) too.
  bool mirrored() const { return tile.self && !tile.diagonal; }
  const T* row(int64_t r) const { return s + r * kStride; }

 private:
  template <bool Mixed>
  void to_distances(int64_t* negatives) {
    // The padding is beyond this, and every pair of rows before it.
    const V beyond(kFar<T> * static_cast<T>(0.75));
    T in_columns[kTile] = {};
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t i = tile.i0 + r;
      V most(-INFINITY);
      int count = 0;
      for (int64_t c = 0; c < tile.cols; c += L) {
        const int64_t j = tile.j0 + c;
        T* const at = s + r * kStride + c;
        const V squared = tile.template squared<Mixed>(load<V>(at), i, j);
        auto negative = squared < beyond;
        if (Mixed) negative = without(negative, either(tile.same_class(i, j), tile.excluded(i, j)));
        const V d = select(negative, sqrt(squared), V(INFINITY));
        store(at, d);
        most = max(most, V(0) - d);
        if (negatives == nullptr) continue;
        count += __builtin_popcount(bits(negative));
        if (mirrored()) store(in_columns + c, load<V>(in_columns + c) + select(negative, V(1), V(0)));
      }
      nearest[r] = -largest(most);
      if (nearest[r] < nearest_of_all) nearest_of_all = nearest[r];
      if (negatives != nullptr) negatives[i] += count;
    }
    if (negatives == nullptr || !mirrored()) return;
    for (int64_t c = 0; c < tile.cols; ++c) negatives[tile.j0 + c] += static_cast<int64_t>(in_columns[c]);
  }
};

// The positives of one query, gathered from the slots, in whole groups.
template <class T>
struct OwnPositives {
  T distance[kMostSlots];
  int slot[kMostSlots];
  int count = 0;
  T farthest = -INFINITY;

  OwnPositives(const TripletProblem<T>& p, int64_t i) {
    for (int64_t k = 0; k < p.slots; ++k) {
      const T d = p.positives[k * p.q.padded + i];
      if (!(d >= 0)) continue;
      distance[count] = d;
      slot[count++] = static_cast<int>(k);
      if (d > farthest) farthest = d;
    }
    for (int k = count; k % kSlotGroup != 0; ++k) distance[k] = -INFINITY;
  }
};

// Whether no negative from `nearest` on can cost anything. With a softplus all of them do.
template <class T>
inline bool out_of_reach(const TripletProblem<T>& p, T farthest_positive, T nearest) {
  return farthest_positive == -INFINITY || nearest == INFINITY || (!p.soft && farthest_positive + p.margin <= nearest);
}

// The farthest positive of a vector of queries.
template <class T>
inline T farthest_positive(const TripletProblem<T>& p, int64_t j) {
  Vec<T> top(-INFINITY);
  for (int64_t k = 0; k < p.slots; ++k) top = max(top, load<Vec<T>>(p.positives + k * p.q.padded + j));
  return largest(top);
}

}  // namespace DML_ISA
}  // namespace dml
