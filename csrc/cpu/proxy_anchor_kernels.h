#pragma once
// Kernels of Proxy-Anchor on one tile of proxies and embeddings.

#include "common/proxy_anchor.h"
#include "cpu/kernel_table.h"

namespace dml {

// Forward sums of a proxy, each (parts, padded q): sum of e^(score - max), and max.
enum ProxySum { kProxyPosSum, kProxyPosMax, kProxyNegSum, kProxyNegMax };
constexpr int kProxySums = kProxyNegMax + 1;

template <class T>
struct ProxyAnchorProblem {
  RowsView<T> q, g;  // proxies, embeddings
  ProxyAnchor loss;

  T* sums;  // forward: kProxySums arrays

  const T *pos_log_sum, *neg_log_sum;  // backward: (padded q)
  double pos_share, neg_share;
  T *rows_q, *rows_g;  // (parts, padded q, stride), (padded g, stride)
};

template <class T>
struct ProxyAnchorKernels {
  void (*forward)(const ProxyAnchorProblem<T>& problem, int64_t i, int64_t j, int64_t part, int64_t parts);
  void (*backward)(const ProxyAnchorProblem<T>& problem, int64_t i, int64_t j, int64_t part);

  template <Isa isa>
  static ProxyAnchorKernels make();
};

}  // namespace dml
