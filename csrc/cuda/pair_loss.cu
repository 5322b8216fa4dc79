#include "cuda/pair_loss.cuh"

namespace dml {
namespace {

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

#define DML_INSTANTIATE(T)                                                                                      \
  template void pair_loss_statistics<T>(Precision, const PairSides<T>&, const PairLossProblem&, const T*, bool, \
                                        int64_t, T*, unsigned char*, Stream);                                   \
  template void pair_loss_finish<T>(const PairLossProblem&, const PairLossRows<T>&, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
