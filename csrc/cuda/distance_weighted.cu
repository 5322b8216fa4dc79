#include "cuda/pairs.cuh"

#include "cuda/distance_weighted.h"

namespace dml {
namespace {

// Weights e^score * root added up relative to the largest score among them.
template <class T>
struct RelativeSum {
  T largest, sum;

  DML_DEVICE void add(T score, T root) {
    if (score > largest) {
      sum = fma(sum, exp(largest - score), root);
      largest = score;
    } else {
      sum = fma(exp(score - largest), root, sum);
    }
  }
  // Of a lane that differs in `bits`.
  DML_DEVICE void merge(int bits) {
    const T other = __shfl_xor_sync(kAllLanes, largest, bits), other_sum = __shfl_xor_sync(kAllLanes, sum, bits);
    const T top = max(largest, other);
    if (top == static_cast<T>(-INFINITY)) return;
    sum = sum * exp(largest - top) + other_sum * exp(other - top);
    largest = top;
  }
};

// Four neighbouring lanes share a row of each half of the tile, as in the statistics of the losses.
template <Product P>
DML_KERNEL(kThreads, kChoosingBlocks<P>)
sums_kernel(PairProblem<P> p, DistanceDensity density, WeightSums<typename ProductTypes<P>::Value> out) {
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  const int64_t share = (out.col_tiles + gridDim.y - 1) / gridDim.y, begin = share * blockIdx.y;
  const int64_t end = begin + share < out.col_tiles ? begin + share : out.col_tiles;
  PairBlock<P> block(p, shared, out.first / kTile + blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x), own_row = thread / 4;
  for (int64_t tile = begin; tile < end; ++tile) {
    block.enter(tile);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const T* const scores = block.scores(half);
      const int r = half * kHalf + own_row;
      RelativeSum<T> total{static_cast<T>(-INFINITY), T(0)};
#pragma unroll 1
      for (int c = thread % 4; c < kTile; c += 4) {
        const T both = block.norms(r, c);
        T squared = product_form(block.similarity(scores[own_row * kScoreStride + c], r, c), both);
        const bool near = is_near(squared, both);
        if (!near && !is_candidate(squared, density)) continue;
        if (block.same_class(r, c) || block.excluded(r, c)) continue;
        if (near) squared = block.difference_form(r, c);
        if (!is_candidate(squared, density)) continue;
        const DistanceWeight<T> weight = distance_weight(squared, density);
        total.add(weight.score, weight.root);
      }
      total.merge(1);
      total.merge(2);
      const int64_t row = blockIdx.x * static_cast<int64_t>(kTile) + r;
      if (thread % 4 != 0 || row >= out.count) continue;
      out.largest[row * out.col_tiles + tile] = total.largest;
      out.sums[row * out.col_tiles + tile] = total.sum;
    }
  }
}

// Where a warp's draw falls among weights that it is shown 32 at a time: the first one with which their sum exceeds the
// target, or, if rounding leaves none, the last that is not 0.
struct WarpDraw {
  int64_t at = -1;
  double before = 0, up_to = 0;  // sums of the weights before that, and of all that were shown

  // Whether the draw is among these; a lane has the weight of first + lane.
  DML_DEVICE bool show(int64_t first, double weight, double target) {
    double sum = weight;
#pragma unroll
    for (int by = 1; by < kWarp; by *= 2) {
      const double lower = __shfl_up_sync(kAllLanes, sum, by);
      if (lane_index() >= by) sum += lower;
    }
    sum += up_to;
    const unsigned some = __ballot_sync(kAllLanes, weight > 0);
    const unsigned beyond = __ballot_sync(kAllLanes, weight > 0 && sum > target);
    const int lane = beyond != 0 ? __ffs(static_cast<int>(beyond)) - 1 : 31 - __clz(static_cast<int>(some));
    if (some != 0) {
      at = first + lane;
      before = __shfl_sync(kAllLanes, sum - weight, lane);
    }
    up_to = __shfl_sync(kAllLanes, sum, kWarp - 1);
    return beyond != 0;
  }
};

template <class T>
DML_DEVICE int64_t id_of(const RowFacts<T>& facts, int64_t row) {
  return facts.ids != nullptr ? facts.ids[row] : facts.first_id < 0 ? facts.first_id - row : row;
}

// A lane that has the smaller number wins, of equals the one that has the lower index.
template <class T>
DML_DEVICE int64_t nearest_of_warp(T squared, int64_t index) {
#pragma unroll
  for (int bits = 1; bits < kWarp; bits *= 2) {
    const T other = __shfl_xor_sync(kAllLanes, squared, bits);
    const int64_t other_index = __shfl_xor_sync(kAllLanes, index, bits);
    if (other > squared || (other == squared && other_index >= index)) continue;
    squared = other;
    index = other_index;
  }
  return index;
}

// The column of a tile that a draw falls on, `target` above the sum before the tile, relative to its largest score. The
// weights are computed again, from the rows as they are stored: what that moves is the rounding of a product.
template <class E, class T>
DML_DEVICE int64_t column_of(const PairSides<T>& sides, const DistanceDensity& density, int64_t row, int64_t first,
                             T largest, double target) {
  const RowFacts<T>&a = sides.a.facts, &b = sides.b.facts;
  const E* const x = static_cast<const E*>(sides.a.data) + row * sides.stride;
  T nearest = static_cast<T>(INFINITY);
  int64_t nearest_at = first;
  WarpDraw draw;
  for (int64_t col = first; col < first + kTile && col < sides.b.count; col += kWarp) {
    const int64_t j = col + lane_index();
    double weight = 0;
    // A row that does not count has the norm NaN.
    if (j < sides.b.count && b.norm[j] == b.norm[j] && a.labels[row] != b.labels[j] && id_of(a, row) != id_of(b, j)) {
      const E* const y = static_cast<const E*>(sides.b.data) + j * sides.stride;
      const T squared = difference_form(x, a.inverse[row], y, b.inverse[j], sides.width);
      if (squared < nearest) {
        nearest = squared;
        nearest_at = j;
      }
      if (is_candidate(squared, density)) {
        const DistanceWeight<T> found = distance_weight(squared, density);
        weight = exp(found.score - largest) * found.root;
      }
    }
    if (draw.show(col, weight, target)) break;
  }
  if (draw.at >= 0) return draw.at;
  // The one candidate of the tile is so near the cutoff that it is none by this rounding.
  return nearest_of_warp(nearest, nearest_at);
}

// A warp for each draw.
template <class E, class T>
DML_KERNEL(kThreads)
draw_kernel(PairSides<T> sides, DistanceDensity density, WeightSums<T> weights, Draws draws) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  const int64_t local = place / draws.samples, row = weights.first + local;
  if (local >= weights.count) return;
  const int64_t at = row * draws.samples + place % draws.samples;
  const T* const largest = weights.largest + local * weights.col_tiles;
  const T* const sums = weights.sums + local * weights.col_tiles;
  const double uniform = draws.uniforms[at];
  T top = static_cast<T>(-INFINITY);
  for (int64_t tile = lane_index(); tile < weights.col_tiles; tile += kWarp) top = max(top, largest[tile]);
#pragma unroll
  for (int bits = 1; bits < kWarp; bits *= 2) top = max(top, __shfl_xor_sync(kAllLanes, top, bits));
  const bool none = top == static_cast<T>(-INFINITY) || *draws.gallery_non_finite != 0;
  if (none || !(uniform >= 0 && uniform < 1)) {
    if (lane_index() == 0) draws.index[at] = -1;
    return;
  }
  const auto share = [&](int64_t first) {
    const int64_t tile = first + lane_index();
    if (tile >= weights.col_tiles) return 0.0;
    return static_cast<double>(sums[tile]) * exp(static_cast<double>(largest[tile]) - static_cast<double>(top));
  };
  WarpDraw all, tile;
  for (int64_t first = 0; first < weights.col_tiles; first += kWarp) all.show(first, share(first), INFINITY);
  const double target = uniform * all.up_to;
  for (int64_t first = 0; first < weights.col_tiles; first += kWarp)
    if (tile.show(first, share(first), target)) break;
  const double scale = exp(static_cast<double>(largest[tile.at]) - static_cast<double>(top));
  const int64_t column =
      column_of<E>(sides, density, row, tile.at * kTile, largest[tile.at], (target - tile.before) / scale);
  if (lane_index() == 0) draws.index[at] = column;
}

}  // namespace

template <class T>
void sum_weights(Precision precision, const PairSides<T>& sides, const DistanceDensity& density,
                 const WeightSums<T>& sums, int64_t splits, Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    launch(sums_kernel<P>, dim3(blocks_for(sums.count, kTile), static_cast<unsigned>(splits)), kThreads, kPairShared<P>,
           stream, make_problem<P>(sides), density, sums);
  });
}

template <class T>
void draw_negatives(Precision precision, const PairSides<T>& sides, const DistanceDensity& density,
                    const WeightSums<T>& sums, const Draws& draws, Stream stream) {
  with_element<T>(precision, [&](auto element) {
    launch(draw_kernel<decltype(element), T>, dim3(blocks_for(sums.count * draws.samples, kWarps)), kThreads, 0, stream,
           sides, density, sums, draws);
  });
}

#define DML_INSTANTIATE(T)                                                                                            \
  template void sum_weights<T>(Precision, const PairSides<T>&, const DistanceDensity&, const WeightSums<T>&, int64_t, \
                               Stream);                                                                               \
  template void draw_negatives<T>(Precision, const PairSides<T>&, const DistanceDensity&, const WeightSums<T>&,       \
                                  const Draws&, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
