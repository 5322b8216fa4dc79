#pragma once
// Proxy-Anchor of a proxy and an embedding (Kim et al., CVPR 2020, eq. 4): log(1 + sum of e^score) over the positives
// of a proxy, score = -alpha (s - margin), and over its negatives, score = alpha (s + margin).

#include "common/log_sum_exp.h"

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

}  // namespace DML_ISA
}  // namespace dml
