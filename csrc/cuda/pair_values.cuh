#pragma once
// What a tile of pairs holds, and the values of its pairs in the registers of their product.

#include "cuda/number.cuh"

#include "common/pair_loss.h"

#include "cuda/approximate.cuh"
#include "cuda/pairs.cuh"
#include "cuda/tile_slots.cuh"

namespace dml {

// What pairs a tile may have, beside TileFlags in a byte. Plain: all of them are negatives that count; unit: the norm
// of every row is exactly 1.
enum TileContent : unsigned char { kPositives = 4, kNegatives = 8, kPlain = 16, kUnit = 32 };

template <class T>
DML_DEVICE Range id_range(const RowFacts<T>& facts, int tile) {
  if (facts.ids != nullptr) return facts.tiles[tile].ids;
  const int64_t first = static_cast<int64_t>(tile) * kTile, last = first + kTile - 1;
  return facts.first_id < 0 ? Range{facts.first_id - last, facts.first_id - first} : Range{first, last};
}

template <Product P>
DML_DEVICE unsigned char tile_contents(const PairProblem<P>& p, int row_tile, int col_tile) {
  const TileSummary &rows = p.a_facts.tiles[row_tile], &cols = p.b_facts.tiles[col_tile];
  const bool positives = rows.labels.meets(cols.labels);
  const bool one_class = rows.labels.first == cols.labels.last && rows.labels.last == cols.labels.first;
  const bool excluded = id_range(p.a_facts, row_tile).meets(id_range(p.b_facts, col_tile));
  const bool plain = rows.full && cols.full && !positives && !excluded;
  return static_cast<unsigned char>((positives ? kPositives : 0) | (one_class ? 0 : kNegatives) | (plain ? kPlain : 0) |
                                    (rows.unit && cols.unit ? kUnit : 0));
}

// How values come about, uniform over a launch.
struct ValueOptions {
  PairValue value;
  bool normalize;
  bool apart;       // coincident pairs do not count
  bool separating;  // nor do they for the gradient of a distance
};

// Whether the values of a plain tile end in the registers. Float64 leaves none for formulae of all pairs.
template <Product P>
constexpr bool kPlainInRegisters = TileSlots<P>::kColumns == kColSlots;

// Turns the dot products of a tile into similarities or squared distances, and into NaN those of pairs that do not
// count: of rows that are not there, of equal ids and, if asked, below the diagonal. They end in the slots; those of
// float64, for which there is no room, and of plain tiles in the registers.
template <Product P>
struct PairValues {
  using T = typename ProductTypes<P>::Value;
  using Slots = TileSlots<P>;
  // Whether norms of 1 are not read. TF32 rounds rows, whose norms are hardly ever 1; three products have no registers
  // to know.
  static constexpr bool kUnits = P != Product::tf32 && P != Product::tf32x3;
  PairBlock<P>& block;
  ValueOptions options;

  // Enters a tile. Are the values in difference form? They are if it is known before, or if a pair is too near for the
  // product form: then none of the tile's values holds, and in registers it is no longer plain. Known: whether there
  // are such pairs is known before, as a backward does, and nobody looks for them in registers.
  template <bool Known = false>
  DML_DEVICE bool compute(int col_tile, bool& plain, bool unit, bool upper, bool near) const {
    bool differences = near;
    uint64_t coincident = 0;
    block.load_columns(col_tile);
    if (kPlainInRegisters<P> && near) plain = false;
    // Similarities say which pairs coincide by way of the distances that they stand for.
    const bool similarities = options.value == PairValue::similarity;
#pragma unroll 1
    for (bool squares = !similarities || options.apart;;) {
      if (differences)
        subtract_rows(block.tile, block.p.a, block.row0, block.facts.rows.inverse, block.p.b, block.col0,
                      block.facts.cols.inverse, block.shared);
      else
        block.multiply();
      if constexpr (kPlainInRegisters<P>) {
        if (plain) {
          const bool too_near = kUnits && unit ? form_in_registers<kUnits>(squares) : form_in_registers<false>(squares);
          if (Known || !squares || __syncthreads_or(too_near) == 0) return false;
          plain = false, differences = true;
          continue;
        }
      }
      const bool too_near = !kPlainInRegisters<P> && plain ? form<true>(squares, differences, upper)
                                                           : form<false>(squares, differences, upper);
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

  // A pair whose squared distance is less than this times its norms, plus near_at(), is too near for the product form.
  // Norms of normalised rows are 1 up to their rounding, or less; of others, what is no normal number is near as well.
  DML_DEVICE T near_by_norms() const { return options.normalize ? T(0) : T(kNear); }
  DML_DEVICE T near_at() const { return options.normalize ? T(2.001 * kNear) : kSmallestNormal<T>; }

  // Of a plain tile, without differences: x (f_i . g_j) + both norms. Whether a pair of this thread is near.
  template <bool Unit>
  DML_DEVICE bool form_in_registers(bool squares) const {
    const TileSide<T>&rows = block.facts.rows, &cols = block.facts.cols;
    const T factor = squares ? T(-2) : T(1), of_units = squares ? T(2) : T(0), by_norms = near_by_norms(),
            at = near_at(), at_units = fma(of_units, by_norms, at);
    T scale[kRowSlots], col_scale[kColSlots];
    [[maybe_unused]] T norm[kRowSlots], col_norm[kColSlots];
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      const int row = PairTile<P>::row(r);
      scale[r] = rows.inverse[row];
      if constexpr (!Unit) norm[r] = squares ? rows.norm[row] : T(0);
    }
    load_neighbours(cols.inverse + PairTile<P>::first_col(), col_scale);
    if constexpr (!Unit) load_neighbours(cols.norm + PairTile<P>::first_col(), col_norm);
    bool near = false;
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) {
      col_scale[c] *= factor;
      if (!Unit && !squares) col_norm[c] = T(0);
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        T& x = block.tile.at(r, c);
        const T both = Unit ? of_units : norm[r] + col_norm[c];
        x = fma(x, scale[r] * col_scale[c], both);  // the factors first: (i, j) has the bits of (j, i)
        near |= x <= (Unit ? at_units : fma(both, by_norms, at));
      }
    }
    return near;
  }

  // The same of any tile, in the slots: one code for both forms.
  template <bool Plain>
  DML_DEVICE bool form(bool squares, bool differences, bool upper) const {
    const TileSide<T>&rows = block.facts.rows, &cols = block.facts.cols;
    const bool product = squares && !differences;
    const T factor = product ? T(-2) : T(1), by_norms = near_by_norms(), at = near_at();
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
    if (Slots::kColumns == kColSlots) Slots{block.shared}.put_tile(block.tile, 0);
    each_column([&](T(&x)[kRowSlots], int c) {
      const int col = PairTile<P>::col(c);
      const T col_scale = differences ? T(1) : factor * cols.inverse[col];
      const T col_norm = product ? cols.norm[col] : cols.norm[col] * T(0);
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        const T both = norm[r] + col_norm;
        x[r] = fma(x[r], scale[r] * col_scale, both);
        if constexpr (!Plain)
          if (id[r] == cols.id[col] || (upper && PairTile<P>::row(r) >= col)) x[r] = not_a_number<T>();
        near |= x[r] <= fma(both, by_norms, at);
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
