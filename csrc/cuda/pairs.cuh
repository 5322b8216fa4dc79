#pragma once
// The pairs of a tile: which are left out, their squared distances, and the walk of a block over the tiles.

#include "cuda/pairs.h"
#include "cuda/reduce.cuh"
#include "cuda/tile.cuh"

#include "common/pairwise.h"

namespace dml {

// Facts of the rows of one side of a tile, in shared memory. A row that is not there or does not count has the norm
// NaN: every comparison of its distances is false.
template <class T, int Rows = kTile>
struct TileSide {
  T inverse[Rows], norm[Rows];
  int64_t label[Rows], id[Rows], index[Rows];  // index: the caller's row

  // All threads of the block; a barrier follows before it is read.
  DML_DEVICE void load(const RowFacts<T>& facts, const int64_t* order, int64_t first, int64_t count) {
    const int r = static_cast<int>(threadIdx.x);
    if (r >= Rows) return;
    const bool here = first + r < count;
    const int64_t row = here && order != nullptr ? order[first + r] : first + r;
    inverse[r] = here ? facts.inverse[row] : T(0);
    norm[r] = here ? facts.norm[row] : not_a_number<T>();
    index[r] = row;
    label[r] = !here ? 0 : facts.labels != nullptr ? facts.labels[row] : row;
    id[r] = !here ? 0 : facts.ids != nullptr ? facts.ids[row] : facts.first_id < 0 ? facts.first_id - row : row;
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
  const auto side = [&](const SideRows<typename ProductTypes<P>::Value>& s) {
    return Operand<E>{static_cast<const E*>(s.data), sides.stride, s.count, s.order};
  };
  return PairProblem<P>{side(sides.a), side(sides.b), sides.a.facts, sides.b.facts};
}

template <Product P>
using ProductIs = std::integral_constant<Product, P>;

// Calls back with the product that computes rows of a precision.
template <class T, class Call>
void with_product(Precision precision, const Call& call) {
  if constexpr (sizeof(T) == 8) {
    call(ProductIs<Product::simt>());
  } else {
    switch (precision) {
      case Precision::tf32:
        return call(ProductIs<Product::tf32>());
      case Precision::bfloat16:
        return call(ProductIs<Product::bf16>());
      case Precision::float16:
        return call(ProductIs<Product::fp16>());
      default:
        return call(ProductIs<Product::tf32x3>());
    }
  }
}

// Calls back with an element of the rows.
template <class T, class Call>
void with_element(Precision precision, const Call& call) {
  if constexpr (sizeof(T) == 8) {
    call(double());
  } else {
    switch (precision) {
      case Precision::bfloat16:
        return call(BFloat16());
      case Precision::float16:
        return call(Half());
      default:
        return call(float());
    }
  }
}

// sum (f_i - g_j)^2 over the k that are `first` modulo Step, in the order of common/pairwise.h: the sums of two halves,
// down to the partial ones. The loops are not unrolled: few pairs come here, and registers are short.
template <int Step, class E, class T>
DML_DEVICE T difference_form(const E* x, T x_inverse, const E* y, T y_inverse, int64_t width, int first) {
  T sum = T(0);
  if constexpr (Step == kPartialSums) {
#pragma unroll 1
    for (int64_t k = first; k < width; k += Step)
      sum = add_square(sum, product(static_cast<T>(x[k]), x_inverse) - product(static_cast<T>(y[k]), y_inverse));
  } else {
#pragma unroll 1
    for (int half = first; half < 2 * Step; half += Step)
      sum += difference_form<2 * Step>(x, x_inverse, y, y_inverse, width, half);
  }
  return sum;
}

// From the rows themselves.
template <class E, class T>
DML_DEVICE T difference_form(const E* x, T x_inverse, const E* y, T y_inverse, int64_t width) {
  return difference_form<1>(x, x_inverse, y, y_inverse, width, 0);
}

template <class T, int Strips>
struct TileFacts {
  TileSide<T> rows;
  TileSide<T, Strips * kTile> cols;
};

// Of some kernels the dot products of half a tile go through shared memory to the formulae of the pairs. Quads
// of lanes read rows that are 4 banks apart.
constexpr int kHalf = kTile / 2, kScoreStride = kTile + 4;
template <class T>
constexpr size_t kScoreBytes = kHalf * kScoreStride * sizeof(T);
template <class T, int Strips>
constexpr size_t kWorkBytes = kStagesBytes<Strips> > kScoreBytes<T> ? kStagesBytes<Strips> : kScoreBytes<T>;

// One tile of a block: its product, and what the pairs need. Shared memory: the stages of the product, or the scores of
// half a tile; then TileFacts. Strips: of 128 columns in a tile.
template <Product P, int Strips = 1>
struct PairBlock {
  using T = typename ProductTypes<P>::Value;
  const PairProblem<P>& p;
  unsigned char* shared;
  TileFacts<T, Strips>& facts;
  int row0, col0;  // 32 bits: registers are short
  PairTile<P, Strips> tile;

  DML_DEVICE PairBlock(const PairProblem<P>& p, unsigned char* shared, int64_t row_tile)
      : p(p),
        shared(shared),
        facts(*reinterpret_cast<TileFacts<T, Strips>*>(shared + kWorkBytes<T, Strips>)),
        row0(static_cast<int>(row_tile) * kTile) {
    facts.rows.load(p.a_facts, p.a.order, row0, p.a.count);
  }

  DML_DEVICE void load_columns(int64_t col_tile) {
    __syncthreads();  // everybody is done with the columns of the last tile
    col0 = static_cast<int>(col_tile) * Strips * kTile;
    facts.cols.load(p.b_facts, p.b.order, col0, p.b.count);
  }
  DML_DEVICE void multiply() { tile.multiply(p.a, row0, p.b, col0, chunks(), shared); }
  DML_DEVICE void enter(int64_t col_tile) {
    load_columns(col_tile);
    multiply();
  }
  DML_DEVICE auto chunks() const { return DenseChunks<typename PairProblem<P>::E>{0, static_cast<int>(p.a.width)}; }

  // Dot products of rows half * 64.. of the tile, (64, kScoreStride); every thread calls this, and may then read.
  DML_DEVICE const T* scores(int half) {
    static_assert(Strips == 1);
    T* const out = reinterpret_cast<T*>(shared);
    __syncthreads();  // the other half has been read, or the stages of the product
    if (warp_index() / 4 == half) {
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r)
#pragma unroll
        for (int c = 0; c < kColSlots; ++c) out[tile.row(r) % kHalf * kScoreStride + tile.col(c)] = tile.at(r, c);
    }
    __syncthreads();
    return out;
  }

  DML_DEVICE bool excluded(int r, int c) const { return facts.rows.id[r] == facts.cols.id[c]; }
  DML_DEVICE bool same_class(int r, int c) const { return facts.rows.label[r] == facts.cols.label[c]; }
  DML_DEVICE T norms(int r, int c) const { return facts.rows.norm[r] + facts.cols.norm[c]; }
  // The factors first: (i, j) has the bits of (j, i).
  DML_DEVICE T similarity(T dot, int r, int c) const { return dot * (facts.rows.inverse[r] * facts.cols.inverse[c]); }
  DML_DEVICE T difference_form(int r, int c) const {
    return dml::difference_form(p.a.row(row0 + r), facts.rows.inverse[r], p.b.row(col0 + c), facts.cols.inverse[c],
                                p.a.width);
  }
  // Squared distance; near-duplicates in difference form.
  DML_DEVICE T squared(T dot, int r, int c) const {
    const T both = norms(r, c), product = product_form(similarity(dot, r, c), both);
    return is_near(product, both) ? difference_form(r, c) : product;
  }
};

template <Product P, int Strips = 1>
constexpr size_t kPairShared =
    kWorkBytes<typename ProductTypes<P>::Value, Strips> + sizeof(TileFacts<typename ProductTypes<P>::Value, Strips>);

// Whether a walk looks ahead: three products have no register for it.
template <Product P>
constexpr bool kLooksAhead = P != Product::tf32x3;

// The column tiles that block (row tile, split) of a grid visits. Symmetric: each unordered pair of tiles once, row
// tile a meeting a, a + 1, ... a + L/2 around the ring, which gives every row tile the same work.
struct TileWalk {
  int row_tile, tiles, begin, end;  // 32 bits: registers are short
  bool symmetric;

  DML_DEVICE TileWalk(int64_t col_tiles, bool symmetric)
      : row_tile(static_cast<int>(blockIdx.x)), tiles(static_cast<int>(col_tiles)), symmetric(symmetric) {
    // In a ring of even length, the tiles opposite to each other meet once only.
    const int steps = !symmetric ? tiles : tiles / 2 + (tiles % 2 != 0 || row_tile < tiles / 2 ? 1 : 0);
    const int splits = static_cast<int>(gridDim.y), share = (steps + splits - 1) / splits;
    begin = share * static_cast<int>(blockIdx.y);
    end = begin + share < steps ? begin + share : steps;
  }
  DML_DEVICE int col_tile(int step) const {
    if (!symmetric) return step;
    return row_tile + step < tiles ? row_tile + step : row_tile + step - tiles;
  }
  // What is known of the tile of a step before it is entered: a byte, of which the threads work out those of kThreads
  // steps at once, in shared memory. Every thread calls begin_with, then `known` for every step.
  template <bool Ahead, class Look>
  DML_DEVICE void begin_with(unsigned char* shared, const Look& look) const {
    if constexpr (Ahead) look_ahead(begin, shared, look);
  }
  template <bool Ahead, class Look>
  DML_DEVICE unsigned char known(int step, unsigned char* shared, const Look& look) const {
    if constexpr (!Ahead) return look(col_tile(step));
    if (step % kThreads == 0) look_ahead(step, shared, look);
    return shared[step % kThreads];
  }

 private:
  template <class Look>
  DML_DEVICE void look_ahead(int step, unsigned char* shared, const Look& look) const {
    __syncthreads();
    const int own = step / kThreads * kThreads + static_cast<int>(threadIdx.x);
    if (own < end) shared[threadIdx.x] = look(col_tile(own));
    __syncthreads();
  }
};

}  // namespace dml
