#pragma once
// What the statistics and the weights of a pair loss have in common: who is a pair, its value, and its x.

#include "cuda/number.cuh"

#include "common/pair_loss.h"

#include "cuda/pair_engine.cuh"
#include "cuda/pair_loss.h"

namespace dml {

// Terms beside those of DML_PAIR_TERMS. Both sides of a kernel have the same one; sides of two different terms are
// rare, and all of them share the kernels of MixedTerms, where every pair asks its side.
struct ExpTerm {};
struct MomentTerm {};
struct MixedTerms {};

template <class Term>
constexpr bool kIsExp = std::is_same_v<Term, ExpTerm>;
template <class Term>
constexpr bool kIsMoment = std::is_same_v<Term, MomentTerm>;
template <class Term>
constexpr bool kIsMixed = std::is_same_v<Term, MixedTerms>;

// Calls back with the struct of a term, on the host and in kernels.
#pragma nv_exec_check_disable
template <class Call>
DML_HD inline auto with_term(PairTerm term, const Call& call) {
  switch (term) {
#define DML_CASE(name, type) \
  case PairTerm::name:       \
    return call(type());
    DML_PAIR_TERMS(DML_CASE)
#undef DML_CASE
    case PairTerm::exp:
      return call(ExpTerm());
    default:
      return call(MomentTerm());
  }
}

// A side as the kernels compute: a number of the wrong type would be converted again for every pair, or take a
// register.
template <class T>
struct SideOf {
  struct Limit {
    T sign, limit;
  };
  PairTerm term;
  T scale, base, ramp, origin, temperature, shift;
  Limit limit;

  SideOf(const PairSide& side, double shift, PairValue value)
      : term(side.term),
        scale(static_cast<T>(side.scale)),
        base(static_cast<T>(side.base)),
        ramp(static_cast<T>(side.ramp)),
        origin(static_cast<T>(side.origin)),
        temperature(static_cast<T>(side.temperature)),
        shift(static_cast<T>(shift)) {
    const MomentLimit of_moment = MomentLimit::make(side.scale, side.base, value == PairValue::distance);
    limit = Limit{static_cast<T>(of_moment.sign), static_cast<T>(of_moment.limit)};
  }
};

template <class Terms, Product P>
struct PairLoss {
  using T = typename ProductTypes<P>::Value;
  PairLossProblem problem;
  SideOf<T> pos, neg;
  const T* bounds;
  int64_t queries;

  PairLoss(const PairLossProblem& problem, const T* bounds, int64_t queries)
      : problem(problem),
        pos(problem.pos, problem.pos_shift, problem.value),
        neg(problem.neg, problem.neg_shift, problem.value),
        bounds(bounds),
        queries(queries) {}

  // Calls back with the term of a side.
  template <class Call>
  DML_DEVICE static auto with_term_of(const SideOf<T>& side, const Call& call) {
    if constexpr (kIsMixed<Terms>)
      return with_term(side.term, call);
    else
      return call(Terms());
  }

  // Is it a pair of a side that counts? A row that does not count has the norm NaN.
  struct Member {
    bool counts;
    T raw;  // its similarity or squared distance
  };
  DML_DEVICE Member member(const PairBlock<P>& block, T dot, int r, int c, bool same) const {
    if (!(same ? problem.pos : problem.neg).present() || !is_finite(block.norms(r, c)) || block.excluded(r, c))
      return Member{false, T(0)};
    const bool of_similarity = problem.value == PairValue::similarity;
    const T similarity = block.similarity(dot, r, c);
    if (of_similarity && !problem.apart) return Member{true, similarity};
    const T squared = block.squared(dot, r, c);
    return Member{!problem.apart || squared > T(0), of_similarity ? similarity : squared};
  }
  DML_DEVICE T value(T raw) const { return problem.value == PairValue::distance ? sqrt(raw) : raw; }
  // x of a pair at the end of a query. A moment has no bounds.
  template <class Term>
  DML_DEVICE T argument(T v, const SideOf<T>& side, bool positive, int64_t query) const {
    const bool bounded = !kIsMoment<Term> && bounds != nullptr;
    return pair_argument(v, bounded ? bounds[(positive ? 0 : queries) + query] : side.base, side);
  }
  // Does a pair take part, by its x? A moment has tested it before.
  template <class Term>
  DML_DEVICE bool takes_part(T x) const {
    if constexpr (kIsMoment<Term>)
      return true;
    else if constexpr (kIsExp<Term>)
      return bounds == nullptr || x > T(0);
    else
      return Term::active(x);
  }
};

// Calls back with the terms of a kernel.
template <class Call>
void with_terms(const PairLossProblem& problem, const Call& call) {
  if (problem.mixed()) return call(MixedTerms());
  with_term(problem.term(), call);
}

}  // namespace dml
