// Coding rates of classes of any sizes and their gradients, in one launch.

#include "cuda/class_block.cuh"
#include "cuda/class_warp.cuh"

namespace dml {
namespace {

// Blocks for classes of up to 16 rows take those that begin in 64 neighbouring places of the sorted rows: classes of 8
// rows, the usual size, are one to each of their warps. Blocks for larger classes look at 16 places: in these at most
// one such class begins, and it is the last that does.
constexpr int kSmallPlaces = 2 * kWarp, kLargePlaces = kWarpClass;
static_assert(kClassWarps * kWarpTiles <= kClassTiles);

int64_t large_blocks(int64_t rows) { return (rows + kLargePlaces - 1) / kLargePlaces; }
int64_t small_blocks(int64_t rows) { return (rows + kSmallPlaces - 1) / kSmallPlaces; }

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

// Which of the 32 places from `first` on are there and begin a class.
template <class T>
DML_DEVICE unsigned beginnings(const ClassRates<T>& p, int64_t first) {
  const int64_t place = first + lane_index();
  return __ballot_sync(kAllLanes, place < p.rows && (place == 0 || p.labels[place] != p.labels[place - 1]));
}

// A warp to each class of the block's places, in turn.
template <class T>
DML_DEVICE void small_classes(const ClassRates<T>& p, int64_t first, T* tiles, double* sums) {
  const unsigned low = beginnings(p, first), high = beginnings(p, first + kWarp);
  double sum = 0;
  int number = 0;
  for (int k = 0; k < kSmallPlaces; ++k) {
    if (((k < kWarp ? low : high) >> k % kWarp & 1u) == 0) continue;
    if (number++ % kClassWarps != warp_index()) continue;
    // The end is one of the next 16 places, or the class is not small.
    const int64_t begin = first + k;
    const unsigned next = beginnings(p, begin + 1);
    const int n = static_cast<int>(next != 0 ? __ffs(static_cast<int>(next)) : p.rows - begin);
    if (n > kWarpClass) continue;
    WarpClass<T> own(p, begin, n, tiles + warp_index() * kWarpTiles * kTileEntries);
    sum += n * own.factor();
    if (!p.need_grad) continue;
    own.solve();
    for (int r = 0; r < n; ++r) {
      const int64_t row = own.row(r);
      finish_rate_row(p.x, p.grad, p.y, row, p.width, own.scale(r), static_cast<T>(p.factor), p.normalize);
    }
  }
  if (lane_index() == 0) sums[warp_index()] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (int w = 0; w < kClassWarps; ++w) sum += sums[w];
  p.terms[blockIdx.x] = sum;
}

template <class T>
DML_DEVICE void large_class(const ClassRates<T>& p, int64_t first, T* tiles) {
  const unsigned begins = beginnings(p, first) & ((1u << kLargePlaces) - 1);
  int64_t begin = first, end = first;
  if (begins != 0) {
    for (unsigned left = begins; left > 1; left >>= 1) ++begin;
    const int64_t next = first + kLargePlaces < p.rows ? first + kLargePlaces : p.rows;
    end = end_of_class(p.labels, p.labels[begin], next, p.rows);
  }
  const bool large = end - begin > kWarpClass;
  if (!large && threadIdx.x == 0) p.terms[blockIdx.x] = 0;
  if (!large) return;
  const BlockClass<T> own{p, static_cast<int>(begin), static_cast<int>(end - begin)};
  // Tiles of a side up to min(n, D) fit into (n, D) entries, which start at a multiple of 16 bytes here.
  if (own.side() <= kClassSide)
    own.factor_and_solve(tiles, tiles + kBlockTiles * kTileEntries);
  else
    own.factor_and_solve(p.tiles + (own.begin * p.width + 3) / 4 * 4, tiles);
  for (int r = warp_index(); p.need_grad && r < own.n; r += kClassWarps) {
    const int64_t row = p.order[own.begin + r];
    finish_rate_row(p.x, p.grad, p.y, row, p.width, p.scale[row], static_cast<T>(p.factor), p.normalize);
  }
}

// Large classes come first, since they take longest. Without the 1, registers spill for a second block.
template <class T>
DML_KERNEL(kClassThreads, 1)
class_rates_kernel(ClassRates<T> p, int64_t large) {
  DML_SHARED(shared);
  T* const tiles = reinterpret_cast<T*>(shared);
  const int64_t block = blockIdx.x;
  if (block < large) {
    large_class(p, block * kLargePlaces, tiles);
  } else {
    small_classes(p, (block - large) * kSmallPlaces, tiles,
                  reinterpret_cast<double*>(tiles + kClassTiles * kTileEntries));
  }
}

}  // namespace

int64_t class_blocks(int64_t rows) { return large_blocks(rows) + small_blocks(rows); }

template <class T>
void class_rates(const ClassRates<T>& p, Stream stream) {
  const size_t shared = kClassTiles * kTileEntries * sizeof(T) + kClassWarps * sizeof(double);
  launch(class_rates_kernel<T>, blocks_for(class_blocks(p.rows), 1), kClassThreads, shared, stream, p,
         large_blocks(p.rows));
}

template void class_rates<float>(const ClassRates<float>&, Stream);
template void class_rates<double>(const ClassRates<double>&, Stream);

}  // namespace dml
