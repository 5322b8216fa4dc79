#include "cuda/pair_loss.cuh"

namespace dml {
namespace {

template <class Term, Product P>
struct PairWeights : PairLoss<Term, P> {
  using typename PairLoss<Term, P>::T;
  using PairLoss<Term, P>::problem;
  using PairLoss<Term, P>::queries;
  using PairLoss<Term, P>::kScore;
  static constexpr int kWeightBlocks = kTwoBlocks<P>;
  bool normalize;
  PairEnds ends;
  const T* factors;

  // dL/dv of one end of the pair. Scores: `e` is e^(score - shift), and serves both ends without running maxima.
  DML_DEVICE T from_end(const SideOf<T>& side, bool positive, T v, T slope, T e, int64_t query) const {
    const T x = this->argument(v, side, positive, query);
    if (!this->takes_part(x)) return T(0);
    const T* const at = factors + (positive ? 0 : kPairFactors * queries) + query;
    const T scale = at[0], of_value = at[queries];
    if constexpr (kScore) {
      if (problem.running) e = exp(slope * (v - side.base) - at[2 * queries]);
      return fma(scale * slope, e, of_value);
    } else {
      return fma(scale, Term::slope(x), of_value);
    }
  }
  DML_DEVICE T from_ends(const SideOf<T>& side, bool positive, T v, int64_t row, int64_t col) const {
    T slope = T(0), e = T(0);
    if constexpr (kScore) {
      slope = score_slope(v, side);
      if (!problem.running) e = exp(slope * (v - side.base) - side.shift);
    }
    return (ends.row ? from_end(side, positive, v, slope, e, row) : T(0)) +
           (ends.col ? from_end(side, positive, v, slope, e, col) : T(0));
  }

  DML_DEVICE T weight(const PairBlock<P>& block, T dot, int r, int c) const {
    const bool same = block.same_class(r, c);
    if (!this->is_member(block, r, c, same)) return T(0);
    const auto [v, squared] = this->value(block, dot, r, c);
    const int64_t row = block.row0 + r, col = block.col0 + c;
    const T sum = same ? from_ends(this->pos, true, v, row, col) : from_ends(this->neg, false, v, row, col);
    return gradient_of_value(sum, squared, block.norms(r, c), problem.value, kEps<T>);
  }
};

template <class T>
DML_KERNEL(kThreads)
factors_kernel(PairLossProblem problem, int64_t count, const T* grad_stats, const T* grad_sums, const T* stats,
               T* factors) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= count) return;
  for (int side = 0; side < 2; ++side) {
    const int64_t from = side * count + row;
    T* const at = factors + side * kPairFactors * count + row;
    const double grad = grad_stats[from], log_sum = stats[from];
    if (problem.term != PairTerm::exp) {
      at[0] = static_cast<T>(grad * (side == 0 ? problem.pos : problem.neg).scale);
    } else {
      // Without a pair, the row has no share to give, even if a mined one is kept here by a rounding.
      const double share = problem.running ? 1 : ::exp((side == 0 ? problem.pos_shift : problem.neg_shift) - log_sum);
      at[0] = log_sum == -INFINITY ? T(0) : static_cast<T>(grad * share);
    }
    at[count] = log_sum == -INFINITY ? T(0) : grad_sums[from];
    // e^(score - inf) is 0, where e^score could be infinite and 0 times it NaN.
    at[2 * count] = log_sum == -INFINITY ? T(INFINITY) : stats[from];
  }
}

}  // namespace

template <class T>
void pair_loss_factors(const PairLossProblem& problem, int64_t count, const T* grad_stats, const T* grad_sums,
                       const T* stats, T* factors, Stream stream) {
  launch(factors_kernel<T>, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, problem, count, grad_stats,
         grad_sums, stats, factors);
}

template <class T>
void pair_loss_weights(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem, PairEnds ends,
                       const T* factors, const T* bounds, int64_t queries, const Stripe& stripe, int64_t splits,
                       T* weight_sums, Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    with_term(problem.term, [&](auto term) {
      using Term = decltype(term);
      const PairLoss<Term, P> loss(problem, bounds, queries);
      launch_weights(make_problem<P>(sides), PairWeights<Term, P>{loss, problem.normalize, ends, factors}, stripe,
                     splits, weight_sums, sides.a.count, stream);
    });
  });
}

#define DML_INSTANTIATE(T)                                                                                       \
  template void pair_loss_factors<T>(const PairLossProblem&, int64_t, const T*, const T*, const T*, T*, Stream); \
  template void pair_loss_weights<T>(Precision, const PairSides<T>&, const PairLossProblem&, PairEnds, const T*, \
                                     const T*, int64_t, const Stripe&, int64_t, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
