#pragma once
// The two kernels of every pair loss: statistics of each row over all its pairs, and from them a weight per pair, which
// a product with the rows (pair_rows.cu) turns into gradients.
//
// Statistics are a struct with
//   Sums                    what a row adds up, starting at Loss::empty(); kValues numbers, value(k), merge(other)
//   add_to_row(block, dot, r, c, sums) -> does the pair count, for either of its ends?
//   add_to_column(block, dot, r, c, sums)
//   meets(p, row_tile, col_tile) -> may a pair of the tile count? Tiles without one are left out
//   kRowBlocks              launch bound, as kBlocks
// and weights one with
//   weight(block, dot, r, c) -> the pair's weight of (f_i - g_j), or of g_j, in the gradient of row r
//   kWeightBlocks           launch bound, as kBlocks
//   normalize               whether the rows are normalised
// all of them uniform in their options, so that a launch never diverges on one.

#include "cuda/pairs.cuh"

namespace dml {

// Where the statistics of rows go: partial[(k * splits + split) * rows + row], or added to one copy if symmetric.
template <class T>
struct RowPartials {
  T* values;
  int64_t rows, splits;
};

// Over lanes that differ in `bits`.
template <class Sums>
DML_DEVICE void merge_lanes(Sums& sums, int bits) {
  Sums other;
#pragma unroll
  for (int k = 0; k < Sums::kValues; ++k) other.value(k) = __shfl_xor_sync(kAllLanes, sums.value(k), bits);
  sums.merge(other);
}

// Four neighbouring lanes share a row of each half of the tile; with mirrored tiles, two threads share a column.
// Between tiles the sums of the rows lie in shared memory: the product needs the registers.
template <Product P, class Loss>
DML_KERNEL(kThreads, Loss::kRowBlocks)
statistics_kernel(PairProblem<P> p, Loss loss, RowPartials<typename ProductTypes<P>::Value> out, bool symmetric,
                  unsigned char* active) {
  using T = typename ProductTypes<P>::Value;
  using Sums = typename Loss::Sums;
  DML_SHARED(shared);
  const int64_t col_tiles = (p.b.count + kTile - 1) / kTile;
  const TileWalk walk(col_tiles, symmetric);
  PairBlock<P> block(p, shared, walk.row_tile);
  T* const row_sums = reinterpret_cast<T*>(shared + kPairShared<P>);  // (kValues, kTile)
  const int thread = static_cast<int>(threadIdx.x), own_row = thread / 4, own_col = thread % kTile;
  const auto kept_sums = [&](int r) {
    Sums sums;
#pragma unroll
    for (int k = 0; k < Sums::kValues; ++k) sums.value(k) = row_sums[k * kTile + r];
    return sums;
  };
  const auto keep = [&](int r, Sums sums) {
#pragma unroll
    for (int k = 0; k < Sums::kValues; ++k) row_sums[k * kTile + r] = sums.value(k);
  };
  if (thread < kTile) keep(thread, Loss::empty());

  for (int64_t step = walk.begin; step < walk.end; ++step) {
    const int64_t col_tile = walk.col_tile(step);
    const bool mirrored = symmetric && col_tile != walk.row_tile;
    const auto mark = [&](bool any) {
      if (thread != 0) return;
      active[walk.row_tile * col_tiles + col_tile] = any;
      if (mirrored) active[col_tile * col_tiles + walk.row_tile] = any;
    };
    if (!loss.meets(p, walk.row_tile, col_tile)) {
      mark(false);
      continue;
    }
    block.enter(col_tile);
    Sums column = Loss::empty();
    bool counts = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const T* const scores = block.scores(half);
      const int r = half * kHalf + own_row;
      Sums row = Loss::empty();
#pragma unroll 1
      for (int c = thread % 4; c < kTile; c += 4)
        counts |= loss.add_to_row(block, scores[own_row * kScoreStride + c], r, c, row);
      merge_lanes(row, 1);
      merge_lanes(row, 2);
      if (thread % 4 == 0) {
        Sums sums = kept_sums(r);
        sums.merge(row);
        keep(r, sums);
      }
      if (!mirrored) continue;
#pragma unroll 1
      for (int k = thread / kTile * kHalf / 2; k < (thread / kTile + 1) * kHalf / 2; ++k)
        loss.add_to_column(block, scores[k * kScoreStride + own_col], half * kHalf + k, own_col, column);
    }
    if (mirrored && block.col0 + own_col < p.b.count) {
#pragma unroll
      for (int k = 0; k < Sums::kValues; ++k)
        if (column.value(k) != T(0)) atomicAdd(&out.values[k * out.rows + block.col0 + own_col], column.value(k));
    }
    mark(__syncthreads_or(counts) != 0);
  }

  __syncthreads();
  const int64_t row = block.row0 + thread;
  if (thread >= kTile || row >= p.a.count) return;
  for (int k = 0; k < Sums::kValues; ++k) {
    const T sum = row_sums[k * kTile + thread];
    if (symmetric)
      atomicAdd(&out.values[k * out.rows + row], sum);
    else
      out.values[(k * out.splits + blockIdx.y) * out.rows + row] = sum;
  }
}

template <Product P, class Loss>
void launch_statistics(const PairProblem<P>& p, const Loss& loss,
                       const RowPartials<typename ProductTypes<P>::Value>& out, bool symmetric, unsigned char* active,
                       Stream stream) {
  constexpr size_t kSums = Loss::Sums::kValues * kTile * sizeof(typename ProductTypes<P>::Value);
  launch(statistics_kernel<P, Loss>, dim3(blocks_for(p.a.count, kTile), static_cast<unsigned>(out.splits)), kThreads,
         kPairShared<P> + kSums, stream, p, loss, out, symmetric, active);
}

// Column `at` of a row of the stripe becomes the weight, as the product takes it; returns that.
template <class T>
DML_DEVICE T store_weight(T weight, const Stripe& stripe, int64_t row, int64_t at) {
  const bool there = row < stripe.count;
  if constexpr (sizeof(T) == 4) {
    if (stripe.precision == Precision::bfloat16) {
      const BFloat16 high(weight), low(weight - static_cast<float>(high));
      BFloat16* const to = static_cast<BFloat16*>(stripe.weights) + row * 2 * stripe.padded + at;
      if (there) {
        to[0] = high;
        to[stripe.padded] = low;
      }
      return static_cast<float>(high) + static_cast<float>(low);
    }
    if (stripe.precision == Precision::tf32) weight = __uint_as_float(round_to_tf32(weight));
  }
  if (there) static_cast<T*>(stripe.weights)[row * stripe.padded + at] = weight;
  return weight;
}

// weights[i, j] = weight * 1/||x_j||, rounded as the product takes it, and per row the sum of the weights: of the
// rounded ones where the rows are not normalised (there the sum does not vanish with the radial part).
template <Product P, class Loss>
DML_KERNEL(kThreads, Loss::kWeightBlocks)
weights_kernel(PairProblem<P> p, Loss loss, Stripe stripe, typename ProductTypes<P>::Value* row_sums, int64_t rows) {
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  const TileWalk walk((p.b.count + kTile - 1) / kTile, false);
  PairBlock<P> block(p, shared, stripe.first / kTile + walk.row_tile);
  T* const row_sum = reinterpret_cast<T*>(shared + kPairShared<P>);  // kTile of them, each of one warp
  for (int r = warp_index(); r < kTile; r += kWarps)
    if (lane_index() == 0) row_sum[r] = T(0);
  for (int64_t step = walk.begin; step < walk.end; ++step) {
    if (stripe.active != nullptr &&
        !stripe.active[block.row0 / kTile * stripe.active_row_stride + step * stripe.active_col_stride])
      continue;
    block.enter(step);
    for (int half = 0; half < 2; ++half) {
      const T* const scores = block.scores(half);
      // A warp takes a row, so that neighbouring lanes write neighbouring weights.
      for (int k = warp_index(); k < kHalf; k += kWarps) {
        const int r = half * kHalf + k;
        const int64_t stripe_row = block.row0 - stripe.first + r;
        T sum = T(0);
#pragma unroll 1
        for (int c = lane_index(); c < kTile; c += kWarp) {
          const T weight = loss.weight(block, scores[k * kScoreStride + c], r, c);
          const T rounded = store_weight(weight * block.facts.cols.inverse[c], stripe, stripe_row, block.col0 + c);
          sum += loss.normalize ? weight : rounded;
        }
        sum = warp_sum(sum);
        if (lane_index() == 0) row_sum[r] += sum;
      }
    }
  }
  for (int r = warp_index(); r < kTile; r += kWarps)
    if (lane_index() == 0 && block.row0 + r < p.a.count) row_sums[blockIdx.y * rows + block.row0 + r] = row_sum[r];
}

template <Product P, class Loss>
void launch_weights(const PairProblem<P>& p, const Loss& loss, const Stripe& stripe, int64_t splits,
                    typename ProductTypes<P>::Value* row_sums, int64_t rows, Stream stream) {
  launch(weights_kernel<P, Loss>, dim3(blocks_for(stripe.count, kTile), static_cast<unsigned>(splits)), kThreads,
         kPairShared<P> + kTile * sizeof(typename ProductTypes<P>::Value), stream, p, loss, stripe, row_sums, rows);
}

}  // namespace dml
