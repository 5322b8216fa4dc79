#include "cuda/number.cuh"

#include "common/ranked_list.h"

#include "cuda/pair_engine.cuh"
#include "cuda/ranked_list.h"

namespace dml {
namespace {

template <bool Running, class V>
struct RankedSums {
  static constexpr int kValues = kRankedSums;
  WeightedSum<V> pos, neg;

  DML_DEVICE V& value(int k) {
    switch (k) {
      case 0:
        return pos.sum;
      case 1:
        return pos.moment;
      case 2:
        return pos.max;
      case 3:
        return neg.sum;
      case 4:
        return neg.moment;
      default:
        return neg.max;
    }
  }
  DML_DEVICE void merge(RankedSums& other) {
    merge(pos, other.pos);
    merge(neg, other.neg);
  }
  static DML_DEVICE void merge(WeightedSum<V>& s, const WeightedSum<V>& other) {
    if (Running) {
      const V top = max(s.max, other.max), own = exp(s.max - top), theirs = exp(other.max - top);
      s.sum = s.sum * own + other.sum * theirs;
      s.moment = s.moment * own + other.moment * theirs;
      s.max = top;
    } else {
      s.sum += other.sum;
      s.moment += other.moment;
    }
  }
};

// Members of the non-trivial sets: cheap tests on the squared distance first.
template <bool Running, Product P>
struct RankedListLoss {
  using T = typename ProductTypes<P>::Value;
  using Sums = RankedSums<Running, T>;
  static constexpr int kTotals = kRankedTotals, kWeightBlocks = kBlocks<P>;
  static constexpr int kRowBlocks = Running ? kBlocks<P> : kTwoBlocks<P>;
  RankedListProblem problem;
  bool normalize;
  // Gradient only.
  RankedListEnds ends;
  const T* factors;
  int64_t queries;

  static DML_DEVICE Sums empty() { return Sums{empty_sum<Running, T>(), empty_sum<Running, T>()}; }

  struct Pair {
    T squared;
    bool pos, neg;
  };
  DML_DEVICE Pair classify(const PairBlock<P>& block, T dot, int r, int c) const {
    const T both = block.norms(r, c), product = product_form(block.similarity(dot, r, c), both);
    const bool same = block.same_class(r, c);
    // What is neither near nor in the negative set is decided by its product form.
    const bool near = is_near(product, both);
    Pair pair{product, false, false};
    if (!same && !near && !in_negative_set(product, problem.neg)) return pair;
    if (block.excluded(r, c)) return pair;
    if (near) pair.squared = block.difference_form(r, c);
    const bool easy_pair = (ends.row && block.facts.rows.easy[r] == block.col0 + c) ||
                           (ends.col && block.facts.cols.easy[c] == block.row0 + r);
    pair.pos = (problem.easy ? easy_pair : same) && in_positive_set(pair.squared, problem.pos);
    pair.neg = !same && in_negative_set(pair.squared, problem.neg);
    if (problem.apart && !(pair.squared > T(0))) pair.pos = pair.neg = false;
    return pair;
  }

  // An easy positive belongs to the end that chose it.
  DML_DEVICE bool of_row(const Pair& pair, const PairBlock<P>& block, int r, int c) const {
    return !pair.pos || !problem.easy || block.facts.rows.easy[r] == block.col0 + c;
  }
  DML_DEVICE bool of_column(const Pair& pair, const PairBlock<P>& block, int r, int c) const {
    return !pair.pos || !problem.easy || block.facts.cols.easy[c] == block.row0 + r;
  }
  DML_DEVICE const RankedSet& set_of(const Pair& pair) const { return pair.pos ? problem.pos : problem.neg; }

  static DML_DEVICE void add_to(WeightedSum<T>& sum, const RankedSet& set, T d) {
    add_where<Running>(sum, true, violation(d, set), set);
  }
  // Two branches, not a chosen address: sums stay in registers.
  DML_DEVICE void add(Sums& sums, const Pair& pair, T d) const {
    if (pair.pos)
      add_to(sums.pos, problem.pos, d);
    else
      add_to(sums.neg, problem.neg, d);
  }

  DML_DEVICE bool add_to_row(const PairBlock<P>& block, T dot, int r, int c, bool mirrored, Sums& sums,
                             T* totals) const {
    const Pair pair = classify(block, dot, r, c);
    if (!pair.pos && !pair.neg) return false;
    const T d = sqrt(pair.squared);
    T ends_here = mirrored && of_column(pair, block, r, c) ? T(1) : T(0);
    if (of_row(pair, block, r, c)) {
      add(sums, pair, d);
      ends_here += T(1);
    }
    totals[0] += pair.pos ? ends_here : T(0);
    totals[1] += pair.pos ? T(0) : ends_here;
    totals[2] += pair.pos ? ends_here * d : T(0);
    totals[3] += pair.pos ? T(0) : ends_here * d;
    return true;
  }

  DML_DEVICE void add_to_column(const PairBlock<P>& block, T dot, int r, int c, Sums& sums) const {
    const Pair pair = classify(block, dot, r, c);
    if ((!pair.pos && !pair.neg) || !of_column(pair, block, r, c)) return;
    add(sums, pair, sqrt(pair.squared));
  }

  // dL/dv of one end of the pair.
  DML_DEVICE T from_end(const RankedSet& set, int64_t query, T v) const {
    const T* const at = factors + (set.sign > 0 ? 0 : 3) * queries + query;
    const RowGradient<T> gradient{at[0], at[queries], at[2 * queries]};
    const T e = Running ? T(0) : exp(v * T(set.temperature));
    return pair_gradient<Running>(gradient, v, e, set);
  }

  DML_DEVICE T weight(const PairBlock<P>& block, T dot, int r, int c) const {
    const Pair pair = classify(block, dot, r, c);
    if (!pair.pos && !pair.neg) return T(0);
    const RankedSet& set = set_of(pair);
    const T v = violation(sqrt(pair.squared), set);
    T sum = T(0);
    if (ends.row && of_row(pair, block, r, c)) sum += from_end(set, block.row0 + r, v);
    if (ends.col && of_column(pair, block, r, c)) sum += from_end(set, block.col0 + c, v);
    return T(set.sign) * sum * gradient_scale(pair.squared, block.norms(r, c), kEps<T>);
  }
};

// One thread a row: the sums of its splits, in their order.
template <class T>
DML_KERNEL(kThreads)
finish_rows_kernel(RankedListProblem problem, RankedListRows<T> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= p.count) return;
  SetSums sets[2];
  for (int64_t split = 0; split < p.splits; ++split) {
    const T* const at = p.sums + split * p.count + row;
    const int64_t step = p.splits * p.count;
    for (int set = 0; set < 2; ++set)
      sets[set].add(at[3 * set * step], at[(3 * set + 1) * step], at[(3 * set + 2) * step]);
  }
  const double epsilon = problem.epsilon * p.gallery->kept;
  const SetResult pos = sets[0].finish(epsilon), neg = sets[1].finish(epsilon);
  const RowState state = p.state[row];
  const bool bad = state == RowState::non_finite || (state == RowState::kept && p.gallery->any_non_finite != 0);
  p.loss[row] = bad ? not_a_number<T>() : static_cast<T>(problem.pos_weight * pos.loss + problem.neg_weight * neg.loss);
  p.row_stats[row] = static_cast<T>(pos.log_denom);
  p.row_stats[p.count + row] = static_cast<T>(neg.log_denom);
  p.row_stats[2 * p.count + row] = static_cast<T>(pos.loss);
  p.row_stats[3 * p.count + row] = static_cast<T>(neg.loss);
}

// One block adds the totals of all blocks.
template <class T>
DML_KERNEL(kThreads)
totals_kernel(const T* block_totals, int64_t blocks, T* totals) {
  DML_SHARED(shared);
  for (int k = 0; k < kRankedTotals; ++k) {
    double sum = 0;
    for (int64_t b = threadIdx.x; b < blocks; b += kThreads) sum += block_totals[b * kRankedTotals + k];
    sum = block_sum<kWarps>(sum, reinterpret_cast<double*>(shared));
    if (threadIdx.x == 0) totals[k] = static_cast<T>(sum);
  }
}

template <class T>
DML_KERNEL(kThreads)
factors_kernel(RankedListProblem problem, int64_t count, const T* grad, const T* row_stats, T* factors) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= count) return;
  for (int set = 0; set < 2; ++set) {
    const T log_denom = row_stats[set * count + row];
    const double scale = static_cast<double>(grad[row]) * (set == 0 ? problem.pos_weight : problem.neg_weight);
    const bool direct = problem.running || !is_finite(log_denom);
    T* const at = factors + 3 * set * count + row;
    at[0] = static_cast<T>(direct ? scale : scale * ::exp(-static_cast<double>(log_denom)));
    at[count] = row_stats[(2 + set) * count + row];
    at[2 * count] = log_denom;
  }
}

template <bool Running, Product P, class T>
void statistics(const PairSides<T>& sides, const RankedListProblem& problem, bool self, bool symmetric, int64_t splits,
                T* sums, unsigned char* active, T* block_totals, Stream stream) {
  using Loss = RankedListLoss<Running, P>;
  // In self mode a tile counts for the easy positives of either end: its mirror has the other in the backward.
  const Loss loss{problem, problem.normalize, RankedListEnds{true, self}, nullptr, 0};
  launch(statistics_kernel<P, Loss>, dim3(blocks_for(sides.a.count, kTile), static_cast<unsigned>(splits)), kThreads,
         kPairShared<P>, stream, make_problem<P>(sides), loss, RowPartials<T>{sums, sides.a.count, splits}, symmetric,
         active, block_totals);
}

template <bool Running, Product P, class T>
void weights(const PairSides<T>& sides, const RankedListProblem& problem, RankedListEnds ends, const T* factors,
             int64_t queries, const Stripe& stripe, int64_t splits, T* weight_sums, Stream stream) {
  const RankedListLoss<Running, P> loss{problem, problem.normalize, ends, factors, queries};
  launch_weights(make_problem<P>(sides), loss, stripe, splits, weight_sums, sides.a.count, stream);
}

}  // namespace

template <class T>
void ranked_list_statistics(Precision precision, const PairSides<T>& sides, const RankedListProblem& problem, bool self,
                            bool symmetric, int64_t splits, T* sums, unsigned char* active, T* block_totals,
                            Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    problem.running ? statistics<true, P>(sides, problem, self, symmetric, splits, sums, active, block_totals, stream)
                    : statistics<false, P>(sides, problem, self, symmetric, splits, sums, active, block_totals, stream);
  });
}

template <class T>
void ranked_list_finish(const RankedListProblem& problem, const RankedListRows<T>& rows, Stream stream) {
  launch(finish_rows_kernel<T>, dim3(blocks_for(rows.count, kThreads)), kThreads, 0, stream, problem, rows);
  launch(totals_kernel<T>, dim3(1), kThreads, kWarps * sizeof(double), stream, rows.block_totals, rows.blocks,
         rows.totals);
}

template <class T>
void ranked_list_factors(const RankedListProblem& problem, int64_t count, const T* grad, const T* row_stats, T* factors,
                         Stream stream) {
  launch(factors_kernel<T>, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, problem, count, grad, row_stats,
         factors);
}

template <class T>
void ranked_list_weights(Precision precision, const PairSides<T>& sides, const RankedListProblem& problem,
                         RankedListEnds ends, const T* factors, int64_t queries, const Stripe& stripe, int64_t splits,
                         T* weight_sums, Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    problem.running ? weights<true, P>(sides, problem, ends, factors, queries, stripe, splits, weight_sums, stream)
                    : weights<false, P>(sides, problem, ends, factors, queries, stripe, splits, weight_sums, stream);
  });
}

#define DML_INSTANTIATE(T)                                                                                       \
  template void ranked_list_statistics<T>(Precision, const PairSides<T>&, const RankedListProblem&, bool, bool,  \
                                          int64_t, T*, unsigned char*, T*, Stream);                              \
  template void ranked_list_finish<T>(const RankedListProblem&, const RankedListRows<T>&, Stream);               \
  template void ranked_list_factors<T>(const RankedListProblem&, int64_t, const T*, const T*, T*, Stream);       \
  template void ranked_list_weights<T>(Precision, const PairSides<T>&, const RankedListProblem&, RankedListEnds, \
                                       const T*, int64_t, const Stripe&, int64_t, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
