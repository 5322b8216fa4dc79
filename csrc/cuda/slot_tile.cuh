#pragma once
// Tiles whose values are in the slots, which a loop over columns adds up: those of two sides, of ragged edges, of
// bounds, and of long formulae.

#include "cuda/pair_sums.cuh"
#include "cuda/tile_slots.cuh"

namespace dml {

// The pairs of one side in a tile, whose values are in the slots. Plain: all pairs of the tile are of the side.
template <class Term, Product P, bool Plain>
struct SideOfTile {
  using T = typename ProductTypes<P>::Value;
  using Column = ColumnSums<Term, T>;
  const PairBlock<P>& block;
  const PairLoss<T>& loss;
  bool positive;
  SideOf<T> side;
  TileSlots<P> slots;
  int first;  // column of the first slot
  RowSums<Term, T>& rows;
  T bound[kRowSlots];
  int64_t label[kRowSlots];
  bool any = false;

  DML_DEVICE SideOfTile(const PairBlock<P>& block, const PairLoss<T>& loss, bool positive, int first,
                        RowSums<Term, T>& rows)
      : block(block),
        loss(loss),
        positive(positive),
        side(loss.side(positive)),
        slots{block.shared},
        first(first),
        rows(rows) {
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      bound[r] = Summand<Term>::bound(side);
      if constexpr (Plain) continue;
      const int64_t row = block.row0 + PairTile<P>::row(r);
      if (loss.bounds != nullptr && row < block.p.a.count) bound[r] = loss.bounds[(positive ? 0 : loss.queries) + row];
      label[r] = block.facts.rows.label[PairTile<P>::row(r)];
    }
  }

  DML_DEVICE bool is_member(T v, int r, int64_t of_column) const {
    return Plain || ((label[r] == of_column) == positive && v == v);
  }
  DML_DEVICE int64_t label_of(int c) const { return block.facts.cols.label[PairTile<P>::col(first + c)]; }
  DML_DEVICE void get(int c, T (&v)[kRowSlots]) const {
    slots.get(c, v);
    if (loss.values.value != PairValue::distance) return;
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) v[r] = Plain ? root_of(v[r]) : sharp_root_of(v[r]);
  }

  // Before the sums: the maximum of every row, which they are then relative to.
  DML_DEVICE void raise() {
    if constexpr (Summand<Term>::kScored) {
      T top[kRowSlots];
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) top[r] = rows.shift[r];
#pragma unroll 1
      for (int c = 0; c < TileSlots<P>::kColumns; ++c) {
        T v[kRowSlots];
        get(c, v);
        const int64_t of_column = label_of(c);
#pragma unroll
        for (int r = 0; r < kRowSlots; ++r) {
          const bool counts = is_member(v[r], r, of_column) && Summand<Term>::takes_part(side, v[r], bound[r]);
          top[r] = max(top[r], counts ? Summand<Term>::score(side, v[r]) : T(kNoScore));
        }
      }
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        const T shrink = exp(rows.shift[r] - top[r]);
        rows.shift[r] = top[r];
#pragma unroll
        for (int k = 0; k < RowSums<Term, T>::kSums; ++k)
          if (k != 1) rows.sum[k][r] *= shrink;
      }
    }
  }

  template <bool Mirrored>
  DML_DEVICE Column column(int c) {
    Column sums{};
    if constexpr (Plain) sums.counts = kRowSlots * Column::kMember;
    const int64_t of_column = Plain ? 0 : label_of(c);
    T v[kRowSlots];
    get(c, v);
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      T value[Column::kSums], factor[Column::kSums];
      const bool member = is_member(v[r], r, of_column);
      const T shift = Plain ? side.shift : rows.shift[r];
      const bool active = Summand<Term>::template add<Plain>(side, v[r], bound[r], shift, value, factor) && member;
      if constexpr (!Plain) {
        rows.members[r] += member;
        sums.counts += member ? Column::kMember : 0;
      }
      rows.count[r] += active;
      sums.counts += active;
#pragma unroll
      for (int k = 0; k < Column::kSums; ++k) {
        const T here = active ? value[k] : T(0), times = Plain || active ? factor[k] : T(0);
        rows.sum[k][r] = fma(here, times, rows.sum[k][r]);
        if constexpr (Mirrored) sums.sum[k] = fma(here, times, sums.sum[k]);
      }
    }
    any |= sums.counts % Column::kMember != 0;
    return sums;
  }

  DML_DEVICE void add_rows() {
    if (!Plain && loss.running) raise();
#pragma unroll 1
    for (int c = 0; c < TileSlots<P>::kColumns; ++c) column<false>(c);
  }

  // The tile stands for its mirror image too: the columns of a warp, one a lane, are added to the rows that they
  // mirror.
  DML_DEVICE void add_both(T* to, int64_t stride) {
    const int lane = lane_index();
    Column own{};
#pragma unroll 1
    for (int c = 0; c < kColSlots / 2; ++c) {
      Column sums = Column::merge(column<true>(c), column<true>(c + kColSlots / 2), 16);
      sums.add_lanes(4);
      sums.add_lanes(8);
      if (lane / 4 % 4 == c) own = sums;
    }
    const int64_t row = block.col0 + PairTile<P>::first_col() + lane / 16 * (kColSlots / 2) + lane / 4 % 4;
    if (row >= block.p.b.count) return;
    const int count = own.counts % Column::kMember, members = own.counts / Column::kMember;
    atomicAdd(to + 2 * stride + row, static_cast<T>(members));
    if (count == 0) return;
    atomicAdd(to + row, own.sum[0]);
    atomicAdd(to + stride + row, own.sum[1]);
    atomicAdd(to + 3 * stride + row, Summand<Term>::kScored ? static_cast<T>(count) : own.sum[2]);
    if constexpr (std::is_same_v<Term, MomentTerm>) atomicAdd(to + 4 * stride + row, own.sum[2]);
  }
};

}  // namespace dml
