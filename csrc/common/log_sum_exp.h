#pragma once
// Sums of e^score that neither overflow nor vanish: every score less a constant, or less a running maximum.

#include <math.h>

#include "common/hd.h"

namespace dml {

constexpr double kNoScore = -1e30;

inline namespace DML_ISA {

// sum = sum_j e^(score - max) of a row; max is a constant of the side, or the running maximum.
template <class V>
struct PairLogSum {
  V sum, max;
};

template <bool Running, class V, class M>
DML_INLINE void add_score(PairLogSum<V>& s, M members, V score) {
  if (Running) {
    const V top = max(s.max, select(members, score, V(kNoScore)));
    s.sum = s.sum * exp(s.max - top);
    s.max = top;
  }
  s.sum = s.sum + select(members, exp(score - s.max), V(0));
}

// The same from its parts, with the sum of e^(score - max) x where x has a mean; in double, once a row.
struct LogSumExp {
  double sum = 0, max = kNoScore, moment = 0;

  DML_INLINE void add(double other, double other_max, double other_moment = 0) {
    if (other == 0) return;
    const double top = max > other_max ? max : other_max;
    const double shrink = ::exp(max - top), other_shrink = ::exp(other_max - top);
    sum = sum * shrink + other * other_shrink;
    moment = moment * shrink + other_moment * other_shrink;
    max = top;
  }
  DML_INLINE double log_sum() const { return sum == 0 ? -INFINITY : ::log(sum) + max; }
  // log(1 + sum e^max)
  DML_INLINE double log_one_plus() const {
    const double log_sum = this->log_sum();
    return log_sum > 0 ? log_sum + ::log1p(::exp(-log_sum)) : ::log1p(::exp(log_sum));
  }
  DML_INLINE double mean() const { return sum == 0 ? 0 : moment / sum; }
};

}  // namespace DML_ISA
}  // namespace dml
