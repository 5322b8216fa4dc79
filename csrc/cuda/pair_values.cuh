#pragma once
// What a tile of pairs holds, and the values of its pairs in the registers of their product.

#include "cuda/number.cuh"

#include "common/pair_loss.h"

#include "cuda/approximate.cuh"
#include "cuda/difference_tile.cuh"
#include "cuda/pairs.cuh"

namespace dml {

// What pairs a tile may have. plain: all of them are negatives that count.
struct TileContents {
  bool positives, negatives, plain;
};

template <class T>
DML_DEVICE Range id_range(const RowFacts<T>& facts, int64_t tile) {
  if (facts.ids != nullptr) return facts.tiles[tile].ids;
  const int64_t first = tile * kTile, last = first + kTile - 1;
  return facts.first_id < 0 ? Range{facts.first_id - last, facts.first_id - first} : Range{first, last};
}

template <Product P>
DML_DEVICE TileContents tile_contents(const PairProblem<P>& p, int64_t row_tile, int64_t col_tile) {
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

// Turns the dot products of a tile into similarities or squared distances in place, and into NaN those of pairs that do
// not count: of rows that are not there, of equal ids and, if asked, below the diagonal.
template <Product P>
struct PairValues {
  using T = typename ProductTypes<P>::Value;
  PairBlock<P>& block;
  ValueOptions options;

  // Enters a tile. Are the values in difference form? They are if it is known before, or if a pair is too near for the
  // product form: then none of the tile's values holds.
  DML_DEVICE bool compute(int64_t col_tile, bool plain, bool upper, bool near) const {
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
      if (!plain) exclude(upper);
      const bool too_near = form(squares, differences);
      if (squares && !differences && __syncthreads_or(too_near) != 0) {
        differences = true;
        continue;
      }
      if (squares && (options.apart || (options.separating && differences))) coincident = coincident_pairs();
      if (!squares || !similarities) break;
      squares = differences = false;
    }
    if (coincident != 0)
      each([&](T& x, int r, int c) {
        if ((coincident >> (c * kRowSlots + r) & 1u) != 0) x = not_a_number<T>();
      });
    return differences;
  }

 private:
  template <class Call>
  DML_DEVICE void each(const Call& call) const {
#pragma unroll
    for (int c = 0; c < kColSlots; ++c)
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) call(block.tile.at(r, c), r, c);
  }

  DML_DEVICE void exclude(bool upper) const {
    int64_t row_id[kRowSlots];
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) row_id[r] = block.facts.rows.id[PairTile<P>::row(r)];
    each([&](T& x, int r, int c) {
      const int row = PairTile<P>::row(r), col = PairTile<P>::col(c);
      if (row_id[r] == block.facts.cols.id[col] || (upper && row >= col)) x = not_a_number<T>();
    });
  }

  // x (f_i . g_j) + both norms, with the factors of each form: one code for all. Whether a pair of this thread is near.
  DML_DEVICE bool form(bool squares, bool differences) const {
    const bool product = squares && !differences;
    T row_scale[kRowSlots], row_norm[kRowSlots], col_scale[kColSlots], col_norm[kColSlots];
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      row_scale[r] = differences ? T(1) : block.facts.rows.inverse[PairTile<P>::row(r)];
      row_norm[r] = block.facts.rows.norm[PairTile<P>::row(r)];
    }
    load_neighbours(block.facts.cols.inverse + PairTile<P>::first_col(), col_scale);
    load_neighbours(block.facts.cols.norm + PairTile<P>::first_col(), col_norm);
    if (!product) {
      // Norms of 0, but NaN of a row that does not count.
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) row_norm[r] = row_norm[r] * T(0);
#pragma unroll
      for (int c = 0; c < kColSlots; ++c) col_norm[c] = col_norm[c] * T(0);
    }
#pragma unroll
    for (int c = 0; c < kColSlots; ++c)
      col_scale[c] = differences ? T(1) : product ? T(-2) * col_scale[c] : col_scale[c];
    bool near = false;
    if (options.normalize) {
      // Norms are 1 up to their rounding, or less.
      each([&](T& x, int r, int c) {
        x = fma(x * row_scale[r], col_scale[c], row_norm[r] + col_norm[c]);
        near |= x <= T(2.001 * kNear);
      });
    } else {
      each([&](T& x, int r, int c) {
        const T both = row_norm[r] + col_norm[c];
        x = fma(x * row_scale[r], col_scale[c], both);
        near |= is_near(x, both);
      });
    }
    return near;
  }

  // Bit (column, row): the pair coincides, for what is asked.
  DML_DEVICE uint64_t coincident_pairs() const {
    uint64_t found = 0;
    each([&](T& x, int r, int c) {
      const T both = block.norms(PairTile<P>::row(r), PairTile<P>::col(c));
      const bool apart = options.separating ? gradient_scale(x, T(1), both, kEps<T>) > T(0) : x > T(0);
      found |= uint64_t{!apart} << (c * kRowSlots + r);
    });
    return found;
  }
};

}  // namespace dml
