#include "cuda/number.cuh"

#include "common/ranked_list.h"

#include "cuda/pair_engine.cuh"
#include "cuda/proxy_anchor.h"

namespace dml {
namespace {

template <class V>
struct ProxySums {
  static constexpr int kValues = kProxySums;
  V pos, pos_max, neg, neg_max;

  DML_DEVICE V& value(int k) {
    switch (k) {
      case 0:
        return pos;
      case 1:
        return pos_max;
      case 2:
        return neg;
      default:
        return neg_max;
    }
  }
  static DML_DEVICE void add(V& sum, V& top, V other, V other_top) {
    const V highest = max(top, other_top);
    sum = sum * exp(top - highest) + other * exp(other_top - highest);
    top = highest;
  }
  DML_DEVICE void merge(const ProxySums& other) {
    add(pos, pos_max, other.pos, other.pos_max);
    add(neg, neg_max, other.neg, other.neg_max);
  }
};

template <Product P>
struct ProxyAnchorLoss {
  using T = typename ProductTypes<P>::Value;
  using Sums = ProxySums<T>;
  static constexpr int kTotals = 0, kWeightBlocks = kBlocks<P>;
  // In half the registers of a multiprocessor, TF32 would spill on sm_100.
  static constexpr int kRowBlocks = P == Product::tf32 ? 1 : kBlocks<P>;
  ProxyAnchor loss;
  // Gradient only.
  bool normalize, proxies_are_rows;
  const T *shares, *proxy_stats;
  int64_t classes;

  static DML_DEVICE Sums empty() {
    const T none = static_cast<T>(kNoMaximum);
    return Sums{T(0), none, T(0), none};
  }
  // A row that does not count has the norm NaN.
  static DML_DEVICE bool counts(const PairBlock<P>& block, int r, int c) { return is_finite(block.norms(r, c)); }

  DML_DEVICE bool add_to_row(const PairBlock<P>& block, T dot, int r, int c, bool, Sums& sums, T*) const {
    if (!counts(block, r, c)) return false;
    const bool same = block.same_class(r, c);
    const T score = proxy_score(block.similarity(dot, r, c), loss, same);
    if (same)
      Sums::add(sums.pos, sums.pos_max, T(1), score);
    else
      Sums::add(sums.neg, sums.neg_max, T(1), score);
    return true;
  }
  DML_DEVICE void add_to_column(const PairBlock<P>&, T, int, int, Sums&) const {}

  DML_DEVICE T weight(const PairBlock<P>& block, T dot, int r, int c) const {
    if (!counts(block, r, c)) return T(0);
    const bool same = block.same_class(r, c);
    const T score = proxy_score(block.similarity(dot, r, c), loss, same);
    const int64_t proxy = proxies_are_rows ? block.row0 + r : block.col0 + c;
    return proxy_gradient(score, proxy_stats[(same ? 0 : classes) + proxy], shares[same ? 0 : 1], loss, same);
  }
};

DML_KERNEL(kThreads)
mark_kernel(const int64_t* labels, int64_t count, int64_t classes, unsigned char* seen, int32_t* bad) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  if (labels[i] >= 0 && labels[i] < classes)
    seen[labels[i]] = 1;  // whoever writes, writes the same
  else
    atomicOr(bad, 1);
}

template <class T>
DML_DEVICE bool any_bad_row(const ProxyRows<T>& rows) {
  return *rows.bad != 0 || *rows.embeddings_bad != 0 || *rows.proxies_bad != 0;
}

// Proxies with a positive in the batch, at least 1; every thread of the one block gets the number.
template <class T>
DML_DEVICE double proxies_with_positives(const ProxyRows<T>& rows, double* scratch) {
  double seen = 0;
  for (int64_t c = threadIdx.x; c < rows.classes; c += kThreads) seen += rows.seen[c];
  seen = block_sum<kWarps>(seen, scratch);
  return seen > 1 ? seen : 1;
}

template <class T>
DML_KERNEL(kThreads)
finish_kernel(ProxyRows<T> rows, const T* sums, int64_t splits, T* loss, T* proxy_stats) {
  DML_SHARED(shared);
  double* const scratch = reinterpret_cast<double*>(shared);
  const double positives = proxies_with_positives(rows, scratch);
  const double proxies = rows.classes > 1 ? static_cast<double>(rows.classes) : 1;
  double total = 0;
  for (int64_t c = threadIdx.x; c < rows.classes; c += kThreads) {
    LogSumExp pos, neg;
    for (int64_t split = 0; split < splits; ++split) {
      const T* const at = sums + split * rows.classes + c;
      const int64_t step = splits * rows.classes;
      pos.add(at[0], at[step]);
      neg.add(at[2 * step], at[3 * step]);
    }
    proxy_stats[c] = static_cast<T>(pos.log_one_plus());
    proxy_stats[rows.classes + c] = static_cast<T>(neg.log_one_plus());
    total += pos.log_one_plus() / positives + neg.log_one_plus() / proxies;
  }
  total = block_sum<kWarps>(total, scratch);
  if (threadIdx.x == 0) *loss = any_bad_row(rows) ? not_a_number<T>() : static_cast<T>(total);
}

template <class T>
DML_KERNEL(kThreads)
shares_kernel(ProxyRows<T> rows, const T* grad, T* shares, int32_t* any_bad) {
  DML_SHARED(shared);
  const double positives = proxies_with_positives(rows, reinterpret_cast<double*>(shared));
  if (threadIdx.x != 0) return;
  shares[0] = static_cast<T>(*grad / positives);
  shares[1] = static_cast<T>(*grad / (rows.classes > 1 ? static_cast<double>(rows.classes) : 1));
  *any_bad = any_bad_row(rows) ? 1 : 0;
}

constexpr size_t kScratch = kWarps * sizeof(double);

}  // namespace

void mark_classes(const int64_t* labels, int64_t count, int64_t classes, unsigned char* seen, int32_t* bad,
                  Stream stream) {
  launch(mark_kernel, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, labels, count, classes, seen, bad);
}

template <class T>
void proxy_anchor_statistics(Precision precision, const PairSides<T>& sides, const ProxyAnchor& loss, int64_t splits,
                             T* sums, Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    using Loss = ProxyAnchorLoss<P>;
    launch(statistics_kernel<P, Loss>, dim3(blocks_for(sides.a.count, kTile), static_cast<unsigned>(splits)), kThreads,
           kPairShared<P>, stream, make_problem<P>(sides), Loss{loss, true, true, nullptr, nullptr, 0},
           RowPartials<T>{sums, sides.a.count, splits}, false, nullptr, nullptr);
  });
}

template <class T>
void proxy_anchor_finish(const ProxyRows<T>& rows, const T* sums, int64_t splits, T* loss, T* proxy_stats,
                         Stream stream) {
  launch(finish_kernel<T>, dim3(1), kThreads, kScratch, stream, rows, sums, splits, loss, proxy_stats);
}

template <class T>
void proxy_anchor_shares(const ProxyRows<T>& rows, const T* grad, T* shares, int32_t* any_bad, Stream stream) {
  launch(shares_kernel<T>, dim3(1), kThreads, kScratch, stream, rows, grad, shares, any_bad);
}

template <class T>
void proxy_anchor_weights(Precision precision, const PairSides<T>& sides, const ProxyAnchor& loss,
                          bool proxies_are_rows, const T* shares, const T* proxy_stats, int64_t classes, bool normalize,
                          const Stripe& stripe, int64_t splits, T* weight_sums, Stream stream) {
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    launch_weights(make_problem<P>(sides),
                   ProxyAnchorLoss<P>{loss, normalize, proxies_are_rows, shares, proxy_stats, classes}, stripe, splits,
                   weight_sums, sides.a.count, stream);
  });
}

#define DML_INSTANTIATE(T)                                                                                            \
  template void proxy_anchor_statistics<T>(Precision, const PairSides<T>&, const ProxyAnchor&, int64_t, T*, Stream);  \
  template void proxy_anchor_finish<T>(const ProxyRows<T>&, const T*, int64_t, T*, T*, Stream);                       \
  template void proxy_anchor_shares<T>(const ProxyRows<T>&, const T*, T*, int32_t*, Stream);                          \
  template void proxy_anchor_weights<T>(Precision, const PairSides<T>&, const ProxyAnchor&, bool, const T*, const T*, \
                                        int64_t, bool, const Stripe&, int64_t, T*, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
