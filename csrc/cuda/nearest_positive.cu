#include "cuda/nearest_positive.h"

#include <limits>

#include "cuda/candidates.cuh"

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

// What two squared distances of a row may be off by, times the norms of the worse one. TF32 rounds the rows, of which
// near-duplicates are then compared as they are. Others are told apart to a few bands of a tie (the norms of two rows
// that are nearly as far differ by a few times at most); what tensor cores cut off of the long sums of 16-bit products
// is no accident of rounding, but grows with the width.
template <Product P, class E, class T>
DML_DEVICE T error_of(const Contest<E, T>& contest) {
  if (P == Product::tf32) return T(2 * kNear);
  const T cut_off = sizeof(E) == 2 ? static_cast<T>(contest.width) * T(kEps<T> / 4) : T(0);
  return T(8) * contest.share + cut_off;
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
  const Candidates<P, Strips> candidates(block, error_of<P>(contest), s.farthest);
  for (int tile = begin; tile < end; ++tile) {
    block.enter(tile);
#pragma unroll 1
    for (int part = 0; part < candidates.kParts; ++part) {
      if (__syncthreads_or(candidates.mark(part)) == 0) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = half * kHalf + own_row;
        const int64_t id = block.facts.rows.id[r], label = block.facts.rows.label[r];
        candidates.visit(part, r, [&](int col, T dot) {
          const T both = block.norms(r, col);
          T squared = product_form(block.similarity(dot, r, col), both);
          const bool near = is_near(squared, both);
          if (!near && !can_win(squared, found[half].squared, contest.share * both, s.farthest)) return;
          const auto& cols = block.facts.cols;
          if ((cols.label[col] == label) != s.positives || cols.id[col] == id) return;
          if (near) squared = block.difference_form(r, col);
          const int64_t i = block.facts.rows.index[r], j = cols.index[col];
          if (s.beyond == nullptr || contest.beyond(i, j, squared, s.beyond_index[i], s.beyond[i]))
            contest.offer(i, found[half], squared, j);
        });
        // What is clearly worse than the best of a row's lanes is not its best.
        T limit = found[half].squared;
#pragma unroll
        for (int bits = 2; bits > 0; bits /= 2) {
          const T other = __shfl_xor_sync(kAllLanes, limit, bits);
          limit = s.farthest ? max(limit, other) : min(limit, other);
        }
        if (thread % 4 == 0) candidates.set_limit(r, limit);
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
           kPairShared<P, kStrips> + Candidates<P, kStrips>::kBytes, stream, make_problem<P>(sides), selection,
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
