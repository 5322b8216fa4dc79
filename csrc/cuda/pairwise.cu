#include "cuda/number.cuh"

#include "cuda/pair_engine.cuh"
#include "cuda/pairwise.h"
#include "cuda/read_through.cuh"
#include "cuda/tile_slots.cuh"

namespace dml {
namespace {

// Whether 16 bytes of a matrix begin at the first of a thread's columns in every row.
template <class E>
DML_DEVICE bool in_pieces(const void* matrix, int64_t row_stride) {
  return row_stride % Piece<E>::kCount == 0 && reinterpret_cast<uintptr_t>(matrix) % kPieceBytes == 0;
}

// The products of a strip of a tile as similarities, from their registers.
template <Product P, int Strips>
DML_DEVICE void write_similarities(PairBlock<P, Strips>& block, int strip, typename ProductTypes<P>::Element* out) {
  using E = typename ProductTypes<P>::Element;
  using T = typename ProductTypes<P>::Value;
  const int first = strip * kTile + PairTile<P>::first_col();
  T inverse[kColSlots];
  load_neighbours(block.facts.cols.inverse + first, inverse);
  const int64_t columns = block.p.b.count, col = block.col0 + first;
  const bool whole = col + kColSlots <= columns && in_pieces<E>(out, columns);
#pragma unroll
  for (int r = 0; r < kRowSlots; ++r) {
    const int64_t row = block.row0 + PairTile<P>::row(r);
    const T scale = block.facts.rows.inverse[PairTile<P>::row(r)];
    if (row >= block.p.a.count) continue;
    E* const to = out + row * columns + col;
#pragma unroll
    for (int c = 0; c < kColSlots; c += Piece<E>::kCount) {
      Piece<E> piece;
#pragma unroll
      for (int e = 0; e < Piece<E>::kCount; ++e)
        piece.at[e] = static_cast<E>(block.tile.at(r, strip * kColSlots + c + e) * (scale * inverse[c + e]));
      if (whole) {
        *reinterpret_cast<Piece<E>*>(to + c) = piece;
        continue;
      }
#pragma unroll
      for (int e = 0; e < Piece<E>::kCount; ++e)
        if (col + c + e < columns) to[c + e] = piece.at[e];
    }
  }
}

// One block a tile.
template <Product P, int Strips>
DML_KERNEL(kThreads, Strips == 1 ? kBlocks<P> : 1)
similarities_kernel(PairProblem<P> p, typename ProductTypes<P>::Element* out) {
  DML_SHARED(shared);
  PairBlock<P, Strips> block(p, shared, blockIdx.x);
  block.enter(block_col());
#pragma unroll
  for (int strip = 0; strip < Strips; ++strip) write_similarities(block, strip, out);
}

// One block a tile, of which a warp takes a row, so that neighbouring lanes write neighbouring values.
template <Product P>
DML_KERNEL(kThreads, kBlocks<P>)
distances_kernel(PairProblem<P> p, Metric metric, typename ProductTypes<P>::Element* out) {
  using E = typename ProductTypes<P>::Element;
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  PairBlock<P> block(p, shared, blockIdx.x);
  block.enter(block_col());
  for (int half = 0; half < 2; ++half) {
    const T* const scores = block.scores(half);
    for (int k = warp_index(); k < kHalf; k += kWarps) {
      const int r = half * kHalf + k;
      const int64_t row = block.row0 + r;
      if (row >= p.a.count) break;
#pragma unroll 1
      for (int c = lane_index(); c < kTile && block.col0 + c < p.b.count; c += kWarp) {
        const T value = block.squared(scores[k * kScoreStride + c], r, c);
        out[row * p.b.count + block.col0 + c] = static_cast<E>(metric == Metric::euclidean ? sqrt(value) : value);
      }
    }
  }
}

template <Product P>
struct PairwiseLoss {
  using E = typename ProductTypes<P>::Element;
  using T = typename ProductTypes<P>::Value;
  Metric metric;
  bool normalize;
  PairwiseGradient grad;

  DML_DEVICE unsigned char contents(const PairProblem<P>&, int, int) const { return 0; }
  DML_DEVICE void weigh(PairBlock<P>& block, int64_t col_tile, unsigned char) const {
    const bool pulls =
        metric != Metric::dot;  // if not, weights are the gradients themselves, whatever the products are
    if (pulls) {
      block.enter(col_tile);
    } else {
      block.load_columns(col_tile);
      __syncthreads();
    }
    const TileSlots<P> slots{block.shared};
#pragma unroll
    for (int first = 0; first < kColSlots; first += TileSlots<P>::kColumns) {
      if (pulls) {
        slots.put_tile(block.tile, first);
#pragma unroll 1
        for (int c = 0; c < TileSlots<P>::kColumns; ++c) {
          T x[kRowSlots];
          slots.get(c, x);
#pragma unroll
          for (int r = 0; r < kRowSlots; ++r)
            x[r] = weight(block, x[r], PairTile<P>::row(r), PairTile<P>::col(first + c));
          slots.put(c, x);
        }
      } else {
#pragma unroll 1
        for (int r = 0; r < kRowSlots; ++r) {
          T g[kColSlots];
          gradients(block, r, g);
#pragma unroll
          for (int c = 0; c < TileSlots<P>::kColumns; ++c) slots.set(c, r, g[first + c]);
        }
      }
      slots.get_tile(block.tile, first);
    }
  }

 private:
  DML_DEVICE T given(int64_t i, int64_t j) const {
    return static_cast<T>(read_through(static_cast<const E*>(grad.values) + i * grad.row_stride + j * grad.col_stride));
  }
  // Of a row and a thread's columns; 0 beyond the matrix.
  DML_DEVICE void gradients(const PairBlock<P>& block, int r, T (&g)[kColSlots]) const {
    const int64_t i = block.row0 + PairTile<P>::row(r), j = block.col0 + PairTile<P>::first_col();
    const bool here = i < block.p.a.count;
    if (here && grad.col_stride == 1 && j + kColSlots <= block.p.b.count &&
        in_pieces<E>(grad.values, grad.row_stride)) {
      const auto* const row =
          reinterpret_cast<const Piece<E>*>(static_cast<const E*>(grad.values) + i * grad.row_stride + j);
#pragma unroll
      for (int c = 0; c < kColSlots; c += Piece<E>::kCount) {
        const Piece<E> piece = read_through(row + c / Piece<E>::kCount);
#pragma unroll
        for (int e = 0; e < Piece<E>::kCount; ++e) g[c + e] = static_cast<T>(piece.at[e]);
      }
    } else {
#pragma unroll
      for (int c = 0; c < kColSlots; ++c) g[c] = here && j + c < block.p.b.count ? given(i, j + c) : T(0);
    }
    if (!grad.both) return;
#pragma unroll
    for (int c = 0; c < kColSlots; ++c)
      if (here && j + c < block.p.b.count) g[c] += given(j + c, i);
  }
  DML_DEVICE T weight(const PairBlock<P>& block, T dot, int r, int c) const {
    const int64_t i = block.row0 + r, j = block.col0 + c;
    if (i >= block.p.a.count || j >= block.p.b.count) return T(0);
    const T g = grad.both ? given(i, j) + given(j, i) : given(i, j);
    const T scale = gradient_scale(block.squared(dot, r, c), block.norms(r, c), kEps<T>);
    if (metric == Metric::euclidean) return g * scale;
    // Coincident rows pull nowhere; in the product with the rows their parts would cancel to rounding only.
    return scale == T(0) ? T(0) : T(2) * g;
  }
};

}  // namespace

template <class T>
void pairwise_values(Precision precision, const PairSides<T>& sides, Metric metric, void* out, Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    using E = typename ProductTypes<P>::Element;
    const auto grid = [&](int strips) {
      return block_matrix(blocks_for(sides.a.count, kTile), blocks_for(sides.b.count, strips * kTile));
    };
    constexpr int kStrips = kWideStrips<P>;
    if (metric == Metric::dot)
      launch(similarities_kernel<P, kStrips>, grid(kStrips), kThreads, kPairShared<P, kStrips>, stream,
             make_problem<P>(sides), static_cast<E*>(out));
    else
      launch(distances_kernel<P>, grid(1), kThreads, kPairShared<P>, stream, make_problem<P>(sides), metric,
             static_cast<E*>(out));
  });
}

template <class T>
void pairwise_weights(Precision precision, const PairSides<T>& sides, Metric metric, bool normalize,
                      const PairwiseGradient& grad, const Stripe& stripe, int64_t splits, T* weight_sums,
                      Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    launch_weights(make_problem<P>(sides), PairwiseLoss<P>{metric, normalize, grad}, stripe, splits, weight_sums,
                   sides.a.count, stream);
  });
}

#define DML_INSTANTIATE(T)                                                                                 \
  template void pairwise_values<T>(Precision, const PairSides<T>&, Metric, void*, Stream);                 \
  template void pairwise_weights<T>(Precision, const PairSides<T>&, Metric, bool, const PairwiseGradient&, \
                                    const Stripe&, int64_t, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
