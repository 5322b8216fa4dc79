#pragma once
// Weights of pairs, tile by tile, for the product with the rows (pair_rows.cu) that makes a gradient of them. A loss is
// a struct with
//   contents(p, row_tile, col_tile)  TileContents that it asks for, or 0
//   weigh(block, col_tile, known)    turns the values of a tile into the weight of (f_i - g_j), or of g_j, in the
//                                    gradient of its row; 0 for a pair that does not count. known: those contents, and
//                                    the flags of the tile
//   normalize                        whether the rows are normalised
// uniform in its options, so that a launch never diverges on one.

#include "cuda/difference_tile.cuh"
#include "cuda/pairs.cuh"

namespace dml {

// A weight as the product takes it.
template <class T>
DML_DEVICE T rounded_weight(T weight, Precision precision) {
  if constexpr (sizeof(T) == 4) {
    if (precision == Precision::bfloat16) return static_cast<float>(BFloat16(weight));
    if (precision == Precision::tf32) return __uint_as_float(round_to_tf32(weight));
  }
  return weight;
}

// Column `at` of a row of the stripe becomes the weight, rounded; returns that.
template <class T>
DML_DEVICE T store_weight(T weight, const Stripe& stripe, int64_t row, int64_t at) {
  const T rounded = rounded_weight(weight, stripe.precision);
  if (row >= stripe.count) return rounded;
  if (sizeof(T) == 4 && stripe.precision == Precision::bfloat16)
    static_cast<BFloat16*>(stripe.weights)[row * stripe.padded + at] = BFloat16(static_cast<float>(rounded));
  else
    static_cast<T*>(stripe.weights)[row * stripe.padded + at] = rounded;
  return rounded;
}

// The same of a thread's columns in a row, which are neighbours; they begin at element `at` of the stripe.
template <Product P, class T>
DML_DEVICE void store_weights(T (&weight)[kColSlots], const Stripe& stripe, int64_t at) {
  using W = std::conditional_t<P == Product::bf16, BFloat16, T>;
  W* const there = static_cast<W*>(stripe.weights) + at;
  if (stripe.adds) {
    // Another side has written 0 where this one has a pair.
    W before[kColSlots];
    load_neighbours(there, before);
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) weight[c] += static_cast<T>(before[c]);
  }
  if constexpr (P == Product::bf16) {
    Piece<uint32_t> packed;
#pragma unroll
    for (int k = 0; k < kColSlots / 2; ++k) packed.at[k] = pack_bf16(weight[2 * k], weight[2 * k + 1]);
    *reinterpret_cast<Piece<uint32_t>*>(there) = packed;
  } else {
#pragma unroll
    for (int k = 0; k < kColSlots; k += Piece<T>::kCount) {
      Piece<T> piece;
#pragma unroll
      for (int e = 0; e < Piece<T>::kCount; ++e) piece.at[e] = weight[k + e];
      *reinterpret_cast<Piece<T>*>(there + k) = piece;
    }
  }
}

// weights[i, j] = weight * 1/||x_j||, rounded as the product takes it, and per row the sum of the weights: of the
// rounded ones where the rows are not normalised (there the sum does not vanish with the radial part).
template <Product P, class Loss>
DML_KERNEL(kThreads, 1)
weights_kernel(PairProblem<P> p, Loss loss, Stripe stripe, typename ProductTypes<P>::Value* row_sums, int64_t rows) {
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  const TileWalk walk((p.b.count + kTile - 1) / kTile, false);
  const int64_t row_tile = stripe.first / kTile + walk.row_tile;
  PairBlock<P> block(p, shared, row_tile);
  T total[kRowSlots] = {};
  unsigned char* const ahead = shared + kPairShared<P>;
  const auto look = [&](int tile) -> unsigned char {
    const unsigned char flags = stripe.active.of(row_tile, tile);
    return flags == 0 ? 0 : flags | loss.contents(p, static_cast<int>(row_tile), tile);
  };
  walk.template begin_with<kLooksAhead<P>>(ahead, look);
  for (int step = walk.begin; step < walk.end; ++step) {
    const unsigned char known = walk.template known<kLooksAhead<P>>(step, ahead, look);
    if (known == 0) continue;
    loss.weigh(block, step, known);
    T inverse[kColSlots];
    load_neighbours(block.facts.cols.inverse + PairTile<P>::first_col(), inverse);
    // From row to row by one step: eight places worked out would be kept in registers from tile to tile.
    int row = block.row0 - static_cast<int>(stripe.first) + PairTile<P>::row(0);
    int64_t at = row * stripe.padded + block.col0 + PairTile<P>::first_col();
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      T weight[kColSlots];
#pragma unroll
      for (int c = 0; c < kColSlots; ++c) {
        if (loss.normalize) total[r] += block.tile.at(r, c);
        weight[c] = block.tile.at(r, c) * inverse[c];
      }
      if (P != Product::bf16 || !loss.normalize) {
#pragma unroll
        for (int c = 0; c < kColSlots; ++c) {
          weight[c] = rounded_weight(weight[c], stripe.precision);
          if (!loss.normalize) total[r] += weight[c];
        }
      }
      if (row < static_cast<int>(stripe.count)) store_weights<P>(weight, stripe, at);
      row += kRowStep, at += kRowStep * stripe.padded;
    }
  }
  // Over the four lanes and the four warps of a row, in their order.
  T(*const sums)[kTile] = reinterpret_cast<T(*)[kTile]>(shared);
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRowSlots; ++r) {
    total[r] = warp_sum<4>(total[r]);
    if (lane_index() % 4 == 0) sums[warp_index() % 4][PairTile<P>::row(r)] = total[r];
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= kTile || block.row0 + thread >= p.a.count) return;
  T sum = T(0);
#pragma unroll
  for (int w = 0; w < kTile / kWarpCols; ++w) sum += sums[w][thread];
  T& there = row_sums[blockIdx.y * rows + block.row0 + thread];
  there = stripe.adds ? there + sum : sum;
}

template <Product P, class Loss>
void launch_weights(const PairProblem<P>& p, const Loss& loss, const Stripe& stripe, int64_t splits,
                    typename ProductTypes<P>::Value* row_sums, int64_t rows, Stream stream) {
  launch(weights_kernel<P, Loss>, dim3(blocks_for(stripe.count, kTile), static_cast<unsigned>(splits)), kThreads,
         kPairShared<P> + kThreads, stream, p, loss, stripe, row_sums, rows);
}

}  // namespace dml
