// Coding rates of classes of any sizes and their gradients, in one launch.

#include "cuda/class_block.cuh"
#include "cuda/class_warp.cuh"

namespace dml {
namespace {

// A block takes the classes that begin in 64 neighbouring places of the sorted rows: classes of 8 rows, the usual size,
// are one to each of its warps.
constexpr int kPlaces = 64;
static_assert(kClassWarps * kWarpTiles <= kClassTiles);

// First place from `from` on whose label differs, of sorted labels; all lanes of a warp search together.
DML_DEVICE int64_t end_of_class(const int64_t* labels, int64_t label, int64_t from, int64_t end) {
  while (from < end) {
    const int64_t step = (end - from + kWarp - 1) / kWarp, probe = from + lane_index() * step;
    const unsigned differ = __ballot_sync(kAllLanes, probe >= end || labels[probe] != label);
    if ((differ & 1u) != 0) return from;
    const int same = differ == 0 ? kWarp : __ffs(static_cast<int>(differ)) - 1;
    const int64_t next = from + same * step;
    from = from + (same - 1) * step + 1;
    end = next < end ? next : end;
  }
  return from;
}

// Calls visit(begin, end) for the classes that begin in the places of the block.
template <class Visit>
DML_DEVICE void for_each_class(const int64_t* labels, int64_t rows, const Visit& visit) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPlaces;
  const auto begins = [&](int64_t place) { return place < rows && (place == 0 || labels[place] != labels[place - 1]); };
  const unsigned low = __ballot_sync(kAllLanes, begins(first + lane_index()));
  const unsigned high = __ballot_sync(kAllLanes, begins(first + kWarp + lane_index()));
  int64_t begin = -1;
  for (int k = 0; k <= kPlaces; ++k) {
    const bool last = k == kPlaces;
    if (!last && ((k < kWarp ? low : high) >> k % kWarp & 1u) == 0) continue;
    if (begin >= 0) {
      const int64_t after = first + k < rows ? first + k : rows;
      visit(begin, last ? end_of_class(labels, labels[begin], after, rows) : after);
    }
    begin = first + k;
  }
}

template <class T>
DML_KERNEL(kClassThreads)
class_rates_kernel(ClassRates<T> p) {
  DML_SHARED(shared);
  T* const tiles = reinterpret_cast<T*>(shared);
  const T factor = static_cast<T>(p.gain * rate_scale(p.rows, p.width, p.eps_squared, false));
  double sum = 0;  // of lane 0
  const auto share = [&](int64_t n) { return static_cast<double>(n) / static_cast<double>(2 * p.rows); };

  int small_classes = 0;
  for_each_class(p.labels, p.rows, [&](int64_t begin, int64_t end) {
    if (end - begin > kWarpClass || small_classes++ % kClassWarps != warp_index()) return;
    const int n = static_cast<int>(end - begin);
    WarpClass<T> c(p, begin, n, tiles + warp_index() * kWarpTiles * kTileEntries);
    sum += share(n) * c.factor();
    if (!p.need_grad) return;
    c.solve();
    for (int r = 0; r < n; ++r) {
      const int64_t row = c.row(r);
      finish_rate_row(p.x, p.grad, p.y, row, p.width, c.scale(r), factor, p.normalize);
    }
  });

  for_each_class(p.labels, p.rows, [&](int64_t begin, int64_t end) {
    if (end - begin <= kWarpClass) return;
    __syncthreads();
    const BlockClass<T> c{p, begin, end - begin};
    // Tiles of a side up to min(n, D) fit into (n, D) entries, which start at a multiple of 16 bytes here.
    const double logdet = c.side() <= kClassSide ? block_class(c, tiles, tiles + kBlockTiles * kTileEntries)
                                                 : block_class(c, p.tiles + (begin * p.width + 3) / 4 * 4, tiles);
    if (warp_index() == 0) sum += share(c.n) * logdet;
    for (int64_t i = warp_index(); p.need_grad && i < c.n; i += kClassWarps) {
      const int64_t row = p.order[begin + i];
      finish_rate_row(p.x, p.grad, p.y, row, p.width, p.scale[row], factor, p.normalize);
    }
  });

  double* const sums = reinterpret_cast<double*>(tiles + kClassTiles * kTileEntries);
  if (lane_index() == 0) sums[warp_index()] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double term = 0;
  for (int w = 0; w < kClassWarps; ++w) term += sums[w];
  p.terms[blockIdx.x] = term;
}

}  // namespace

int64_t class_blocks(int64_t rows) { return (rows + kPlaces - 1) / kPlaces; }

template <class T>
void class_rates(const ClassRates<T>& p, Stream stream) {
  const size_t shared = kClassTiles * kTileEntries * sizeof(T) + kClassWarps * sizeof(double);
  launch(class_rates_kernel<T>, blocks_for(p.rows, kPlaces), kClassThreads, shared, stream, p);
}

template void class_rates<float>(const ClassRates<float>&, Stream);
template void class_rates<double>(const ClassRates<double>&, Stream);

}  // namespace dml
