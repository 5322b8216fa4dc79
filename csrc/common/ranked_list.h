#pragma once
// Ranked List Loss of a pair (Wang et al., CVPR 2019, TPAMI 2021): membership, violation, weighted sums, gradient
// weight. Weights are e^(T v) over their sum in the row. "Running" keeps a running maximum of T v where e^(T v) could
// overflow.

#include <math.h>

#include "common/hd.h"

namespace dml {

// One of the two non-trivial sets of a row; squared limits spare a root for the pairs outside.
struct RankedSet {
  double boundary;       // alpha - margin for positives, alpha for negatives
  double sign;           // violation = sign * (d - boundary)
  double temperature;    // T
  double weight_slope;   // T where the weights are differentiated, else 0
  double squared_limit;  // active: sign * (d^2 - squared_limit) > 0
};

inline namespace DML_ISA {

DML_HD inline RankedSet make_ranked_set(bool positive, double boundary, double temperature, bool weight_grad) {
  // d > boundary holds for every d >= 0 if the boundary is negative, d < boundary for none if it is not positive.
  const bool beyond = positive ? boundary < 0 : boundary <= 0;
  return RankedSet{boundary, positive ? 1.0 : -1.0, temperature, weight_grad ? temperature : 0.0,
                   beyond ? -1.0 : boundary * boundary};
}

template <class V>
DML_INLINE auto in_positive_set(V squared, const RankedSet& set) {
  return squared > V(set.squared_limit);
}
template <class V>
DML_INLINE auto in_negative_set(V squared, const RankedSet& set) {
  return squared < V(set.squared_limit);
}

template <class V>
DML_INLINE V violation(V distance, const RankedSet& set) {
  return V(set.sign) * (distance - V(set.boundary));
}

// sum = sum_j e^(T v - max), moment = sum_j e^(T v - max) v; max is 0, or the running maximum.
template <class V>
struct WeightedSum {
  V sum, moment, max;
};

constexpr double kNoMaximum = -1e30;

template <bool Running, class V>
DML_INLINE WeightedSum<V> empty_sum() {
  return WeightedSum<V>{V(0), V(0), V(Running ? kNoMaximum : 0.0)};
}

template <bool Running, class V, class M>
DML_INLINE void add_where(WeightedSum<V>& s, M members, V v, const RankedSet& set) {
  const V score = v * V(set.temperature);
  if (Running) {
    const V top = max(s.max, select(members, score, V(kNoMaximum)));
    const V shrink = exp(s.max - top);
    s.sum = s.sum * shrink;
    s.moment = s.moment * shrink;
    s.max = top;
  }
  const V e = select(members, exp(score - s.max), V(0));
  s.sum = s.sum + e;
  s.moment = fma(e, v, s.moment);
}

// log of the weights' denominator and loss of one set of one row.
struct SetResult {
  double log_denom, loss;
};

// The sums of one set of a row, from its parts; in double, once a row.
struct SetSums {
  double sum = 0, moment = 0, max = kNoMaximum;

  DML_INLINE void add(double other_sum, double other_moment, double other_max) {
    if (other_sum == 0) return;
    const double top = max > other_max ? max : other_max;
    sum = sum * ::exp(max - top) + other_sum * ::exp(other_max - top);
    moment = moment * ::exp(max - top) + other_moment * ::exp(other_max - top);
    max = top;
  }
  // eps: what eps_mode adds to the denominator.
  DML_INLINE SetResult finish(double eps) const {
    if (sum == 0) return SetResult{::log(eps), 0};
    const double denominator = sum + eps * ::exp(-max);
    return SetResult{::log(denominator) + max, moment / denominator};
  }
};

// What the gradient of a row needs: with running maxima p = e^(T v - log_denom) and scale = g c; without, scale is
// g c e^(-log_denom), and log_denom is not used. level = the row's loss of the set.
template <class V>
struct RowGradient {
  V scale, level, log_denom;
};

// dL/dv of one pair from one end: g c p (1 + slope (v - level)). `e` is e^(T v) without running maxima.
template <bool Running, class V>
DML_INLINE V pair_gradient(const RowGradient<V>& row, V v, V e, const RankedSet& set) {
  const V p = Running ? exp(v * V(set.temperature) - row.log_denom) : e;
  return row.scale * p * fma(V(set.weight_slope), v - row.level, V(1));
}

}  // namespace DML_ISA
}  // namespace dml
