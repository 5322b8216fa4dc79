#include "cuda/number.cuh"

#include "common/pair_loss.h"

#include "cuda/pair_engine.cuh"
#include "cuda/pair_loss.h"

namespace dml {
namespace {

// Term "exp", beside those of DML_PAIR_TERMS.
struct PairScore {};

template <bool Running, class V>
struct SideSums {
  static constexpr int kValues = pair_sums(Running);
  V term, total, members, slopes, max;

  static DML_DEVICE SideSums empty() { return SideSums{V(0), V(0), V(0), V(0), V(kNoScore)}; }
  DML_DEVICE V& value(int k) {
    switch (k) {
      case 0:
        return term;
      case 1:
        return total;
      case 2:
        return members;
      case 3:
        return slopes;
      default:
        return max;
    }
  }
  DML_DEVICE void merge(const SideSums& other) {
    if constexpr (Running) {
      const V top = dml::max(max, other.max);
      term = term * exp(max - top) + other.term * exp(other.max - top);
      max = top;
    } else {
      term += other.term;
    }
    total += other.total;
    members += other.members;
    slopes += other.slopes;
  }
};

template <bool Running, class V>
struct PairSums {
  using Side = SideSums<Running, V>;
  static constexpr int kValues = 2 * Side::kValues;
  Side pos, neg;

  DML_DEVICE V& value(int k) { return k < Side::kValues ? pos.value(k) : neg.value(k - Side::kValues); }
  DML_DEVICE void merge(const PairSums& other) {
    pos.merge(other.pos);
    neg.merge(other.neg);
  }
};

// A side as the kernels compute: a number of the wrong type would be converted again for every pair, or take a
// register.
template <class T>
struct SideOf {
  T scale, base, ramp, origin, shift;

  SideOf(const PairSide& side, double shift)
      : scale(static_cast<T>(side.scale)),
        base(static_cast<T>(side.base)),
        ramp(static_cast<T>(side.ramp)),
        origin(static_cast<T>(side.origin)),
        shift(static_cast<T>(shift)) {}
};

// What the statistics and the weights of a term have in common.
template <class Term, Product P>
struct PairLoss {
  using T = typename ProductTypes<P>::Value;
  static constexpr bool kScore = std::is_same_v<Term, PairScore>;
  PairLossProblem problem;
  SideOf<T> pos, neg;
  const T* bounds;
  int64_t queries;

  PairLoss(const PairLossProblem& problem, const T* bounds, int64_t queries)
      : problem(problem),
        pos(problem.pos, problem.pos_shift),
        neg(problem.neg, problem.neg_shift),
        bounds(bounds),
        queries(queries) {}

  // A row that does not count has the norm NaN.
  DML_DEVICE bool is_member(const PairBlock<P>& block, int r, int c, bool same) const {
    return (same ? problem.has_pos : problem.has_neg) && is_finite(block.norms(r, c)) && !block.excluded(r, c);
  }
  struct Value {
    T v, squared;
  };
  DML_DEVICE Value value(const PairBlock<P>& block, T dot, int r, int c) const {
    if (problem.value == PairValue::similarity) return Value{block.similarity(dot, r, c), T(0)};
    const T squared = block.squared(dot, r, c);
    return Value{problem.value == PairValue::distance ? sqrt(squared) : squared, squared};
  }
  // x of a pair at the end of a query.
  DML_DEVICE T argument(T v, const SideOf<T>& side, bool positive, int64_t query) const {
    const T base = bounds == nullptr ? side.base : bounds[(positive ? 0 : queries) + query];
    return pair_argument(v, base, side);
  }
  DML_DEVICE bool takes_part(T x) const {
    if constexpr (kScore)
      return bounds == nullptr || x > T(0);
    else
      return Term::active(x);
  }
};

template <class Term, bool Running, Product P>
struct PairStatistics : PairLoss<Term, P> {
  using typename PairLoss<Term, P>::T;
  using PairLoss<Term, P>::problem;
  using Sums = PairSums<Running, T>;
  static constexpr int kTotals = 0;
  static constexpr int kRowBlocks = Running || P == Product::tf32 ? kBlocks<P> : kTwoBlocks<P>;

  static DML_DEVICE Sums empty() { return Sums{Sums::Side::empty(), Sums::Side::empty()}; }

  // Sorted: the classes of a tile are a range.
  DML_DEVICE bool meets(const PairProblem<P>& p, int64_t row_tile, int64_t col_tile) const {
    if (!problem.sorted) return true;
    const auto first = [](const RowFacts<T>& facts, int64_t tile) { return facts.labels[tile * kTile]; };
    const auto last = [](const RowFacts<T>& facts, int64_t tile, int64_t count) {
      return facts.labels[((tile + 1) * kTile < count ? (tile + 1) * kTile : count) - 1];
    };
    return first(p.a_facts, row_tile) <= last(p.b_facts, col_tile, p.b.count) &&
           first(p.b_facts, col_tile) <= last(p.a_facts, row_tile, p.a.count);
  }

  // Adds a pair to a side of a row. Does the pair take part, at this end or, if asked, at the other?
  DML_DEVICE bool add(typename Sums::Side& sums, const SideOf<T>& side, bool positive, T v, int64_t query,
                      int64_t other, bool ask_other) const {
    const T x = this->argument(v, side, positive, query);
    sums.members += T(1);
    if (!this->takes_part(x)) return ask_other && this->takes_part(this->argument(v, side, positive, other));
    sums.total += v;
    if constexpr (PairLoss<Term, P>::kScore) {
      PairLogSum<T> log_sum{sums.term, Running ? sums.max : side.shift};
      add_score<Running>(log_sum, true, score_slope(v, side) * (v - side.base));
      sums.term = log_sum.sum;
      if constexpr (Running) sums.max = log_sum.max;
      sums.slopes += T(1);
    } else {
      sums.term += Term::term(x);
      sums.slopes += Term::slope(x);
    }
    return true;
  }
  // Two branches, not a chosen address: sums stay in registers.
  DML_DEVICE bool add(const PairBlock<P>& block, T dot, int r, int c, Sums& sums, int64_t query, int64_t other,
                      bool ask_other) const {
    const bool same = block.same_class(r, c);
    if (!this->is_member(block, r, c, same)) return false;
    const T v = this->value(block, dot, r, c).v;
    return same ? add(sums.pos, this->pos, true, v, query, other, ask_other)
                : add(sums.neg, this->neg, false, v, query, other, ask_other);
  }

  // In self mode a tile counts for either end of its pairs: the backward adds both to the row.
  DML_DEVICE bool add_to_row(const PairBlock<P>& block, T dot, int r, int c, bool, Sums& sums, T*) const {
    return add(block, dot, r, c, sums, block.row0 + r, block.col0 + c, problem.self && this->bounds != nullptr);
  }
  DML_DEVICE void add_to_column(const PairBlock<P>& block, T dot, int r, int c, Sums& sums) const {
    add(block, dot, r, c, sums, block.col0 + c, 0, false);
  }
};

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

// One thread a row: the sums of its splits, in their order.
template <class T>
DML_KERNEL(kThreads)
finish_kernel(PairLossProblem problem, PairLossRows<T> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= p.count) return;
  const RowState state = p.state[row];
  const bool bad = state == RowState::non_finite || (state == RowState::kept && *p.gallery_non_finite != 0);
  const int64_t step = p.splits * p.count, to = p.order == nullptr ? row : p.order[row];
  for (int side = 0; side < 2; ++side) {
    PairLogSumExp log_sum;
    double sums[4] = {};
    for (int64_t split = 0; split < p.splits; ++split) {
      const T* const at = p.sums + side * pair_sums(problem.running) * step + split * p.count + row;
      for (int k = 0; k < 4; ++k) sums[k] += at[k * step];
      const double shift = side == 0 ? problem.pos_shift : problem.neg_shift;
      log_sum.add(at[0], problem.running ? static_cast<double>(at[4 * step]) : shift);
    }
    const int64_t at = side * p.count + to;
    const double stat = problem.term == PairTerm::exp ? log_sum.finish() : sums[0];
    p.stats[at] = bad ? not_a_number<T>() : static_cast<T>(stat);
    p.totals[at] = bad ? not_a_number<T>() : static_cast<T>(sums[1]);
    p.members[at] = bad ? T(0) : static_cast<T>(sums[2]);
    p.slopes[at] = bad ? T(0) : static_cast<T>(sums[3]);
  }
}

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
    at[2 * count] = log_sum == -INFINITY ? T(0) : stats[from];
  }
}

// Calls back with the term.
template <class Call>
void with_term(PairTerm term, const Call& call) {
  switch (term) {
    case PairTerm::exp:
      return call(PairScore());
#define DML_CASE(name, type) \
  case PairTerm::name:       \
    return call(type());
      DML_PAIR_TERMS(DML_CASE)
#undef DML_CASE
  }
}

}  // namespace

template <class T>
void pair_loss_statistics(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem,
                          const T* bounds, bool symmetric, int64_t splits, T* sums, unsigned char* active,
                          Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    const auto run = [&](auto loss) {
      launch(statistics_kernel<P, decltype(loss)>,
             dim3(blocks_for(sides.a.count, kTile), static_cast<unsigned>(splits)), kThreads, kPairShared<P>, stream,
             make_problem<P>(sides), loss, RowPartials<T>{sums, sides.a.count, splits}, symmetric, active, nullptr);
    };
    with_term(problem.term, [&](auto term) {
      using Term = decltype(term);
      const PairLoss<Term, P> loss(problem, bounds, sides.a.count);
      if constexpr (std::is_same_v<Term, PairScore>)
        if (problem.running) return run(PairStatistics<Term, true, P>{loss});
      run(PairStatistics<Term, false, P>{loss});
    });
  });
}

template <class T>
void pair_loss_finish(const PairLossProblem& problem, const PairLossRows<T>& rows, Stream stream) {
  launch(finish_kernel<T>, dim3(blocks_for(rows.count, kThreads)), kThreads, 0, stream, problem, rows);
}

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
  template void pair_loss_statistics<T>(Precision, const PairSides<T>&, const PairLossProblem&, const T*, bool,  \
                                        int64_t, T*, unsigned char*, Stream);                                    \
  template void pair_loss_finish<T>(const PairLossProblem&, const PairLossRows<T>&, Stream);                     \
  template void pair_loss_factors<T>(const PairLossProblem&, int64_t, const T*, const T*, const T*, T*, Stream); \
  template void pair_loss_weights<T>(Precision, const PairSides<T>&, const PairLossProblem&, PairEnds, const T*, \
                                     const T*, int64_t, const Stripe&, int64_t, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
