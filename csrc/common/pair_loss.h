#pragma once
// Row statistics of a pair loss: of each side of a row, the sum of a term h(x), the log-sum-exp of a score or the
// moment of x, with x = scale (v - base) of the value v of a pair. Every loss of the family is a function of these; a
// new term that is added up is a header like pair_hinge.h and a line in DML_PAIR_TERMS.

#include "common/log_sum_exp.h"
#include "common/pair_hinge.h"
#include "common/pair_moment.h"
#include "common/pair_softplus.h"
#include "common/pairwise.h"

// Terms that are added up: name in the schema, struct.
#define DML_PAIR_TERMS(TERM) \
  TERM(hinge, PairHinge)     \
  TERM(softplus, PairSoftplus)

namespace dml {

enum class PairValue { similarity, distance, squared };

#define DML_NAME(name, type) name,
enum class PairTerm { none, DML_PAIR_TERMS(DML_NAME) exp, moment };
#undef DML_NAME

struct PairSide {
  PairTerm term;
  double scale, base, ramp, origin, temperature;

  DML_INLINE bool present() const { return term != PairTerm::none; }
  // e^score is summed up, so that a log-sum-exp comes out.
  DML_INLINE bool scored() const { return term == PairTerm::exp || term == PairTerm::moment; }
};

inline namespace DML_ISA {

// dL/d(dot product) or dL/d(squared distance) / (1/2) of a pair: what multiplies the other row, or f_i - g_j.
template <class V>
DML_INLINE V gradient_of_value(V grad, V v, V squared, V norms, PairValue value, double eps) {
  switch (value) {
    case PairValue::similarity:
      return grad;
    case PairValue::distance:
      return grad * gradient_scale(squared, v, norms, eps);
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

}  // namespace DML_ISA
}  // namespace dml
