#pragma once
// Kernels of Proxy-Anchor as the launcher calls them: proxies are the rows, embeddings the columns.

#include "common/proxy_anchor.h"
#include "cuda/pairs.h"

namespace dml {

constexpr int kProxySums = 4;  // sum and maximum of the positives and of the negatives

// seen (C,) zeros: becomes 1 for the classes of the batch; bad is raised by a label outside [0, C).
void mark_classes(const int64_t* labels, int64_t count, int64_t classes, unsigned char* seen, int32_t* bad,
                  Stream stream);

// sums (kProxySums, splits, C).
template <class T>
void proxy_anchor_statistics(Precision precision, const PairSides<T>& sides, const ProxyAnchor& loss, int64_t splits,
                             T* sums, Stream stream);

template <class T>
struct ProxyRows {
  const unsigned char* seen;
  int64_t classes;
  const int32_t *bad, *embeddings_bad, *proxies_bad;  // any of them makes the loss NaN
};
// loss () and proxy_stats (2, C) from the sums.
template <class T>
void proxy_anchor_finish(const ProxyRows<T>& rows, const T* sums, int64_t splits, T* loss, T* proxy_stats,
                         Stream stream);

// shares (2,): the gradient of the loss over the number of proxies that count, of the positives and of the negatives;
// any_bad collects the flags.
template <class T>
void proxy_anchor_shares(const ProxyRows<T>& rows, const T* grad, T* shares, int32_t* any_bad, Stream stream);

// proxies_are_rows: of the stripe; else they are its columns.
template <class T>
void proxy_anchor_weights(Precision precision, const PairSides<T>& sides, const ProxyAnchor& loss,
                          bool proxies_are_rows, const T* shares, const T* proxy_stats, int64_t classes, bool normalize,
                          const Stripe& stripe, int64_t splits, T* weight_sums, Stream stream);

}  // namespace dml
