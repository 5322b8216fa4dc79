#include "cuda/number.cuh"

#include "common/triplet.h"

#include "cuda/contest.cuh"
#include "cuda/pair_engine.cuh"
#include "cuda/triplet.h"

namespace dml {
namespace {

constexpr int kStaged = 512;  // positives of an anchor in shared memory at a time

// One anchor, which a block works on.
template <class T>
struct Anchor {
  int64_t row, begin, end;  // begin, end: of its class in the sorted gallery
  T* distances;
  bool kept, bad;

  DML_DEVICE Anchor(const TripletStripe<T>& s, int64_t local)
      : row(s.first + local), distances(s.distances + local * s.padded) {
    begin = lower_bound(s, s.labels[row], false);
    end = lower_bound(s, s.labels[row], true);
    const RowState state = s.state[row];
    bad = state == RowState::non_finite || (state == RowState::kept && *s.gallery_non_finite != 0);
    kept = state == RowState::kept && !bad;
    if (!kept) end = begin;
  }
  // The first gallery row of this label or beyond it.
  static DML_DEVICE int64_t lower_bound(const TripletStripe<T>& s, int64_t label, bool beyond) {
    int64_t low = 0, high = s.gallery;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      const int64_t at = s.sorted_labels[middle];
      if (beyond ? at <= label : at < label)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
  // Distance of a negative, +inf of any other pair.
  DML_DEVICE T negative(int64_t c) const { return signbit(distances[c]) ? kNoPair<T> : distances[c]; }
  // Distance of the positive at a place of the class, -inf where that pair is excluded.
  DML_DEVICE T positive(const TripletStripe<T>& s, int64_t at) const {
    const T d = distances[s.order[at]];
    return signbit(d) ? -d : -kNoPair<T>;
  }
  // Positives at.. with the margin to shared memory; every thread of the block calls this. Returns how many.
  DML_DEVICE int stage(const TripletStripe<T>& s, int64_t at, T margin, T* bounds) const {
    const int count = static_cast<int>(end - at < kStaged ? end - at : kStaged);
    __syncthreads();  // the last ones have been read
    for (int k = static_cast<int>(threadIdx.x); k < count; k += kThreads) bounds[k] = positive(s, at + k) + margin;
    __syncthreads();
    return count;
  }
};

// Sums of a block; thread 0 has them.
struct RowTotals {
  double cost;
  int64_t nonzero, count;

  DML_DEVICE void of_block(unsigned char* shared) {
    cost = block_sum<kWarps>(cost, reinterpret_cast<double*>(shared));
    nonzero = block_sum<kWarps>(nonzero, reinterpret_cast<int64_t*>(shared));
    count = block_sum<kWarps>(count, reinterpret_cast<int64_t*>(shared));
  }
};

template <class T>
DML_DEVICE void write_totals(const TripletRows<T>& rows, const Anchor<T>& anchor, RowTotals totals,
                             unsigned char* shared) {
  totals.of_block(shared);
  if (threadIdx.x != 0) return;
  rows.loss_sum[anchor.row] = anchor.bad ? not_a_number<T>() : static_cast<T>(totals.cost);
  rows.nonzero[anchor.row] = totals.nonzero;
  rows.count[anchor.row] = totals.count;
}

constexpr size_t kTotalsBytes = kWarps * sizeof(double);

template <class Term, class T>
DML_KERNEL(kThreads)
sums_kernel(TripletProblem problem, TripletStripe<T> s, TripletRows<T> rows) {
  DML_SHARED(shared);
  T* const bounds = reinterpret_cast<T*>(shared + kTotalsBytes);
  const Anchor<T> anchor(s, blockIdx.x);
  unsigned char* const active = problem.active + anchor.row / kTile * problem.col_tiles;
  RowTotals totals{0, 0, 0};
  int64_t positives = 0, negatives = 0;
  for (int64_t at = anchor.begin; at < anchor.end; at += kStaged) {
    const int count = anchor.stage(s, at, T(problem.margin), bounds);
    for (int k = 0; k < count; ++k) positives += bounds[k] > -kNoPair<T>;
    for (int64_t c = threadIdx.x; c < s.padded; c += kThreads) {
      const T d = anchor.negative(c);
      if (d == kNoPair<T>) continue;
      negatives += at == anchor.begin;
      TripletSum<T> sum{T(0), T(0)};
      for (int k = 0; k < count; ++k) add_triplet<Term>(sum, bounds[k], d);
      totals.cost += sum.cost;
      totals.nonzero += static_cast<int64_t>(sum.nonzero);
      if (sum.nonzero > T(0)) active[c / kTile] = 1;
    }
  }
  totals.count = positives * negatives;
  // The tiles of the positives get weights too; which of them cost something is not worth knowing.
  for (int64_t at = anchor.begin + threadIdx.x; at < anchor.end; at += kThreads) active[s.order[at] / kTile] = 1;
  write_totals(rows, anchor, totals, shared);
}

// The nearest negative beyond the positive at a place of the class; all lanes of a warp call this and get it.
template <class T>
struct Semihard {
  T distance;
  int64_t column;  // -1 for none

  template <class E>
  DML_DEVICE Semihard(const TripletStripe<T>& s, const Anchor<T>& anchor, int64_t at, T positive,
                      const Contest<E, T>& contest)
      : distance(kNoPair<T>), column(-1) {
    if (positive == -kNoPair<T>) return;
    const T limit = positive * positive;
    Best<T> best = nothing<T>(false);
    for (int64_t c = lane_index(); c < s.padded; c += kWarp) {
      const T d = anchor.negative(c), squared = d * d;
      if (d == kNoPair<T> || !can_win(squared, best.squared, contest.band(anchor.row, c), false)) continue;
      if (contest.beyond(anchor.row, c, squared, s.order[at], limit)) contest.offer(anchor.row, best, squared, c);
    }
    for (int bits = 1; bits < kWarp; bits *= 2) {
      const T squared = __shfl_xor_sync(kAllLanes, best.squared, bits);
      const int64_t index = __shfl_xor_sync(kAllLanes, best.index, bits);
      contest.offer(anchor.row, best, squared, index);
    }
    distance = sqrt(best.squared);
    column = best.index;
  }
};

template <class E, class T>
DML_KERNEL(kThreads)
semihard_kernel(TripletProblem problem, TripletStripe<T> s, TripletRows<T> rows, Contest<E, T> contest) {
  DML_SHARED(shared);
  const Anchor<T> anchor(s, blockIdx.x);
  RowTotals totals{0, 0, 0};
  for (int64_t at = anchor.begin + warp_index(); at < anchor.end; at += kWarps) {
    const T positive = anchor.positive(s, at);
    const Semihard<T> chosen(s, anchor, at, positive, contest);
    if (chosen.column < 0 || lane_index() != 0) continue;
    const double cost = triplet_term(positive + T(problem.margin) - chosen.distance, problem.soft).cost;
    totals.cost += cost;
    totals.nonzero += cost > 0;
    totals.count += 1;
  }
  write_totals(rows, anchor, totals, shared);
}

// dL/dd / d
template <class T>
DML_DEVICE T distance_weight(const TripletStripe<T>& s, const Anchor<T>& anchor, int64_t c, T d, T grad) {
  return grad * gradient_scale(d * d, s.norm[anchor.row] + s.gallery_norm[c], kEps<T>);
}

// Left to itself, the compiler spills for a fifth block.
template <class Term, class T>
DML_KERNEL(kThreads, 4)
slopes_kernel(TripletProblem problem, TripletStripe<T> s, const T* grad, T* weights) {
  DML_SHARED(shared);
  T* const bounds = reinterpret_cast<T*>(shared);
  const Anchor<T> anchor(s, blockIdx.x);
  T* const out = weights + blockIdx.x * s.padded;
  const T margin(problem.margin), own = anchor.kept ? grad[anchor.row] : T(0);
  const bool restage = anchor.end - anchor.begin > kStaged;
  int count = restage ? 0 : anchor.stage(s, anchor.begin, margin, bounds);
  for (int64_t first = 0; first < s.padded; first += kThreads) {
    const int64_t c = first + threadIdx.x;
    const T d = c < s.padded ? anchor.negative(c) : kNoPair<T>;
    T slopes = T(0);
    for (int64_t at = anchor.begin; at < anchor.end; at += kStaged) {
      if (restage) count = anchor.stage(s, at, margin, bounds);
      for (int k = 0; k < count && d != kNoPair<T>; ++k) slopes += triplet_slope<Term>(bounds[k], d);
    }
    if (c < s.padded) out[c] = slopes == T(0) ? T(0) : distance_weight(s, anchor, c, d, -own * slopes);
  }
  __syncthreads();
  for (int64_t at = anchor.begin + warp_index(); at < anchor.end; at += kWarps) {
    const T d = anchor.positive(s, at);
    if (d == -kNoPair<T>) continue;
    T slopes = T(0);
    for (int64_t c = lane_index(); c < s.padded; c += kWarp)
      slopes += triplet_slope<Term>(d + margin, anchor.negative(c));
    slopes = warp_sum(slopes);
    if (lane_index() == 0) out[s.order[at]] = distance_weight(s, anchor, s.order[at], d, own * slopes);
  }
}

template <class E, class T>
DML_KERNEL(kThreads)
semihard_slopes_kernel(TripletProblem problem, TripletStripe<T> s, const T* grad, T* weights, Contest<E, T> contest) {
  DML_SHARED(shared);
  T* const pushes = reinterpret_cast<T*>(shared);
  int64_t* const columns = reinterpret_cast<int64_t*>(shared + kWarps * sizeof(double));
  const Anchor<T> anchor(s, blockIdx.x);
  T* const out = weights + blockIdx.x * s.padded;
  for (int64_t c = threadIdx.x; c < s.padded; c += kThreads) out[c] = T(0);
  for (int64_t first = anchor.begin; first < anchor.end; first += kWarps) {
    __syncthreads();  // the row is zero, and the last pushes have been added
    const int64_t at = first + warp_index();
    const T positive = at < anchor.end ? anchor.positive(s, at) : -kNoPair<T>;
    const Semihard<T> chosen(s, anchor, at, positive, contest);
    if (lane_index() == 0) {
      columns[warp_index()] = chosen.column;
      if (chosen.column >= 0) {
        const double x = positive + T(problem.margin) - chosen.distance;
        const T slope = grad[anchor.row] * static_cast<T>(triplet_term(x, problem.soft).slope);
        out[s.order[at]] = distance_weight(s, anchor, s.order[at], positive, slope);
        pushes[warp_index()] = distance_weight(s, anchor, chosen.column, chosen.distance, slope);
      }
    }
    __syncthreads();
    // Two positives may have chosen one negative.
    for (int w = 0; w < kWarps && threadIdx.x == 0; ++w)
      if (columns[w] >= 0) out[columns[w]] -= pushes[w];
  }
}

}  // namespace

template <class T>
void triplet_sums(Precision precision, const PairSides<T>& sides, const TripletProblem& problem,
                  const TripletStripe<T>& stripe, bool semihard, const TripletRows<T>& rows, Stream stream) {
  const dim3 grid(static_cast<unsigned>(stripe.count));
  if (!semihard)
    return launch(problem.soft ? sums_kernel<PairSoftplus, T> : sums_kernel<PairHinge, T>, grid, kThreads,
                  kTotalsBytes + kStaged * sizeof(T), stream, problem, stripe, rows);
  with_element<T>(precision, [&](auto element) {
    using E = decltype(element);
    launch(semihard_kernel<E, T>, grid, kThreads, kTotalsBytes, stream, problem, stripe, rows,
           make_contest<E, T>(sides, false));
  });
}

template <class T>
void triplet_weights(Precision precision, const PairSides<T>& sides, const TripletProblem& problem,
                     const TripletStripe<T>& stripe, bool semihard, const T* grad, T* weights, Stream stream) {
  const dim3 grid(static_cast<unsigned>(stripe.count));
  if (!semihard)
    return launch(problem.soft ? slopes_kernel<PairSoftplus, T> : slopes_kernel<PairHinge, T>, grid, kThreads,
                  kStaged * sizeof(T), stream, problem, stripe, grad, weights);
  with_element<T>(precision, [&](auto element) {
    using E = decltype(element);
    launch(semihard_slopes_kernel<E, T>, grid, kThreads, kWarps * (sizeof(double) + sizeof(int64_t)), stream, problem,
           stripe, grad, weights, make_contest<E, T>(sides, false));
  });
}

#define DML_INSTANTIATE(T)                                                                                            \
  template void triplet_sums<T>(Precision, const PairSides<T>&, const TripletProblem&, const TripletStripe<T>&, bool, \
                                const TripletRows<T>&, Stream);                                                       \
  template void triplet_weights<T>(Precision, const PairSides<T>&, const TripletProblem&, const TripletStripe<T>&,    \
                                   bool, const T*, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
