#pragma once
// Plain tiles: all pairs are negatives that count, and their values stay in the registers of the product. The loops
// over them are unrolled, so that only short formulae come here (Summand::kUnrolled).

#include "cuda/pair_sums.cuh"

namespace dml {

template <class Term, Product P>
constexpr bool kUnrolled = kPlainInRegisters<P> && Summand<Term>::kUnrolled;

// What a plain tile adds up of a column: the term, and the moment of x.
template <class Term, class T>
struct PlainColumn {
  static constexpr int kSums = Summand<Term>::kMoment ? 2 : 1;
  T sum[kSums] = {};

  // A lane keeps one of two columns, which one the bit says, and adds the other half of it.
  DML_DEVICE static PlainColumn merge(const PlainColumn& a, const PlainColumn& b, int bit) {
    const bool upper = (lane_index() & bit) != 0;
    PlainColumn merged;
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      const T other = __shfl_xor_sync(kAllLanes, upper ? a.sum[k] : b.sum[k], bit);
      merged.sum[k] = (upper ? b.sum[k] : a.sum[k]) + other;
    }
    return merged;
  }
};

template <Product P, class Term>
struct PlainTile {
  using T = typename ProductTypes<P>::Value;
  using Column = PlainColumn<Term, T>;
  PairBlock<P>& block;
  const SideOf<T>& side;

  // Adds its pairs to the sums of the rows. Mirrored: it stands for its mirror image too, and the columns are added to
  // the rows that they mirror in `to`; but the values and how many take part, of which only the totals are asked for,
  // to the own rows twice. Whether a pair of this thread takes part.
  template <bool Mirrored>
  DML_DEVICE bool add(RowSums<Term, T>& rows, T* to, int64_t stride) const {
    constexpr int kEnds = Mirrored ? 2 : 1;
    Column column[kColSlots];
    bool any = false;
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) {
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        const T v = block.tile.at(r, c);
        T x, term, slope;
        const bool active = Summand<Term>::plain(side, v, x, term, slope);
        const T here = active ? term : T(0);
        rows.sum[0][r] += here;
        if constexpr (Mirrored) column[c].sum[0] += here;
        if constexpr (Summand<Term>::kMoment) {
          rows.sum[2][r] = fma(here, x, rows.sum[2][r]);
          if constexpr (Mirrored) column[c].sum[1] = fma(here, x, column[c].sum[1]);
        }
        if constexpr (!Mirrored) any |= active;
        if (!active) continue;
        rows.count[r] += kEnds;
        rows.sum[1][r] = fma(T(kEnds), v, rows.sum[1][r]);
        if constexpr (!Summand<Term>::kScored) rows.sum[2][r] = fma(T(kEnds), slope, rows.sum[2][r]);
      }
    }
    if constexpr (Mirrored) {
      // Of a column's eight lanes each ends with one of the eight columns.
#pragma unroll
      for (int half = kColSlots / 2; half > 0; half /= 2)
#pragma unroll
        for (int c = 0; c < half; ++c) column[c] = Column::merge(column[c], column[c + half], half * 4);
      const int64_t row = block.col0 + PairTile<P>::first_col() + lane_index() / 4;
      atomicAdd(to + row, column[0].sum[0]);
      atomicAdd(to + 2 * stride + row, T(kWarpRows));
      if constexpr (Summand<Term>::kMoment) atomicAdd(to + 4 * stride + row, column[0].sum[1]);
      any = column[0].sum[0] > T(0);  // a term is above 0 where it takes part
    }
    return any;
  }

  // Turns values into weights; of_row and of_col: what the gradient takes the slope of the term times. Rooted: they are
  // squared distances, of which the loss takes the roots.
  template <bool Rooted>
  DML_DEVICE void pull(const T (&of_row)[kRowSlots], const T (&of_col)[kColSlots]) const {
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) {
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        T& at = block.tile.at(r, c);
        const T v = Rooted ? root_of(at) : at;
        T x, term, slope;
        const bool active = Summand<Term>::plain(side, v, x, term, slope);
        const T weight = (of_row[r] + of_col[c]) * slope;
        at = !active ? T(0) : Rooted ? weight * reciprocal_of(v) : weight;
      }
    }
  }

  DML_DEVICE void take_roots() const {
#pragma unroll
    for (int c = 0; c < kColSlots; ++c)
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) block.tile.at(r, c) = root_of(block.tile.at(r, c));
  }
};

}  // namespace dml
