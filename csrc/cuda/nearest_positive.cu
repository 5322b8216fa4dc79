#include "cuda/nearest_positive.h"

#include <limits>

#include "cuda/contest.cuh"
#include "cuda/difference_tile.cuh"

namespace dml {
namespace {

constexpr int kRowsPerBlock = kThreads / kWarp;  // of the listed pairs: a warp reads a row

// First place in sorted values[0..n) whose value is not below (or, past: above) the key.
DML_DEVICE int64_t first_place(const int64_t* values, int64_t n, int64_t key, bool past) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (values[middle] < key || (past && values[middle] == key))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Whether a pair of this thread in the strip may matter, as its product is in the registers: whether it is nearer (or
// farther) than `limits`, the best of the rows so far, or worse by so little of its norms that ties and
// near-duplicates, which the product cannot judge, are among them.
template <Product P, int Strips>
DML_DEVICE bool may_win(PairBlock<P, Strips>& block, int strip, const typename ProductTypes<P>::Value* limits,
                        bool farthest) {
  using T = typename ProductTypes<P>::Value;
  const auto& rows = block.facts.rows;
  const int first = strip * kTile + PairTile<P>::first_col();
  const T sign = farthest ? T(-1) : T(1), of_norm = sign - T(2 * kNear);
  T inverse[kColSlots], norm[kColSlots];
  load_neighbours(block.facts.cols.inverse + first, inverse);
  load_neighbours(block.facts.cols.norm + first, norm);
#pragma unroll
  for (int c = 0; c < kColSlots; ++c) inverse[c] *= T(-2) * sign, norm[c] *= of_norm;
  bool found = false;
#pragma unroll
  for (int r = 0; r < kRowSlots; ++r) {
    const int row = PairTile<P>::row(r);
    const T row_inverse = rows.inverse[row], row_norm = rows.norm[row] * of_norm, limit = limits[row] * sign;
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) {
      const T dot = block.tile.at(r, strip * kColSlots + c);
      found |= fma(dot, row_inverse * inverse[c], row_norm + norm[c]) <= limit;
    }
  }
  return found;
}

// Four neighbouring lanes share a row of each half of the tile, as in the statistics of the losses.
template <Product P, int Strips>
DML_KERNEL(kThreads, Strips == 1 ? kChoosingBlocks<P> : 1)
select_kernel(PairProblem<P> p, Selection<typename ProductTypes<P>::Value> s,
              Contest<typename ProductTypes<P>::Element, typename ProductTypes<P>::Value> contest,
              typename ProductTypes<P>::Value* best, int64_t* best_index) {
  using T = typename ProductTypes<P>::Value;
  constexpr int kColumns = Strips * kTile;
  DML_SHARED(shared);
  T* const limits = reinterpret_cast<T*>(shared + kPairShared<P, Strips>);
  const int64_t row_tile = blockIdx.x;
  int64_t first_tile = 0, end_tile = (p.b.count + kColumns - 1) / kColumns;
  if (s.positives) {
    const int64_t last_row = (row_tile + 1) * kTile < p.a.count ? (row_tile + 1) * kTile - 1 : p.a.count - 1;
    first_tile = first_place(s.col_labels, p.b.count, s.row_labels[row_tile * kTile], false) / kColumns;
    end_tile = (first_place(s.col_labels, p.b.count, s.row_labels[last_row], true) + kColumns - 1) / kColumns;
  }
  // Numbers of tiles fit in 32 bits, and registers are short.
  const int share = static_cast<int>((end_tile - first_tile + gridDim.y - 1) / gridDim.y);
  const int begin = static_cast<int>(first_tile) + share * static_cast<int>(blockIdx.y);
  const int end = begin + share < end_tile ? begin + share : static_cast<int>(end_tile);
  PairBlock<P, Strips> block(p, shared, row_tile);
  const int thread = static_cast<int>(threadIdx.x), own_row = thread / 4;
  Best<T> found[2] = {nothing<T>(s.farthest), nothing<T>(s.farthest)};
  if (thread < kTile) limits[thread] = found[0].squared;
  for (int tile = begin; tile < end; ++tile) {
    block.enter(tile);
    // Among negatives the pairs of a row's own class are the nearest ones, and hardly a strip has none of them.
    bool wanted[Strips];
#pragma unroll
    for (int strip = 0; strip < Strips; ++strip)
      wanted[strip] = !s.positives || __syncthreads_or(may_win(block, strip, limits, s.farthest)) != 0;
    if (!wanted[0] && !wanted[Strips - 1]) continue;
#pragma unroll 1
    for (int strip = 0; strip < Strips; ++strip) {
      if (!(strip == 0 ? wanted[0] : wanted[Strips - 1])) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const T* const scores = block.scores(half, strip);
        const int r = half * kHalf + own_row;
#pragma unroll 1
        for (int c = thread % 4; c < kTile; c += 4) {
          const int col = strip * kTile + c;
          const T both = block.norms(r, col);
          T squared = product_form(block.similarity(scores[own_row * kScoreStride + c], r, col), both);
          const bool near = is_near(squared, both);
          if (!near && !can_win(squared, found[half].squared, contest.share * both, s.farthest)) continue;
          if (block.same_class(r, col) != s.positives || block.excluded(r, col)) continue;
          if (near) squared = block.difference_form(r, col);
          const int64_t i = block.facts.rows.index[r], j = block.facts.cols.index[col];
          if (s.beyond == nullptr || contest.beyond(i, j, squared, s.beyond_index[i], s.beyond[i]))
            contest.offer(i, found[half], squared, j);
        }
      }
      // What is clearly worse than the best of a row's lanes is not its best.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T limit = found[half].squared;
#pragma unroll
        for (int bits = 2; bits > 0; bits /= 2) {
          const T other = __shfl_xor_sync(kAllLanes, limit, bits);
          limit = s.farthest ? max(limit, other) : min(limit, other);
        }
        if (thread % 4 == 0) limits[half * kHalf + own_row] = limit;
      }
      __syncthreads();
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int bits = 1; bits < 4; bits *= 2) {
      const T squared = __shfl_xor_sync(kAllLanes, found[half].squared, bits);
      const int64_t index = __shfl_xor_sync(kAllLanes, found[half].index, bits);
      contest.offer(block.facts.rows.index[half * kHalf + own_row], found[half], squared, index);
    }
    const int64_t row = row_tile * kTile + half * kHalf + own_row;
    if (thread % 4 != 0 || row >= p.a.count) continue;
    best[blockIdx.y * p.a.count + row] = found[half].squared;
    best_index[blockIdx.y * p.a.count + row] = found[half].index;
  }
}

// One thread a row: the best of its splits.
template <class E, class T>
DML_KERNEL(kThreads)
finish_selection_kernel(SelectedRows<T> p, Contest<E, T> contest) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, count = p.sides.a.count;
  if (place >= count) return;
  const int64_t row = p.sides.a.order == nullptr ? place : p.sides.a.order[place];
  Best<T> found = nothing<T>(p.farthest);
  for (int64_t split = 0; split < p.splits; ++split)
    contest.offer(row, found, p.best[split * count + place], p.best_index[split * count + place]);
  const bool others_bad = *p.gallery_non_finite != 0;
  const bool bad = p.state[row] == RowState::non_finite || (p.state[row] == RowState::kept && others_bad);
  if (others_bad) found.index = -1;
  const T squared = found.index < 0 ? static_cast<T>(INFINITY) : found.squared;
  if (p.squared != nullptr) p.squared[row] = squared;
  if (p.distance != nullptr) p.distance[row] = bad ? not_a_number<T>() : sqrt(squared);
  p.index[row] = found.index;
}

template <class E, class T>
DML_KERNEL(kThreads)
listed_weights_kernel(ListedSides<T> sides, ListedPairs<T> list) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warp_index();
  if (i >= sides.queries) return;
  const int64_t j = list.index[i];
  T squared = T(0), norms = T(0);
  if (j >= 0 && j < sides.gallery) {
    const E *const x = static_cast<const E*>(sides.x) + i * sides.width, *const y = static_cast<const E*>(sides.y) +
                                                                                    j * sides.width;
    for (int64_t k = lane_index(); k < sides.width; k += kWarp) {
      const T f = product(static_cast<T>(x[k]), sides.x_inverse[i]),
              g = product(static_cast<T>(y[k]), sides.y_inverse[j]);
      squared = fma(f - g, f - g, squared);
      norms = fma(f, f, fma(g, g, norms));
    }
  }
  squared = warp_sum(squared);
  norms = warp_sum(norms);
  if (lane_index() != 0) return;
  const T weight = j == -1 ? T(0) : list.grad[i] * gradient_scale(squared, norms, kEps<T>);
  list.weight[i] = j >= -1 && j < sides.gallery ? weight : not_a_number<T>();  // a row that is not there
}

// The gallery row j hears from the queries that chose it: a stretch of the sorted list, always in the same order.
template <class E, class T>
DML_KERNEL(kThreads)
add_listed_kernel(ListedSides<T> sides, ListedPairs<T> list, bool to_gallery, T* sums, T* weight_sums) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warp_index();
  if (row >= (to_gallery ? sides.gallery : sides.queries)) return;
  const E* const others = static_cast<const E*>(to_gallery ? sides.x : sides.y);
  const T* const inverse = to_gallery ? sides.x_inverse : sides.y_inverse;
  int64_t begin = row, end = row + 1;
  if (to_gallery) {
    begin = first_place(list.sorted, sides.queries, row, false);
    end = first_place(list.sorted, sides.queries, row, true);
  }
  T total = T(0);
  for (int64_t at = begin; at < end; ++at) total += list.weight[to_gallery ? list.from[at] : row];
  if (lane_index() == 0) weight_sums[row] += total;
  for (int64_t k = lane_index(); k < sides.width; k += kWarp) {
    T sum = sums[row * sides.width + k];
    for (int64_t at = begin; at < end; ++at) {
      const int64_t i = to_gallery ? list.from[at] : row, other = to_gallery ? i : list.index[row];
      if (!to_gallery && (other < 0 || other >= sides.gallery)) break;
      sum = fma(list.weight[i], static_cast<T>(others[other * sides.width + k]) * inverse[other], sum);
    }
    sums[row * sides.width + k] = sum;
  }
}

}  // namespace

template <class T>
void select_pairs(Precision precision, const PairSides<T>& sides, const Selection<T>& selection, int64_t splits,
                  T* best, int64_t* best_index, Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    constexpr int kStrips = kWideStrips<P>;
    launch(select_kernel<P, kStrips>, dim3(blocks_for(sides.a.count, kTile), static_cast<unsigned>(splits)), kThreads,
           kPairShared<P, kStrips> + kTile * sizeof(T), stream, make_problem<P>(sides), selection,
           make_contest<typename ProductTypes<P>::Element, T>(sides, selection.farthest), best, best_index);
  });
}

template <class T>
void finish_selection(Precision precision, const SelectedRows<T>& rows, Stream stream) {
  with_element<T>(precision, [&](auto element) {
    using E = decltype(element);
    launch(finish_selection_kernel<E, T>, dim3(blocks_for(rows.sides.a.count, kThreads)), kThreads, 0, stream, rows,
           make_contest<E, T>(rows.sides, rows.farthest));
  });
}

template <class T>
void listed_weights(Precision precision, const ListedSides<T>& sides, const ListedPairs<T>& list, Stream stream) {
  with_element<T>(precision, [&](auto element) {
    launch(listed_weights_kernel<decltype(element), T>, dim3(blocks_for(sides.queries, kRowsPerBlock)), kThreads, 0,
           stream, sides, list);
  });
}

template <class T>
void add_listed_rows(Precision precision, const ListedSides<T>& sides, const ListedPairs<T>& list, bool to_gallery,
                     T* sums, T* weight_sums, Stream stream) {
  with_element<T>(precision, [&](auto element) {
    launch(add_listed_kernel<decltype(element), T>,
           dim3(blocks_for(to_gallery ? sides.gallery : sides.queries, kRowsPerBlock)), kThreads, 0, stream, sides,
           list, to_gallery, sums, weight_sums);
  });
}

#define DML_INSTANTIATE(T)                                                                                           \
  template void select_pairs<T>(Precision, const PairSides<T>&, const Selection<T>&, int64_t, T*, int64_t*, Stream); \
  template void finish_selection<T>(Precision, const SelectedRows<T>&, Stream);                                      \
  template void listed_weights<T>(Precision, const ListedSides<T>&, const ListedPairs<T>&, Stream);                  \
  template void add_listed_rows<T>(Precision, const ListedSides<T>&, const ListedPairs<T>&, bool, T*, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
