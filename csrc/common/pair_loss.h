#pragma once
// Row statistics of a pair loss: of each side of a row, the log-sum-exp of a score or the sum of a term h(x), with
// x = scale (v - base) of the value v of a pair. Every loss of the family is a function of these; a new term is a
// header like pair_hinge.h and a line in DML_PAIR_TERMS.

#include "common/pair_hinge.h"
#include "common/pair_softplus.h"
#include "common/pairwise.h"

// Terms that are added up: name in the schema, struct.
#define DML_PAIR_TERMS(TERM) \
  TERM(hinge, PairHinge)     \
  TERM(softplus, PairSoftplus)

namespace dml {

enum class PairValue { similarity, distance, squared };

#define DML_NAME(name, type) name,
enum class PairTerm { DML_PAIR_TERMS(DML_NAME) exp };
#undef DML_NAME

struct PairSide {
  double scale, base, ramp, origin;
};

inline namespace DML_ISA {

// dL/d(dot product) or dL/d(squared distance) / (1/2) of a pair: what multiplies the other row, or f_i - g_j.
template <class V>
DML_INLINE V gradient_of_value(V grad, V squared, V norms, PairValue value, double eps) {
  switch (value) {
    case PairValue::similarity:
      return grad;
    case PairValue::distance:
      return grad * gradient_scale(squared, norms, eps);
    default:
      return V(2) * grad;
  }
}

// A side has the names of PairSide, and its numbers may be of another type.
template <class V, class Side>
DML_INLINE V pair_argument(V v, V base, const Side& side) {
  return V(side.scale) * (v - base);
}

// Term "exp": dscore/dv, the score is this times v - base. The ramp is a constant of the gradient.
template <class V, class Side>
DML_INLINE V score_slope(V v, const Side& side) {
  if (side.ramp == 0) return V(side.scale);
  return V(side.scale) * max(V(side.ramp) * (v - V(side.origin)), V(0));
}

// sum = sum_j e^(score - max) of a row; max is a constant of the side, or the running maximum.
template <class V>
struct PairLogSum {
  V sum, max;
};

constexpr double kNoScore = -1e30;

template <bool Running, class V, class M>
DML_INLINE void add_score(PairLogSum<V>& s, M members, V score) {
  if (Running) {
    const V top = max(s.max, select(members, score, V(kNoScore)));
    s.sum = s.sum * exp(s.max - top);
    s.max = top;
  }
  s.sum = s.sum + select(members, exp(score - s.max), V(0));
}

// The log-sum-exp of one side of a row from its parts; in double, once a row.
struct PairLogSumExp {
  double sum = 0, max = kNoScore;

  DML_INLINE void add(double other, double other_max) {
    if (other == 0) return;
    const double top = max > other_max ? max : other_max;
    sum = sum * ::exp(max - top) + other * ::exp(other_max - top);
    max = top;
  }
  DML_INLINE double finish() const { return sum == 0 ? -INFINITY : ::log(sum) + max; }
};

}  // namespace DML_ISA
}  // namespace dml
