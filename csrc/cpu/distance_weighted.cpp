#include <algorithm>
#include <cmath>
#include <limits>

#include <torch/csrc/stable/library.h>

#include "common/distance_weighted.h"
#include "common/pair_arguments.h"
#include "common/tile_schedule.h"
#include "cpu/dispatch.h"
#include "cpu/distance_weighted_kernels.h"
#include "cpu/rows.h"

namespace dml {
namespace {

// Row tiles whose sums by column tile are kept at a time: for floats as much as 64 more columns of the gallery.
constexpr int64_t kGroup = 32;

// Of each packed query of a group, by column tile.
template <class T>
struct TileSums {
  Buffer<T> largest, sums;
  TileSums(int64_t rows, int64_t col_tiles) : largest(rows * col_tiles), sums(rows * col_tiles) {}
};

// The weights before the one that is drawn, and the first candidate above: a candidate with no weight is none.
struct Step {
  int64_t at = -1;
  double before = 0, up_to = 0;

  // Whether the draw is here, or further on.
  bool take(int64_t j, double weight, double target) {
    if (!(weight > 0)) return false;
    at = j;
    before = up_to;
    up_to += weight;
    return up_to > target;
  }
};

// Draws for one query from its sums by tile; the weights are computed again in the tile of each draw only.
template <class T>
void draw(const DistanceWeightedProblem<T>& problem, int64_t row, const T* largest, const T* sums, int64_t col_tiles,
          const double* uniforms, int64_t samples, int64_t* index) {
  const auto& kernel = kernels<DistanceWeightedKernels<T>>();
  const double top = *std::max_element(largest, largest + col_tiles);
  if (top == -std::numeric_limits<double>::infinity()) return;
  const auto share = [&](int64_t tile) { return sums[tile] * std::exp(largest[tile] - top); };
  double total = 0;
  for (int64_t tile = 0; tile < col_tiles; ++tile) total += share(tile);
  alignas(64) T weights[kTile];
  int64_t weighed = -1;
  for (int64_t s = 0; s < samples; ++s) {
    const double target = uniforms[s] * total;
    Step of_tile, of_row;
    for (int64_t tile = 0; tile < col_tiles; ++tile)
      if (of_tile.take(tile, share(tile), target)) break;
    if (of_tile.at != weighed) kernel.row_weights(problem, row, weighed = of_tile.at, largest[of_tile.at], weights);
    const double rest = (target - of_tile.before) / std::exp(largest[of_tile.at] - top);
    for (int64_t c = 0; c < kTile; ++c)
      if (of_row.take(c, weights[c], rest)) break;
    index[s] = problem.g.index[of_tile.at * kTile + of_row.at];
  }
}

template <class T>
Tensor forward_as(const PairArguments& a, const Tensor& uniforms, const DistanceDensity& density, bool check) {
  const int64_t m = a.queries(), samples = uniforms.size(1);
  const double* u = uniforms.const_data_ptr<double>();
  Tensor index = filled(a.embeddings, {m, samples}, ScalarType::Long, -1);
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::panels, RowOrder::given);
  if (check) check_finite(a.op, rows.queries.any_non_finite || rows.gallery().any_non_finite);
  const RowsView<T>&q = rows.queries.view, &g = rows.gallery().view;
  if (rows.gallery().any_non_finite || g.n == 0 || samples == 0) return index;

  const DistanceWeightedProblem<T> problem{q, g, rows.self, density};
  const int64_t row_tiles = (q.n + kTile - 1) / kTile, col_tiles = (g.n + kTile - 1) / kTile;
  const int64_t group = std::min(row_tiles, kGroup);
  const TileSums<T> kept(group * kTile, col_tiles);
  const auto& kernel = kernels<DistanceWeightedKernels<T>>();
  int64_t* to = index.mutable_data_ptr<int64_t>();
  for (int64_t first = 0; first < row_tiles; first += group) {
    const int64_t tiles = std::min(group, row_tiles - first), end = std::min(q.n, (first + tiles) * kTile);
    torch::stable::parallel_for(0, tiles * col_tiles, 1, [&](int64_t begin, int64_t last) {
      for (int64_t k = begin; k < last; ++k) {
        const int64_t i = k / col_tiles, j = k % col_tiles, at = i * kTile * col_tiles + j;
        kernel.tile_sums(problem, first + i, j, kept.largest.data() + at, kept.sums.data() + at, col_tiles);
      }
    });
    torch::stable::parallel_for(first * kTile, end, 16, [&](int64_t begin, int64_t last) {
      for (int64_t row = begin; row < last; ++row) {
        const int64_t at = (row - first * kTile) * col_tiles, i = q.index[row];
        draw(problem, row, kept.largest.data() + at, kept.sums.data() + at, col_tiles, u + i * samples, samples,
             to + i * samples);
      }
    });
  }
  return index;
}

Tensor distance_weighted_fwd(const operators::distance_weighted_fwd& taken) {
  const PairArguments a(taken);
  const auto density = DistanceDensity::make(a.embeddings.size(1), taken.cutoff, taken.nonzero_loss_cutoff);
  const Tensor u = as_contiguous(taken.uniforms);
  return in_compute_type(a.embeddings, [&]<class T>() { return forward_as<T>(a, u, density, taken.check_finite); });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("distance_weighted_fwd", dml::boxed<&dml::distance_weighted_fwd, dml::Read::numbers>);
}
