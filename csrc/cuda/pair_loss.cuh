#pragma once
// What the statistics and the weights of a pair loss have in common: who is a pair, its value, and its x.

#include "cuda/number.cuh"

#include "common/pair_loss.h"

#include "cuda/pair_engine.cuh"
#include "cuda/pair_loss.h"

namespace dml {

// Term "exp", beside those of DML_PAIR_TERMS.
struct PairScore {};

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

}  // namespace dml
