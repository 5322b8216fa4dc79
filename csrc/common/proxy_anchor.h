#pragma once
// Proxy-Anchor of a proxy and an embedding (Kim et al., CVPR 2020, eq. 4): log(1 + sum of e^score) over the positives
// of a proxy, score = -alpha (s - margin), and over its negatives, score = alpha (s + margin).

#include <math.h>

#include "common/hd.h"

namespace dml {

struct ProxyAnchor {
  double alpha, margin;
};

inline namespace DML_ISA {

template <class V>
DML_INLINE V proxy_score(V similarity, const ProxyAnchor& loss, bool positive) {
  return positive ? V(-loss.alpha) * (similarity - V(loss.margin)) : V(loss.alpha) * (similarity + V(loss.margin));
}

// dL/ds from one side: share = g over the number of proxies that count; log_sum = log(1 + sum) of the proxy.
template <class V>
DML_INLINE V proxy_gradient(V score, V log_sum, V share, const ProxyAnchor& loss, bool positive) {
  return share * V(positive ? -loss.alpha : loss.alpha) * exp(score - log_sum);
}

// Sum of e^score of one side of one proxy, from its parts; in double, once a proxy.
struct LogSumExp {
  double sum = 0, max = -1e30;

  DML_INLINE void add(double other, double other_max) {
    const double top = max > other_max ? max : other_max;
    sum = sum * ::exp(max - top) + other * ::exp(other_max - top);
    max = top;
  }
  // log(1 + sum e^max)
  DML_INLINE double log_one_plus() const {
    if (sum == 0) return 0;
    const double log_sum = ::log(sum) + max;
    return log_sum > 0 ? log_sum + ::log1p(::exp(-log_sum)) : ::log1p(::exp(log_sum));
  }
};

}  // namespace DML_ISA
}  // namespace dml
