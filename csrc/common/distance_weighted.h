#pragma once
// Weight of a negative by its distance (Wu et al., ICCV 2017): the inverse of the density of distances on the sphere,
// d^(2-D) (1 - d^2/4)^((3-D)/2), written as (y^((2-D)/2)) sqrt(1 - d^2/4) with y = d^2 (1 - d^2/4), so that one
// logarithm does; the root, between 0 and 1, is left out of what is taken relative to a row's largest.

#include <stdint.h>

#include "common/hd.h"

namespace dml {

struct DistanceDensity {
  double exponent;   // (2 - D) / 2
  double near, far;  // squared: nearer rows count as near, rows at `far` or beyond are no candidates

  static DML_HD DistanceDensity make(int64_t width, double cutoff, double nonzero_loss_cutoff) {
    const double near = cutoff * cutoff, smallest = 1e-37;  // which has a logarithm in float32
    return {(2 - static_cast<double>(width)) / 2, near > smallest ? near : smallest,
            nonzero_loss_cutoff * nonzero_loss_cutoff};
  }
};

inline namespace DML_ISA {

template <class V>
struct DistanceWeight {
  V score, root;  // the weight is e^score * root
};

template <class V>
DML_INLINE auto is_candidate(V squared, const DistanceDensity& density) {
  return squared < V(density.far);
}

// Of a candidate: far is at most 4, so that the root is that of a positive number, unless the cutoff rounds to 2.
template <class V>
DML_INLINE DistanceWeight<V> distance_weight(V squared, const DistanceDensity& density) {
  const V clamped = max(squared, V(density.near)), rest = max(fma(V(-0.25), clamped, V(1)), V(1e-30));
  return {V(density.exponent) * log(clamped * rest), sqrt(rest)};
}

}  // namespace DML_ISA
}  // namespace dml
