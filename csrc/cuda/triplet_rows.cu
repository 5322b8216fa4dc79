#include "cuda/number.cuh"

#include "cuda/pair_engine.cuh"
#include "cuda/triplet.h"

namespace dml {
namespace {

template <Product P>
DML_KERNEL(kThreads, kBlocks<P>)
distances_kernel(PairProblem<P> p, const unsigned char* active, int64_t col_tiles, int64_t first_tile, int64_t padded,
                 typename ProductTypes<P>::Value* out) {
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  const int64_t row_tile = first_tile + blockIdx.x, first = first_tile * kTile, col_tile = block_col();
  if (col_tile >= col_tiles) return;
  if (active != nullptr && !active[row_tile * col_tiles + col_tile]) {
    for (int64_t at = threadIdx.x; at < kTile * kTile; at += kThreads) {
      const int64_t row = row_tile * kTile + at / kTile;
      if (row < p.a.count) out[(row - first) * padded + col_tile * kTile + at % kTile] = kNoPair<T>;
    }
    return;
  }
  PairBlock<P> block(p, shared, row_tile);
  block.enter(col_tile);
  for (int half = 0; half < 2; ++half) {
    const T* const scores = block.scores(half);
    for (int k = warp_index(); k < kHalf; k += kWarps) {
      const int r = half * kHalf + k;
      const int64_t row = block.row0 + r;
      if (row >= p.a.count) break;
#pragma unroll 1
      for (int c = lane_index(); c < kTile; c += kWarp) {
        T value = kNoPair<T>;
        if (!block.excluded(r, c)) {
          const T squared = block.squared(scores[k * kScoreStride + c], r, c);
          // Rows that do not count have the norm NaN.
          if (squared >= T(0)) value = block.same_class(r, c) ? -sqrt(squared) : sqrt(squared);
        }
        out[(row - first) * padded + block.col0 + c] = value;
      }
    }
  }
}

// A warp takes an anchor. The sums are of the rounded weights where the rows are not normalised, as in pair_engine.cuh.
template <class T>
DML_KERNEL(kThreads)
round_rows_kernel(const T* weights, int64_t padded, int64_t gallery, const T* inverse, bool normalize, Stripe out,
                  T* weight_sums) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= out.count) return;
  T sum = T(0);
  for (int64_t c = lane_index(); c < padded; c += kWarp) {
    const T weight = weights[row * padded + c];
    const T rounded = store_weight(c < gallery ? weight * inverse[c] : T(0), out, row, c);
    sum += normalize ? weight : rounded;
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) weight_sums[out.first + row] += sum;
}

// A block takes 32 rows of the gallery, and turns 32 x 32 weights at a time.
template <class T>
DML_KERNEL(kThreads)
round_columns_kernel(const T* weights, int64_t padded, int64_t anchors, int64_t first, const T* inverse, bool normalize,
                     Stripe out, T* weight_sums) {
  DML_SHARED(shared);
  T(*const tile)[kWarp + 1] = reinterpret_cast<T(*)[kWarp + 1]>(shared);
  const int64_t col0 = static_cast<int64_t>(blockIdx.x) * kWarp;
  T sums[kWarp / kWarps] = {};
  for (int64_t row0 = 0; row0 < out.padded; row0 += kWarp) {
    for (int r = warp_index(); r < kWarp; r += kWarps)
      tile[r][lane_index()] = row0 + r < anchors ? weights[(row0 + r) * padded + col0 + lane_index()] : T(0);
    __syncthreads();
    for (int k = 0; k < kWarp / kWarps; ++k) {
      const int c = k * kWarps + warp_index();
      const T weight = tile[lane_index()][c];
      const int64_t row = row0 + lane_index();
      const T scale = row < anchors ? inverse[first + row] : T(0);
      const T rounded = store_weight(weight * scale, out, col0 + c, row);
      sums[k] += normalize ? weight : rounded;
    }
    __syncthreads();
  }
  for (int k = 0; k < kWarp / kWarps; ++k) {
    const T sum = warp_sum(sums[k]);
    const int64_t row = col0 + k * kWarps + warp_index();
    if (lane_index() == 0 && row < out.count) weight_sums[row] += sum;
  }
}

template <class T>
DML_KERNEL(kThreads)
add_kernel(const T* from, int64_t count, T* to) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at < count) to[at] += from[at];
}

}  // namespace

template <class T>
void triplet_distances(Precision precision, const PairSides<T>& sides, const TripletProblem& problem,
                       const TripletStripe<T>& stripe, bool only_active, Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    const dim3 grid = block_matrix(blocks_for(stripe.count, kTile), static_cast<unsigned>(problem.col_tiles));
    launch(distances_kernel<P>, grid, kThreads, kPairShared<P>, stream, make_problem<P>(sides),
           only_active ? problem.active : nullptr, problem.col_tiles, stripe.first / kTile, stripe.padded,
           stripe.distances);
  });
}

template <class T>
void triplet_round_rows(const TripletProblem& problem, const TripletStripe<T>& stripe, const T* weights,
                        const T* inverse, const Stripe& out, T* weight_sums, Stream stream) {
  launch(round_rows_kernel<T>, dim3(blocks_for(stripe.count, kWarps)), kThreads, 0, stream, weights, stripe.padded,
         stripe.gallery, inverse, problem.normalize, out, weight_sums);
}

template <class T>
void triplet_round_columns(const TripletProblem& problem, const TripletStripe<T>& stripe, const T* weights,
                           const T* inverse, const Stripe& out, T* weight_sums, Stream stream) {
  launch(round_columns_kernel<T>, dim3(blocks_for(stripe.gallery, kWarp)), kThreads, kWarp * (kWarp + 1) * sizeof(T),
         stream, weights, stripe.padded, stripe.count, stripe.first, inverse, problem.normalize, out, weight_sums);
}

template <class T>
void triplet_add(const T* from, int64_t count, T* to, Stream stream) {
  launch(add_kernel<T>, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, from, count, to);
}

#define DML_INSTANTIATE(T)                                                                                           \
  template void triplet_distances<T>(Precision, const PairSides<T>&, const TripletProblem&, const TripletStripe<T>&, \
                                     bool, Stream);                                                                  \
  template void triplet_round_rows<T>(const TripletProblem&, const TripletStripe<T>&, const T*, const T*,            \
                                      const Stripe&, T*, Stream);                                                    \
  template void triplet_round_columns<T>(const TripletProblem&, const TripletStripe<T>&, const T*, const T*,         \
                                         const Stripe&, T*, Stream);                                                 \
  template void triplet_add<T>(const T*, int64_t, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
