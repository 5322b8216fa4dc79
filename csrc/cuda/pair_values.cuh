#pragma once
// What a tile of pairs holds, and the values of its pairs in the registers of their product.

#include "cuda/number.cuh"

#include "common/pair_loss.h"

#include "cuda/approximate.cuh"
#include "cuda/pairs.cuh"
#include "cuda/tile_slots.cuh"

namespace dml {

// What pairs a tile may have. plain: all of them are negatives that count.
struct TileContents {
  bool positives, negatives, plain;
};

template <class T>
DML_DEVICE Range id_range(const RowFacts<T>& facts, int tile) {
  if (facts.ids != nullptr) return facts.tiles[tile].ids;
  const int64_t first = static_cast<int64_t>(tile) * kTile, last = first + kTile - 1;
  return facts.first_id < 0 ? Range{facts.first_id - last, facts.first_id - first} : Range{first, last};
}

template <Product P>
DML_DEVICE TileContents tile_contents(const PairProblem<P>& p, int row_tile, int col_tile) {
  const TileSummary &rows = p.a_facts.tiles[row_tile], &cols = p.b_facts.tiles[col_tile];
  const bool positives = rows.labels.meets(cols.labels);
  const bool one_class = rows.labels.first == cols.labels.last && rows.labels.last == cols.labels.first;
  const bool excluded = id_range(p.a_facts, row_tile).meets(id_range(p.b_facts, col_tile));
  return TileContents{positives, !one_class, rows.full && cols.full && !positives && !excluded};
}

// How values come about, uniform over a launch.
struct ValueOptions {
  PairValue value;
  bool normalize;
  bool apart;       // coincident pairs do not count
  bool separating;  // nor do they for the gradient of a distance
};

// Turns the dot products of a tile into similarities or squared distances, and into NaN those of pairs that do not
// count: of rows that are not there, of equal ids and, if asked, below the diagonal. They end in the slots; those of
// float64, for which there is no room, in the registers.
template <Product P>
struct PairValues {
  using T = typename ProductTypes<P>::Value;
  using Slots = TileSlots<P>;
  PairBlock<P>& block;
  ValueOptions options;

  // Enters a tile. Are the values in difference form? They are if it is known before, or if a pair is too near for the
  // product form: then none of the tile's values holds.
  DML_DEVICE bool compute(int col_tile, bool plain, bool upper, bool near) const {
    bool differences = near;
    uint64_t coincident = 0;
    block.load_columns(col_tile);
    // Similarities say which pairs coincide by way of the distances that they stand for.
    const bool similarities = options.value == PairValue::similarity;
#pragma unroll 1
    for (bool squares = !similarities || options.apart;;) {
      if (differences)
        subtract_rows(block.tile, block.p.a, block.row0, block.facts.rows.inverse, block.p.b, block.col0,
                      block.facts.cols.inverse, block.shared);
      else
        block.multiply();
      const bool too_near = plain ? form<true>(squares, differences, upper) : form<false>(squares, differences, upper);
      if (squares && !differences && __syncthreads_or(too_near) != 0) {
        differences = true;
        continue;
      }
      if (squares && differences && options.normalize) set_apart_zero_rows();
      if (squares && (options.apart || (options.separating && differences))) coincident = coincident_pairs();
      if (!squares || !similarities) break;
      __syncthreads();  // everybody is done with his slots
      squares = differences = false;
    }
    if (coincident != 0) exclude(coincident);
    return differences;
  }

 private:
  // Calls back with each column and its rows, which are kept if the call says so.
  template <class Call>
  DML_DEVICE void each_column(const Call& call) const {
    const Slots slots{block.shared};
#pragma unroll
    for (int first = 0; first < kColSlots; first += Slots::kColumns) {
      if (Slots::kColumns < kColSlots) slots.put_tile(block.tile, first);
#pragma unroll 1
      for (int c = 0; c < Slots::kColumns; ++c) {
        T x[kRowSlots];
        slots.get(c, x);
        call(x, first + c);
        slots.put(c, x);
      }
      if (Slots::kColumns < kColSlots) slots.get_tile(block.tile, first);
    }
  }

  // x (f_i . g_j) + both norms, with the factors of each form: one code for all. Whether a pair of this thread is near.
  template <bool Plain>
  DML_DEVICE bool form(bool squares, bool differences, bool upper) const {
    const TileSide<T>&rows = block.facts.rows, &cols = block.facts.cols;
    const bool product = squares && !differences;
    // Norms of normalised rows are 1 up to their rounding, or less.
    const T near_by_norms = options.normalize ? T(0) : T(kNear), near_at = options.normalize ? T(2.001 * kNear) : T(0);
    T scale[kRowSlots], norm[kRowSlots];
    [[maybe_unused]] int64_t id[kRowSlots];
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      const int row = PairTile<P>::row(r);
      scale[r] = differences ? T(1) : rows.inverse[row];
      norm[r] = product ? rows.norm[row] : rows.norm[row] * T(0);  // 0, but NaN of a row that does not count
      if constexpr (!Plain) id[r] = rows.id[row];
    }
    bool near = false;
    const auto form_pair = [&](T& x, int r, T col_scale, T col_norm, bool excluded) {
      const T both = norm[r] + col_norm;
      x = fma(x, scale[r] * col_scale, both);  // the factors first: (i, j) has the bits of (j, i)
      if (excluded) x = not_a_number<T>();
      near |= x <= fma(both, near_by_norms, near_at);
    };
    const T factor = product ? T(-2) : T(1);
    if constexpr (Plain && Slots::kColumns == kColSlots) {
      T col_scale[kColSlots], col_norm[kColSlots];
      load_neighbours(cols.inverse + PairTile<P>::first_col(), col_scale);
      load_neighbours(cols.norm + PairTile<P>::first_col(), col_norm);
#pragma unroll
      for (int c = 0; c < kColSlots; ++c) {
        if (differences) col_scale[c] = T(1);
        if (!product) col_norm[c] = T(0);
#pragma unroll
        for (int r = 0; r < kRowSlots; ++r)
          form_pair(block.tile.at(r, c), r, col_scale[c] * factor, col_norm[c], false);
      }
      Slots{block.shared}.put_tile(block.tile, 0);
      return near;
    }
    if (Slots::kColumns == kColSlots) Slots{block.shared}.put_tile(block.tile, 0);
    each_column([&](T(&x)[kRowSlots], int c) {
      const int col = PairTile<P>::col(c);
      const T col_scale = differences ? T(1) : factor * cols.inverse[col];
      const T col_norm = product ? cols.norm[col] : cols.norm[col] * T(0);
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        bool excluded = false;
        if constexpr (!Plain) excluded = id[r] == cols.id[col] || (upper && PairTile<P>::row(r) >= col);
        form_pair(x[r], r, col_scale, col_norm, excluded);
      }
    });
    return near;
  }

  // A row of zeros lies at distance 1 from all others, exactly as the product form has it.
  DML_DEVICE void set_apart_zero_rows() const {
    const TileSide<T>&rows = block.facts.rows, &cols = block.facts.cols;
    each_column([&](T(&x)[kRowSlots], int c) {
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        const T row = rows.norm[PairTile<P>::row(r)], col = cols.norm[PairTile<P>::col(c)];
        if (x[r] == x[r] && (row == T(0) || col == T(0))) x[r] = row + col;
      }
    });
  }
  // Bit (column, row): the pair coincides, for what is asked.
  DML_DEVICE uint64_t coincident_pairs() const {
    uint64_t found = 0;
    each_column([&](T(&x)[kRowSlots], int c) {
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        const T both = block.norms(PairTile<P>::row(r), PairTile<P>::col(c));
        const bool apart = options.separating ? gradient_scale(x[r], T(1), both, kEps<T>) > T(0) : x[r] > T(0);
        found |= uint64_t{!apart} << (c * kRowSlots + r);
      }
    });
    return found;
  }
  DML_DEVICE void exclude(uint64_t pairs) const {
    each_column([&](T(&x)[kRowSlots], int c) {
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r)
        if ((pairs >> (c * kRowSlots + r) & 1u) != 0) x[r] = not_a_number<T>();
    });
  }
};

}  // namespace dml
