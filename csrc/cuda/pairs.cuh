#pragma once
// The pairs of a tile: which are left out, their squared distances, and the walk of a block over the tiles.

#include "cuda/pairs.h"
#include "cuda/reduce.cuh"
#include "cuda/tile.cuh"

#include "common/pairwise.h"

namespace dml {

// Facts of the 128 rows of one side of a tile, in shared memory. A row that is not there or does not count has the norm
// NaN: every comparison of its distances is false.
template <class T>
struct TileSide {
  T inverse[kTile], norm[kTile];
  int64_t label[kTile], id[kTile], easy[kTile];

  // All threads of the block; a barrier follows before it is read.
  DML_DEVICE void load(const RowFacts<T>& facts, int64_t first, int64_t count) {
    const int r = static_cast<int>(threadIdx.x);
    if (r >= kTile) return;
    const int64_t row = first + r;
    const bool here = row < count;
    inverse[r] = here ? facts.inverse[row] : T(0);
    norm[r] = here ? facts.norm[row] : not_a_number<T>();
    label[r] = here && facts.labels != nullptr ? facts.labels[row] : 0;
    id[r] = !here ? 0 : facts.ids != nullptr ? facts.ids[row] : facts.first_id < 0 ? facts.first_id - row : row;
    easy[r] = here && facts.easy != nullptr ? facts.easy[row] : -1;
  }
};

template <Product P>
struct PairProblem {
  using E = typename ProductTypes<P>::Element;
  using T = typename ProductTypes<P>::Value;
  Operand<E> a, b;  // rows and columns of the tiles
  RowFacts<T> a_facts, b_facts;
};

template <Product P>
inline PairProblem<P> make_problem(const PairSides<typename ProductTypes<P>::Value>& sides) {
  using E = typename ProductTypes<P>::Element;
  const auto side = [&](const PairSide<typename ProductTypes<P>::Value>& s) {
    return make_operand(static_cast<const E*>(s.data), s.count, sides.width, sides.width, s.order);
  };
  return PairProblem<P>{side(sides.a), side(sides.b), sides.a.facts, sides.b.facts};
}

// sum (f_i - g_j)^2 from the rows themselves: few pairs need it.
template <class E, class T>
DML_DEVICE T difference_form(const E* x, T x_inverse, const E* y, T y_inverse, int64_t width) {
  T sum = T(0);
  for (int64_t k = 0; k < width; ++k) {
    const T difference = static_cast<T>(x[k]) * x_inverse - static_cast<T>(y[k]) * y_inverse;
    sum = fma(difference, difference, sum);
  }
  return sum;
}

template <class T>
struct TileFacts {
  TileSide<T> rows, cols;
};

// One tile of a block: its product, and what the pairs need. Shared memory: kTileShared, then TileFacts.
template <Product P>
struct PairBlock {
  using T = typename ProductTypes<P>::Value;
  const PairProblem<P>& p;
  unsigned char* shared;
  TileFacts<T>& facts;
  PairTile<P> tile;
  int64_t row0, col0;

  DML_DEVICE PairBlock(const PairProblem<P>& p, unsigned char* shared, int64_t row_tile)
      : p(p), shared(shared), facts(*reinterpret_cast<TileFacts<T>*>(shared + kTileShared)), row0(row_tile * kTile) {
    facts.rows.load(p.a_facts, row0, p.a.count);
  }

  DML_DEVICE void enter(int64_t col_tile) {
    __syncthreads();  // everybody is done with the columns of the last tile
    col0 = col_tile * kTile;
    facts.cols.load(p.b_facts, col0, p.b.count);
    tile.multiply(p.a, row0, p.b, col0, DenseChunks<typename PairProblem<P>::E>{0, p.a.width}, shared);
    __syncthreads();  // without a chunk to multiply, the facts have not been waited for
  }

  DML_DEVICE bool excluded(int r, int c) const { return facts.rows.id[r] == facts.cols.id[c]; }
  DML_DEVICE bool same_class(int r, int c) const { return facts.rows.label[r] == facts.cols.label[c]; }
  DML_DEVICE T norms(int r, int c) const { return facts.rows.norm[r] + facts.cols.norm[c]; }
  DML_DEVICE T similarity(T dot, int r, int c) const { return dot * facts.rows.inverse[r] * facts.cols.inverse[c]; }
  // Squared distance; near-duplicates in difference form.
  DML_DEVICE T squared(T dot, int r, int c) const {
    const T both = norms(r, c), product = product_form(similarity(dot, r, c), both);
    if (!is_near(product, both)) return product;
    return difference_form(p.a.row(row0 + r), facts.rows.inverse[r], p.b.row(col0 + c), facts.cols.inverse[c],
                           p.a.width);
  }
};

template <Product P>
constexpr size_t kPairShared = kTileShared + sizeof(TileFacts<typename ProductTypes<P>::Value>);

// The column tiles that block (row tile, split) of a grid visits. Symmetric: each unordered pair of tiles once, row
// tile a meeting a, a + 1, ... a + L/2 around the ring, which gives every row tile the same work.
struct TileWalk {
  int64_t row_tile, tiles, begin, end;
  bool symmetric;

  DML_DEVICE TileWalk(int64_t col_tiles, bool symmetric)
      : row_tile(blockIdx.x), tiles(col_tiles), symmetric(symmetric) {
    // In a ring of even length, the tiles opposite to each other meet once only.
    const int64_t steps = !symmetric ? tiles : tiles / 2 + (tiles % 2 != 0 || row_tile < tiles / 2 ? 1 : 0);
    const int64_t share = (steps + gridDim.y - 1) / gridDim.y;
    begin = share * blockIdx.y;
    end = begin + share < steps ? begin + share : steps;
  }
  DML_DEVICE int64_t col_tile(int64_t step) const { return symmetric ? (row_tile + step) % tiles : step; }
};

}  // namespace dml
