#pragma once
// The two kernels of every pair loss: statistics of each row over all its pairs, and from them a weight per pair, which
// a product with the rows (pair_rows.cu) turns into gradients.
//
// A loss is a struct with
//   Sums                    what a row adds up, starting at Loss::empty(); kValues numbers, value(k), merge(other)
//   Totals                  kTotals numbers of the whole batch
//   visit(block, dot, r, c, times, row_sums, col_sums or null, totals) -> does the pair count?
//   weight(block, dot, r, c) -> the pair's weight of (f_i - g_j), or of g_j, in the gradient of row r
// all of them uniform in their options, so that a launch never diverges on one.

#include "cuda/pairs.cuh"

namespace dml {

// Where the statistics of rows go: partial[(k * splits + split) * rows + row], or added to one copy if symmetric.
template <class T>
struct RowPartials {
  T* values;
  int64_t rows, splits;
};

template <class Sums>
DML_DEVICE void merge_lanes(Sums& sums, int bits) {
  Sums other;
#pragma unroll
  for (int k = 0; k < Sums::kValues; ++k) other.value(k) = __shfl_xor_sync(kAllLanes, sums.value(k), bits);
  sums.merge(other);
}

template <Product P, class Loss>
DML_KERNEL(kThreads)
statistics_kernel(PairProblem<P> p, Loss loss, RowPartials<typename ProductTypes<P>::Value> out, bool symmetric,
                  unsigned char* active, typename ProductTypes<P>::Value* block_totals) {
  using T = typename ProductTypes<P>::Value;
  using Sums = typename Loss::Sums;
  DML_SHARED(shared);
  const int64_t col_tiles = (p.b.count + kTile - 1) / kTile;
  const TileWalk walk(col_tiles, symmetric);
  PairBlock<P> block(p, shared, walk.row_tile);
  Sums rows[kRowSlots];
#pragma unroll
  for (int r = 0; r < kRowSlots; ++r) rows[r] = Loss::empty();
  T totals[Loss::kTotals] = {};

  for (int64_t step = walk.begin; step < walk.end; ++step) {
    const int64_t col_tile = walk.col_tile(step);
    block.enter(col_tile);
    const bool mirrored = symmetric && col_tile != walk.row_tile;
    bool counts = false;
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) {
      Sums column = Loss::empty();
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r)
        counts |= loss.visit(block, block.tile.at(r, c), PairTile<P>::row(r), PairTile<P>::col(c), rows[r],
                             mirrored ? &column : nullptr, totals);
      if (!mirrored) continue;
      // The eight lanes that differ in bits 2 to 4 hold the same column.
#pragma unroll
      for (int bits = 4; bits < kWarp; bits *= 2) merge_lanes(column, bits);
      const int64_t col = block.col0 + PairTile<P>::col(c);
      if (lane_index() / 4 != 0 || col >= p.b.count) continue;
#pragma unroll
      for (int k = 0; k < Sums::kValues; ++k)
        if (column.value(k) != T(0)) atomicAdd(&out.values[k * out.rows + col], column.value(k));
    }
    const bool any = __syncthreads_or(counts) != 0;
    if (threadIdx.x == 0 && active != nullptr) {
      active[walk.row_tile * col_tiles + col_tile] = any;
      if (mirrored) active[col_tile * col_tiles + walk.row_tile] = any;
    }
  }

  // Four lanes, then four warps, share a row; the stages of the products are free now.
  __syncthreads();
  Sums* const by_warp = reinterpret_cast<Sums*>(shared);
#pragma unroll
  for (int r = 0; r < kRowSlots; ++r) {
    merge_lanes(rows[r], 1);
    merge_lanes(rows[r], 2);
    if (lane_index() % 4 == 0) by_warp[(warp_index() % 4) * kTile + PairTile<P>::row(r)] = rows[r];
  }
  __syncthreads();
  const int r = static_cast<int>(threadIdx.x);
  const int64_t row = block.row0 + r;
  if (r < kTile && row < p.a.count) {
    Sums sums = by_warp[r];
#pragma unroll
    for (int w = 1; w < 4; ++w) sums.merge(by_warp[w * kTile + r]);
#pragma unroll
    for (int k = 0; k < Sums::kValues; ++k) {
      if (symmetric)
        atomicAdd(&out.values[k * out.rows + row], sums.value(k));
      else
        out.values[(k * out.splits + blockIdx.y) * out.rows + row] = sums.value(k);
    }
  }
  T* const scratch = reinterpret_cast<T*>(by_warp + 4 * kTile);
#pragma unroll
  for (int k = 0; k < Loss::kTotals; ++k) {
    const T sum = block_sum<kWarps>(totals[k], scratch);
    if (threadIdx.x == 0)
      block_totals[(blockIdx.x * static_cast<int64_t>(gridDim.y) + blockIdx.y) * Loss::kTotals + k] = sum;
  }
}

// The element of the weights of a pair, as the product with the rows takes it.
template <Product P>
struct WeightElement {
  using Type = typename ProductTypes<P>::Value;
  static DML_DEVICE Type round(Type w) { return w; }
};
template <>
struct WeightElement<Product::tf32> {
  using Type = float;
  static DML_DEVICE float round(float w) { return __uint_as_float(round_to_tf32(w)); }
};
template <>
struct WeightElement<Product::fp16> : WeightElement<Product::tf32> {};  // small weights would underflow in fp16
template <>
struct WeightElement<Product::bf16> {
  using Type = BFloat16;
  static DML_DEVICE BFloat16 round(float w) { return BFloat16(w); }
};

// weights[i, j] = weight * 1/||x_j||, rounded as the product takes it, and per row the sum of the weights: of the
// rounded ones where the rows are not normalised (there the sum does not vanish with the radial part).
template <Product P, class Loss>
DML_KERNEL(kThreads)
weights_kernel(PairProblem<P> p, Loss loss, Stripe stripe, typename ProductTypes<P>::Value* row_sums, int64_t rows) {
  using T = typename ProductTypes<P>::Value;
  using W = WeightElement<P>;
  DML_SHARED(shared);
  const TileWalk walk((p.b.count + kTile - 1) / kTile, false);
  PairBlock<P> block(p, shared, stripe.first / kTile + walk.row_tile);
  auto* const out = static_cast<typename W::Type*>(stripe.weights);
  T sums[kRowSlots] = {};
  for (int64_t step = walk.begin; step < walk.end; ++step) {
    if (stripe.active != nullptr &&
        !stripe.active[block.row0 / kTile * stripe.active_row_stride + step * stripe.active_col_stride])
      continue;
    block.enter(step);
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      const int row = PairTile<P>::row(r);
      const int64_t stripe_row = block.row0 - stripe.first + row;
#pragma unroll
      for (int c = 0; c < kColSlots; ++c) {
        const int col = PairTile<P>::col(c);
        const T weight = loss.weight(block, block.tile.at(r, c), row, col);
        const auto rounded = W::round(weight * block.facts.cols.inverse[col]);
        sums[r] += loss.normalize ? weight : static_cast<T>(rounded);
        if (stripe_row < stripe.count) out[stripe_row * stripe.padded + block.col0 + col] = rounded;
      }
    }
  }
  __syncthreads();
  T* const by_warp = reinterpret_cast<T*>(shared);
#pragma unroll
  for (int r = 0; r < kRowSlots; ++r) {
    const T sum = warp_sum<4>(sums[r]);
    if (lane_index() % 4 == 0) by_warp[(warp_index() % 4) * kTile + PairTile<P>::row(r)] = sum;
  }
  __syncthreads();
  const int r = static_cast<int>(threadIdx.x);
  if (r < kTile && block.row0 + r < p.a.count)
    row_sums[blockIdx.y * rows + block.row0 + r] =
        by_warp[r] + by_warp[kTile + r] + by_warp[2 * kTile + r] + by_warp[3 * kTile + r];
}

template <Product P, class Loss>
void launch_weights(const PairProblem<P>& p, const Loss& loss, const Stripe& stripe, int64_t splits,
                    typename ProductTypes<P>::Value* row_sums, int64_t rows, Stream stream) {
  launch(weights_kernel<P, Loss>, dim3(blocks_for(stripe.count, kTile), static_cast<unsigned>(splits)), kThreads,
         kPairShared<P>, stream, p, loss, stripe, row_sums, rows);
}

}  // namespace dml
