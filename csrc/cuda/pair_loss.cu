#include "cuda/pair_loss.cuh"

namespace dml {
namespace {

// Of one side of a row. moment and max count where the kernel has them.
template <bool HasMoment, bool Running, class V>
struct SideSums {
  static constexpr int kValues = pair_sums(HasMoment, Running);
  V term, total, members, slopes, moment, max;

  static DML_DEVICE SideSums empty() { return SideSums{V(0), V(0), V(0), V(0), V(0), V(kNoScore)}; }
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
      case 4:
        return HasMoment ? moment : max;
      default:
        return max;
    }
  }
  DML_DEVICE void merge(const SideSums& other) {
    total += other.total;
    members += other.members;
    slopes += other.slopes;
    if constexpr (Running) {
      const V top = dml::max(max, other.max), own = exp(max - top), theirs = exp(other.max - top);
      term = term * own + other.term * theirs;
      if constexpr (HasMoment) moment = moment * own + other.moment * theirs;
      max = top;
    } else {
      term += other.term;
      if constexpr (HasMoment) moment += other.moment;
    }
  }
};

template <bool HasMoment, bool Running, class V>
struct PairSums {
  using Side = SideSums<HasMoment, Running, V>;
  static constexpr int kValues = 2 * Side::kValues;
  Side pos, neg;

  DML_DEVICE V& value(int k) { return k < Side::kValues ? pos.value(k) : neg.value(k - Side::kValues); }
  DML_DEVICE void merge(const PairSums& other) {
    pos.merge(other.pos);
    neg.merge(other.neg);
  }
};

template <class Terms, bool Running, Product P>
struct PairStatistics : PairLoss<Terms, P> {
  using typename PairLoss<Terms, P>::T;
  using PairLoss<Terms, P>::problem;
  using Sums = PairSums<kIsMoment<Terms> || kIsMixed<Terms>, Running, T>;
  using Side = typename Sums::Side;
  // At two blocks, moments and softplus spill 16 bytes on sm_80, log-sum-exps 8 on sm_90; left to the compiler, more.
  static constexpr int kRowBlocks = 1;

  static DML_DEVICE Sums empty() { return Sums{Side::empty(), Side::empty()}; }

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

  // The term of a pair that takes part.
  template <class Term>
  DML_DEVICE void add_term(Side& sums, const SideOf<T>& side, T v, T x) const {
    if constexpr (kIsMoment<Term>) {
      PairMoment<T> moment{sums.term, sums.moment, Running ? sums.max : side.shift};
      add_moment<Running>(moment, true, x, side.temperature * x);
      sums.term = moment.sum;
      sums.moment = moment.moment;
      if constexpr (Running) sums.max = moment.max;
      sums.slopes += T(1);
    } else if constexpr (kIsExp<Term>) {
      PairLogSum<T> log_sum{sums.term, Running ? sums.max : side.shift};
      add_score<Running>(log_sum, true, score_slope(v, side) * (v - side.base));
      sums.term = log_sum.sum;
      if constexpr (Running) sums.max = log_sum.max;
      sums.slopes += T(1);
    } else {
      sums.term += Term::term(x);
      sums.slopes += Term::slope(x);
    }
  }
  // Adds a pair to a side of a row. Does the pair take part, at this end or, if asked, at the other?
  DML_DEVICE bool add(Side& sums, const SideOf<T>& side, bool positive, T raw, int64_t query, int64_t other,
                      bool ask_other) const {
    sums.members += T(1);
    return this->with_term_of(side, [&](auto term) {
      using Term = decltype(term);
      if constexpr (kIsMoment<Term>)
        if (!beyond(raw, side.limit)) return false;
      const T v = this->value(raw), x = this->template argument<Term>(v, side, positive, query);
      if (!this->template takes_part<Term>(x))
        return ask_other && this->template takes_part<Term>(this->template argument<Term>(v, side, positive, other));
      sums.total += v;
      add_term<Term>(sums, side, v, x);
      return true;
    });
  }
  // Two branches, not a chosen address: sums stay in registers.
  DML_DEVICE bool add(const PairBlock<P>& block, T dot, int r, int c, Sums& sums, int64_t query, int64_t other,
                      bool ask_other) const {
    const bool same = block.same_class(r, c);
    const auto [counts, raw] = this->member(block, dot, r, c, same);
    if (!counts) return false;
    return same ? add(sums.pos, this->pos, true, raw, query, other, ask_other)
                : add(sums.neg, this->neg, false, raw, query, other, ask_other);
  }

  // In self mode a tile counts for either end of its pairs: the backward adds both to the row.
  DML_DEVICE bool add_to_row(const PairBlock<P>& block, T dot, int r, int c, Sums& sums) const {
    return add(block, dot, r, c, sums, block.row0 + r, block.col0 + c, problem.self && this->bounds != nullptr);
  }
  DML_DEVICE void add_to_column(const PairBlock<P>& block, T dot, int r, int c, Sums& sums) const {
    add(block, dot, r, c, sums, block.col0 + c, 0, false);
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
  const bool has_moment = problem.has_moment();
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const PairSide& side = k == 0 ? problem.pos : problem.neg;
    const double shift = k == 0 ? problem.pos_shift : problem.neg_shift;
    const T* const first = p.sums + k * pair_sums(problem) * step + row;
    LogSumExp scores;
    double sums[4] = {};
    for (int64_t split = 0; split < p.splits; ++split) {
      const T* const at = first + split * p.count;
      for (int value = 0; value < 4; ++value) sums[value] += at[value * step];
      scores.add(at[0], problem.running ? static_cast<double>(at[(4 + has_moment) * step]) : shift,
                 has_moment ? static_cast<double>(at[4 * step]) : 0);
    }
    const bool moment = side.term == PairTerm::moment;
    const double stat = moment ? scores.mean() : side.term == PairTerm::exp ? scores.log_sum() : sums[0];
    const int64_t at = k * p.count + to;
    p.stats[at] = bad ? not_a_number<T>() : static_cast<T>(stat);
    p.log_sums[at] = bad ? not_a_number<T>() : static_cast<T>(moment ? scores.log_sum() : -INFINITY);
    p.totals[at] = bad ? not_a_number<T>() : static_cast<T>(sums[1]);
    p.members[at] = bad ? T(0) : static_cast<T>(sums[2]);
    p.slopes[at] = bad ? T(0) : static_cast<T>(sums[3]);
  }
}

}  // namespace

template <class T>
void pair_loss_statistics(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem,
                          const T* bounds, bool symmetric, int64_t splits, T* sums, unsigned char* active,
                          Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    with_terms(problem, [&](auto terms) {
      using Terms = decltype(terms);
      const PairLoss<Terms, P> loss(problem, bounds, sides.a.count);
      const auto run = [&](const auto& statistics) {
        launch_statistics(make_problem<P>(sides), statistics, RowPartials<T>{sums, sides.a.count, splits}, symmetric,
                          active, stream);
      };
      if constexpr (kIsMixed<Terms>) {
        run(PairStatistics<Terms, true, P>{loss});
      } else {
        if constexpr (kIsExp<Terms> || kIsMoment<Terms>)
          if (problem.running) return run(PairStatistics<Terms, true, P>{loss});
        run(PairStatistics<Terms, false, P>{loss});
      }
    });
  });
}

template <class T>
void pair_loss_finish(const PairLossProblem& problem, const PairLossRows<T>& rows, Stream stream) {
  launch(finish_kernel<T>, dim3(blocks_for(rows.count, kThreads)), kThreads, 0, stream, problem, rows);
}

#define DML_INSTANTIATE(T)                                                                                      \
  template void pair_loss_statistics<T>(Precision, const PairSides<T>&, const PairLossProblem&, const T*, bool, \
                                        int64_t, T*, unsigned char*, Stream);                                   \
  template void pair_loss_finish<T>(const PairLossProblem&, const PairLossRows<T>&, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
