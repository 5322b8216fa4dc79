#include "cuda/number.cuh"

#include "cuda/pair_engine.cuh"
#include "cuda/pairwise.h"
#include "cuda/tile_slots.cuh"

namespace dml {
namespace {

// One block a tile; a warp takes a row, so that neighbouring lanes write neighbouring values.
template <Product P>
DML_KERNEL(kThreads, kBlocks<P>)
values_kernel(PairProblem<P> p, Metric metric, typename ProductTypes<P>::Element* out) {
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
        const T dot = scores[k * kScoreStride + c];
        T value = metric == Metric::dot ? block.similarity(dot, r, c) : block.squared(dot, r, c);
        if (metric == Metric::euclidean) value = sqrt(value);
        out[row * p.b.count + block.col0 + c] = static_cast<E>(value);
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

  DML_DEVICE void weigh(PairBlock<P>& block, int64_t col_tile, bool) const {
    block.enter(col_tile);
    const TileSlots<P> slots{block.shared};
#pragma unroll
    for (int first = 0; first < kColSlots; first += TileSlots<P>::kColumns) {
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
      slots.get_tile(block.tile, first);
    }
  }
  DML_DEVICE T weight(const PairBlock<P>& block, T dot, int r, int c) const {
    const int64_t i = block.row0 + r, j = block.col0 + c;
    if (i >= block.p.a.count || j >= block.p.b.count) return T(0);
    const E* const values = static_cast<const E*>(grad.values);
    T g = static_cast<T>(values[i * grad.row_stride + j * grad.col_stride]);
    if (grad.both) g += static_cast<T>(values[j * grad.row_stride + i * grad.col_stride]);
    if (metric == Metric::dot) return g;
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
    launch(values_kernel<P>, block_matrix(blocks_for(sides.a.count, kTile), blocks_for(sides.b.count, kTile)), kThreads,
           kPairShared<P>, stream, make_problem<P>(sides), metric, static_cast<E*>(out));
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
