#pragma once
// The term "moment" of the Ranked List Loss (Wang et al., CVPR 2019, TPAMI 2021): of the pairs with x > 0 the mean of x
// under the weights p = softmax(T x), T the temperature, and the logarithm of their sum before they are normalised.

#include <math.h>

#include "common/log_sum_exp.h"

namespace dml {

// x > 0 by what a pair has before its value is known, the similarity or the squared distance: the pairs outside need no
// root. sign * raw > limit.
struct MomentLimit {
  double sign, limit;

  // rooted: the value is the root of what is compared.
  static DML_HD MomentLimit make(double scale, double base, bool rooted) {
    const double sign = scale < 0 ? -1 : 1;
    if (scale == 0) return MomentLimit{sign, INFINITY};
    if (!rooted) return MomentLimit{sign, sign * base};
    // d > base holds for every d >= 0 if the base is negative, d < base for none if it is not positive.
    return MomentLimit{sign, sign * ((sign > 0 ? base < 0 : base <= 0) ? -1.0 : base * base)};
  }
};

// dL/dx of a pair from one end is p (constant + linear (x - level)), p = e^(T x - log_sum) and level the moment of the
// row. Written so that nothing cancels where T is high.
struct MomentGradient {
  double constant, linear;

  static DML_HD MomentGradient make(double temperature, bool weight_grad, double grad_moment, double grad_log_sum) {
    return MomentGradient{grad_moment + grad_log_sum * temperature, weight_grad ? grad_moment * temperature : 0};
  }
};

inline namespace DML_ISA {

template <class V, class Limit>
DML_INLINE auto beyond(V raw, const Limit& limit) {
  return V(limit.sign) * raw > V(limit.limit);
}

// sum = sum_j e^(T x - max), moment = sum_j e^(T x - max) x of a row; max is a constant of the side, or the running
// maximum.
template <class V>
struct PairMoment {
  V sum, moment, max;
};

template <bool Running, class V, class M>
DML_INLINE void add_moment(PairMoment<V>& s, M members, V x, V score) {
  if (Running) {
    const V top = max(s.max, select(members, score, V(kNoScore))), shrink = exp(s.max - top);
    s.sum = s.sum * shrink;
    s.moment = s.moment * shrink;
    s.max = top;
  }
  const V e = select(members, exp(score - s.max), V(0));
  s.sum = s.sum + e;
  s.moment = fma(e, x, s.moment);
}

}  // namespace DML_ISA
}  // namespace dml
