#include "cuda/pair_loss.cuh"

namespace dml {
namespace {

template <class Terms, Product P>
struct PairWeights : PairLoss<Terms, P> {
  using typename PairLoss<Terms, P>::T;
  using PairLoss<Terms, P>::queries;
  static constexpr int kWeightBlocks = kTwoBlocks<P>;
  bool normalize;
  PairEnds ends;
  const T* factors;

  // dL/dv of one end of the pair. `e` is e^(score - shift), and serves both ends without running maxima.
  template <class Term>
  DML_DEVICE T from_end(const SideOf<T>& side, bool positive, T v, T slope, T score, T e, int64_t query) const {
    const T x = this->template argument<Term>(v, side, positive, query);
    if (!this->template takes_part<Term>(x)) return T(0);
    const T* const at = factors + (positive ? 0 : kPairFactors * queries) + query;
    const T scale = at[0], of_value = at[queries];
    if constexpr (kIsExp<Term> || kIsMoment<Term>) {
      if (this->problem.running) e = exp(score - at[2 * queries]);
      if constexpr (kIsExp<Term>) return fma(scale * slope, e, of_value);
      return fma(fma(at[3 * queries], x - at[4 * queries], scale), e, of_value);
    } else {
      return fma(scale, Term::slope(x), of_value);
    }
  }
  // What a pair of a side gives the row: its weight.
  DML_DEVICE T from_ends(const SideOf<T>& side, bool positive, T raw, T norms, int64_t row, int64_t col) const {
    return this->with_term_of(side, [&](auto term) {
      using Term = decltype(term);
      if constexpr (kIsMoment<Term>)
        if (!beyond(raw, side.limit)) return T(0);
      const T v = this->value(raw);
      T slope = T(0), score = T(0), e = T(0);
      if constexpr (kIsExp<Term>) {
        slope = score_slope(v, side);
        score = slope * (v - side.base);
      }
      if constexpr (kIsMoment<Term>) score = side.temperature * pair_argument(v, side.base, side);
      if constexpr (kIsExp<Term> || kIsMoment<Term>)
        if (!this->problem.running) e = exp(score - side.shift);
      const T sum = (ends.row ? from_end<Term>(side, positive, v, slope, score, e, row) : T(0)) +
                    (ends.col ? from_end<Term>(side, positive, v, slope, score, e, col) : T(0));
      return gradient_of_value(sum, v, raw, norms, this->problem.value, kEps<T>);
    });
  }

  DML_DEVICE T weight(const PairBlock<P>& block, T dot, int r, int c) const {
    const bool same = block.same_class(r, c);
    const auto [counts, raw] = this->member(block, dot, r, c, same);
    if (!counts) return T(0);
    const int64_t row = block.row0 + r, col = block.col0 + c;
    const T norms = block.norms(r, c);
    return same ? from_ends(this->pos, true, raw, norms, row, col) : from_ends(this->neg, false, raw, norms, row, col);
  }
};

template <class T>
DML_KERNEL(kThreads)
factors_kernel(PairLossProblem problem, int64_t count, PairLossGradients<T> p, T* factors) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= count) return;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const PairSide& side = k == 0 ? problem.pos : problem.neg;
    const int64_t from = k * count + row;
    const double grad = p.stats[from];
    // Without a pair, a row has no share to give, even if one is kept here by a rounding; and e^(score - inf) is 0,
    // where e^score could be infinite and 0 times it NaN.
    double scale = grad * side.scale, linear = 0, log_sum = INFINITY;
    bool gives = true;
    if (side.scored()) {
      const bool moment = side.term == PairTerm::moment;
      log_sum = (moment ? p.own_log_sums : p.own_stats)[from];
      gives = log_sum != -INFINITY;
      const double share = problem.running ? 1 : ::exp((k == 0 ? problem.pos_shift : problem.neg_shift) - log_sum);
      scale = grad * share;
      if (moment) {
        const MomentGradient gradient =
            MomentGradient::make(side.temperature, problem.weight_grad, grad, p.log_sums[from]);
        scale = gradient.constant * share * side.scale;
        linear = gradient.linear * share * side.scale;
      }
    }
    T* const at = factors + k * kPairFactors * count + row;
    at[0] = gives ? static_cast<T>(scale) : T(0);
    at[count] = gives ? p.sums[from] : T(0);
    at[2 * count] = gives ? static_cast<T>(log_sum) : T(INFINITY);
    at[3 * count] = gives ? static_cast<T>(linear) : T(0);
    at[4 * count] = p.own_stats[from];
  }
}

}  // namespace

template <class T>
void pair_loss_factors(const PairLossProblem& problem, int64_t count, const PairLossGradients<T>& gradients, T* factors,
                       Stream stream) {
  launch(factors_kernel<T>, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, problem, count, gradients, factors);
}

template <class T>
void pair_loss_weights(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem, PairEnds ends,
                       const T* factors, const T* bounds, int64_t queries, const Stripe& stripe, int64_t splits,
                       T* weight_sums, Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    with_terms(problem, [&](auto terms) {
      using Terms = decltype(terms);
      const PairLoss<Terms, P> loss(problem, bounds, queries);
      launch_weights(make_problem<P>(sides), PairWeights<Terms, P>{loss, problem.normalize, ends, factors}, stripe,
                     splits, weight_sums, sides.a.count, stream);
    });
  });
}

#define DML_INSTANTIATE(T)                                                                                       \
  template void pair_loss_factors<T>(const PairLossProblem&, int64_t, const PairLossGradients<T>&, T*, Stream);  \
  template void pair_loss_weights<T>(Precision, const PairSides<T>&, const PairLossProblem&, PairEnds, const T*, \
                                     const T*, int64_t, const Stripe&, int64_t, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
