#include "common/distance_weighted.h"
#include "common/pair_arguments.h"
#include "cuda/distance_weighted.h"
#include "cuda/pair_launcher.h"

namespace dml {
namespace {

// Largest workspace of the sums by row and column tile; on the host so small that the rows of a test take several
// turns.
#if defined(DML_CUDA_HOST)
constexpr int64_t kSumsBytes = 4 << 10;
#else
constexpr int64_t kSumsBytes = int64_t{128} << 20;
#endif

template <class T>
Tensor forward_as(const PairArguments& a, const Tensor& uniforms, const DistanceDensity& density,
                  const std::string& precision, bool check) {
  const OnDevice device(a.embeddings);
  const PairsOnDevice<T> pairs(a, precision, device.stream);
  if (check) check_all_finite(a.op, pairs);
  const int64_t m = a.queries(), n = a.gallery(), samples = uniforms.size(1);
  const Tensor index = empty(a.embeddings, {m, samples}, ScalarType::Long);
  if (m == 0 || samples == 0) return index;
  if (n == 0) return filled(a.embeddings, {m, samples}, ScalarType::Long, -1);
  const int64_t col_tiles = (n + kTile - 1) / kTile, row_bytes = 2 * col_tiles * static_cast<int64_t>(sizeof(T));
  const int64_t rows = std::min(m, std::max<int64_t>(kSumsBytes / row_bytes / kTile, 1) * kTile);
  const Tensor largest = empty(a.embeddings, {rows, col_tiles}, compute_type(a.embeddings));
  const Tensor sums = empty(a.embeddings, {rows, col_tiles}, compute_type(a.embeddings));
  const int64_t splits = column_splits((rows + kTile - 1) / kTile, col_tiles);
  const Draws draws{data<double>(uniforms), samples, pairs.gallery().flag(), data<int64_t>(index)};
  for (int64_t first = 0; first < m; first += rows) {
    const WeightSums<T> weights{first, std::min(rows, m - first), col_tiles, data<T>(largest), data<T>(sums)};
    sum_weights<T>(pairs.precision, pairs.sides, density, weights, splits, device.stream);
    draw_negatives<T>(pairs.precision, pairs.sides, density, weights, draws, device.stream);
  }
  return index;
}

Tensor distance_weighted_fwd(const operators::distance_weighted_fwd& taken) {
  const PairArguments a(taken);
  const auto density = DistanceDensity::make(a.embeddings.size(1), taken.cutoff, taken.nonzero_loss_cutoff);
  const Tensor u = as_contiguous(taken.uniforms);
  return in_compute_type(a.embeddings,
                         [&]<class T>() { return forward_as<T>(a, u, density, taken.precision, taken.check_finite); });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("distance_weighted_fwd", dml::boxed<&dml::distance_weighted_fwd>);
}
