#include "cuda/plain_tile.cuh"
#include "cuda/tile_slots.cuh"

namespace dml {
namespace {

// The ends of one side of a pair as rows or columns of the tile. Factors are (kPairFactors, padded queries); null: this
// end sends no gradient.
template <class T>
struct Ends {
  const T* factors;
  const T* bounds;
  int64_t padded, queries;

  DML_DEVICE T of_term(int64_t i) const { return factors == nullptr ? T(0) : factors[i]; }
  DML_DEVICE T of_value(int64_t i) const { return factors == nullptr ? T(0) : factors[padded + i]; }
  template <class Term>
  DML_DEVICE PairEnd<T> end(const SideOf<T>& side, int64_t i) const {
    const T bound = Summand<Term>::bound(side);
    if (factors == nullptr) return PairEnd<T>{bound, T(INFINITY), T(0), T(0), T(0), T(0)};
    const T* const at = factors + i;
    return PairEnd<T>{bounds != nullptr && i < queries ? bounds[i] : bound,
                      at[2 * padded],
                      at[0],
                      at[padded],
                      at[3 * padded],
                      at[4 * padded]};
  }
};

template <class Term, Product P>
struct PairWeights : PairLoss<typename ProductTypes<P>::Value> {
  using T = typename ProductTypes<P>::Value;
  using Base = PairLoss<T>;
  bool normalize;
  bool alike;  // both ends of a pair have the same bound and shift, and no gradient of the weights
  PairEnds ends;
  const T* factors;  // (2, kPairFactors, padded)
  int64_t padded;

  DML_DEVICE unsigned char contents(const PairProblem<P>& p, int row_tile, int col_tile) const {
    return tile_contents(p, row_tile, col_tile);
  }
  DML_DEVICE void weigh(PairBlock<P>& block, int col_tile, unsigned char known) const {
    bool plain = (known & kPlain) != 0 && !this->values.apart && this->neg.present;
    PairValues<P>{block, this->values}.template compute<true>(col_tile, plain, (known & kUnit) != 0, false,
                                                              (known & kNearPairs) != 0);
    if constexpr (kUnrolled<Term, P>) {
      if (plain && alike && this->is_short()) return pull_in_registers(block);
    }
    const TileSlots<P> slots{block.shared};
    if (kPlainInRegisters<P> && plain) slots.put_tile(block.tile, 0);
#pragma unroll
    for (int first = 0; first < kColSlots; first += TileSlots<P>::kColumns) {
      if (TileSlots<P>::kColumns < kColSlots) slots.put_tile(block.tile, first);
      if ((known & kPositives) == 0) {
        alike ? pull<true, true>(block, false, first) : pull<true, false>(block, false, first);
      } else {
#pragma unroll 1
        for (int positive = 0; positive < 2; ++positive)
          alike ? pull<false, true>(block, positive != 0, first) : pull<false, false>(block, positive != 0, first);
      }
      slots.get_tile(block.tile, first);
    }
  }

 private:
  DML_DEVICE Ends<T> ends_of(bool positive, bool there) const {
    return Ends<T>{there ? factors + (positive ? 0 : kPairFactors * padded) : nullptr,
                   this->bounds == nullptr ? nullptr : this->bounds + (positive ? 0 : this->queries), padded,
                   this->queries};
  }

  DML_DEVICE void pull_in_registers(PairBlock<P>& block) const {
    const SideOf<T>& side = this->neg;
    const Ends<T> rows = ends_of(false, ends.row), cols = ends_of(false, ends.col);
    // A side that is not there never comes here; without the choice registers spill on sm_120.
    const T slope = !side.present                              ? T(0)
                    : this->values.value == PairValue::squared ? T(2) * Summand<Term>::constant_slope(side)
                                                               : Summand<Term>::constant_slope(side);
    T of_row[kRowSlots], of_col[kColSlots];
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) of_row[r] = slope * rows.of_term(block.row0 + PairTile<P>::row(r));
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) of_col[c] = slope * cols.of_term(block.col0 + PairTile<P>::col(c));
    const PlainTile<P, Term> tile{block, side};
    if (this->values.value == PairValue::distance)
      tile.template pull<true>(of_row, of_col);
    else
      tile.template pull<false>(of_row, of_col);
  }

  // Turns the values of the side's pairs in the slots into weights. Whole: no pair of the tile is of the other side.
  template <bool Whole, bool Alike>
  DML_DEVICE void pull(const PairBlock<P>& block, bool positive, int first) const {
    const TileSlots<P> slots{block.shared};
    const SideOf<T> side = this->side(positive);
    const Ends<T> rows = ends_of(positive, ends.row), cols = ends_of(positive, ends.col);
    [[maybe_unused]] int64_t label[kRowSlots];
    [[maybe_unused]] T of_term[kRowSlots], of_value[kRowSlots];
    [[maybe_unused]] PairEnd<T> row_end[kRowSlots];
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      const int64_t row = block.row0 + PairTile<P>::row(r);
      if constexpr (!Whole) label[r] = block.facts.rows.label[PairTile<P>::row(r)];
      if constexpr (Alike)
        of_term[r] = rows.of_term(row), of_value[r] = rows.of_value(row);
      else
        row_end[r] = rows.template end<Term>(side, row);
    }
    // A distance whose square is no normal number pulls nowhere: its reciprocal would not be finite.
    const T above = !side.present ? T(INFINITY) : this->values.value == PairValue::distance ? T(0) : T(-INFINITY);
#pragma unroll 1
    for (int c = 0; c < TileSlots<P>::kColumns; ++c) {
      const int64_t col = block.col0 + PairTile<P>::col(first + c);
      const int64_t of_column = Whole ? 0 : block.facts.cols.label[PairTile<P>::col(first + c)];
      PairEnd<T> col_end{Summand<Term>::bound(side), side.shift, cols.of_term(col), cols.of_value(col), T(0), T(0)};
      if constexpr (!Alike) col_end = cols.template end<Term>(side, col);
      T x[kRowSlots];
      slots.get(c, x);
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        if (!Whole && (label[r] == of_column) != positive) continue;
        const T v = this->values.value != PairValue::distance ? x[r] : Alike ? root_of(x[r]) : sharp_root_of(x[r]);
        T slope;
        bool active;
        if constexpr (Alike) {
          PairEnd<T> both = col_end;
          both.of_term += of_term[r], both.of_value += of_value[r];
          active = Summand<Term>::template pull<true>(side, v, both, slope);
        } else {
          T of_row, of_col;
          const bool row_active = Summand<Term>::template pull<false>(side, v, row_end[r], of_row);
          const bool col_active = Summand<Term>::template pull<false>(side, v, col_end, of_col);
          slope = (row_active ? of_row : T(0)) + (col_active ? of_col : T(0));
          active = row_active || col_active;
        }
        const T weight = this->values.value == PairValue::distance  ? slope * reciprocal_of(v)
                         : this->values.value == PairValue::squared ? T(2) * slope
                                                                    : slope;
        x[r] = active && v > above ? weight : T(0);
      }
      slots.put(c, x);
    }
  }
};

template <class T>
DML_KERNEL(kThreads)
factors_kernel(PairLossProblem problem, int64_t count, int64_t padded, PairLossGradients<T> p, T* factors) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= count) return;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const PairSide& side = k == 0 ? problem.pos : problem.neg;
    const int64_t from = k * count + row;
    const double grad = p.stats[from];
    // Without a pair, a row has no share to give, even if one is kept here by a rounding; and e^(score - inf) is 0,
    // where e^score could be infinite and 0 times it NaN.
    double scale = grad * side.scale, linear = 0, log_sum = 0;
    bool gives = true;
    if (side.scored()) {
      const bool moment = side.term == PairTerm::moment;
      log_sum = (moment ? p.own_log_sums : p.own_stats)[from];
      gives = log_sum != -INFINITY;
      const double share = problem.running ? 1 : ::exp((k == 0 ? problem.pos_shift : problem.neg_shift) - log_sum);
      scale = grad * share * (problem.running ? 1 : kLn2);  // scores to the base 2 have a slope of log2 e more
      if (moment) {
        const MomentGradient gradient =
            MomentGradient::make(side.temperature, problem.weight_grad, grad, p.log_sums[from]);
        scale = gradient.constant * share * side.scale;
        linear = gradient.linear * share * side.scale;
      }
      if (!problem.running) log_sum = (k == 0 ? problem.pos_shift : problem.neg_shift) * kLog2E;
    }
    T* const at = factors + k * kPairFactors * padded + row;
    at[0] = gives ? static_cast<T>(scale) : T(0);
    at[padded] = gives ? p.sums[from] : T(0);
    at[2 * padded] = gives ? static_cast<T>(log_sum) : T(INFINITY);
    at[3 * padded] = gives ? static_cast<T>(linear) : T(0);
    at[4 * padded] = p.own_stats[from];
  }
}

}  // namespace

template <class T>
void pair_loss_factors(const PairLossProblem& problem, int64_t count, int64_t padded,
                       const PairLossGradients<T>& gradients, T* factors, Stream stream) {
  launch(factors_kernel<T>, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, problem, count, padded, gradients,
         factors);
}

template <class T>
void pair_loss_weights(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem, PairEnds ends,
                       const T* factors, int64_t padded, const T* bounds, int64_t queries, const Stripe& stripe,
                       int64_t splits, T* weight_sums, Stream stream) {
  PairLoss<T> loss(problem, problem.running, bounds, queries);
  loss.values.separating = problem.value == PairValue::distance;
  const bool alike = !problem.running && !problem.weight_grad && bounds == nullptr;
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    with_term(problem.term(), [&](auto term) {
      launch_weights(make_problem<P>(sides),
                     PairWeights<decltype(term), P>{{loss}, problem.normalize, alike, ends, factors, padded}, stripe,
                     splits, weight_sums, sides.a.count, stream);
    });
  });
}

#define DML_INSTANTIATE(T)                                                                                       \
  template void pair_loss_factors<T>(const PairLossProblem&, int64_t, int64_t, const PairLossGradients<T>&, T*,  \
                                     Stream);                                                                    \
  template void pair_loss_weights<T>(Precision, const PairSides<T>&, const PairLossProblem&, PairEnds, const T*, \
                                     int64_t, const T*, int64_t, const Stripe&, int64_t, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
