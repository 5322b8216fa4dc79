#pragma once
// Triplet loss of an anchor with all of its positives: h(d_ip + margin - d_in), h a term of a pair loss. A pair that is
// no negative has the distance +inf, and a positive that is not there the distance -inf: such triplets cost nothing.

#include <math.h>

#include "common/pair_hinge.h"
#include "common/pair_softplus.h"
#include "common/pairwise.h"

namespace dml {
inline namespace DML_ISA {

// Sum of the terms of some triplets, and how many of them cost something.
template <class V>
struct TripletSum {
  V cost, nonzero;
};

template <class Term, class V>
DML_INLINE void add_triplet(TripletSum<V>& sum, V bound, V distance) {
  const V term = Term::term(bound - distance);
  sum.cost = sum.cost + term;
  sum.nonzero = sum.nonzero + select(term > V(0), V(1), V(0));
}

// dh/dx, 0 where the triplet does not take part.
template <class Term, class V>
DML_INLINE V triplet_slope(V bound, V distance) {
  const V x = bound - distance;
  return select(Term::active(x), Term::slope(x), V(0));
}

// One triplet alone.
struct TripletTerm {
  double cost, slope;
};
DML_HD inline TripletTerm triplet_term(double x, bool soft) {
  if (!soft) return x > 0 ? TripletTerm{x, 1} : TripletTerm{0, 0};
  const double e = ::exp(-::fabs(x));
  return TripletTerm{(x > 0 ? x : 0) + ::log1p(e), (x > 0 ? 1 : e) / (1 + e)};
}

}  // namespace DML_ISA
}  // namespace dml
