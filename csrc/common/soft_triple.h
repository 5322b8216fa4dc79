#pragma once
// SoftTriple of an embedding and the centers of a class (Qian et al., ICCV 2019): the similarity of the class is
// the mean of those of its centers, weighted by their softmax with temperature gamma, and the loss is the cross-entropy
// of la (similarity - margin of the own class).

#include <math.h>

#include "common/log_sum_exp.h"

namespace dml {

struct SoftTriple {
  double la, inverse_gamma, margin;
  int64_t per_class;  // centers
};

// Centers of a class that the kernels take: they stand in one tile.
constexpr int64_t kMaxCentersPerClass = 128;

inline namespace DML_ISA {

// Below every logit, and finite.
template <class T>
constexpr T kNoLogit = static_cast<T>(sizeof(T) == 4 ? -3e38 : -1e308);

// Over the centers of a class, with weights e^((s - top) / gamma): their sum, and that of weight * (s - top).
template <class V>
struct ClassSums {
  V top, total, below;
  DML_INLINE V similarity() const { return top + below / total; }
};

// read(k): similarity of center k.
template <class V, class Read>
DML_INLINE ClassSums<V> class_sums(const SoftTriple& loss, const Read& read) {
  V top = read(0), total(0), below(0);
  for (int64_t k = 1; k < loss.per_class; ++k) top = max(top, read(k));
  for (int64_t k = 0; k < loss.per_class; ++k) {
    const V under = read(k) - top, weight = exp(V(loss.inverse_gamma) * under);
    total = total + weight;
    below = fma(weight, under, below);
  }
  return ClassSums<V>{top, total, below};
}

// dL/ds of one center from slope = dL/d(similarity of its class).
template <class V>
DML_INLINE V center_gradient(V s, V slope, V similarity, const ClassSums<V>& sums, const SoftTriple& loss) {
  const V share = exp(V(loss.inverse_gamma) * (s - sums.top)) / sums.total;
  return slope * share * fma(V(loss.inverse_gamma), s - similarity, V(1));
}

// Running sum of e^(logit - top) over the members.
template <class V, class M>
DML_INLINE void add_logit(V& sum, V& top, M members, V logit) {
  const V higher = select(members, max(top, logit), top);
  sum = fma(sum, exp(top - higher), select(members, exp(logit - higher), V(0)));
  top = higher;
}

// What the loss of an embedding leaves for its gradient.
struct SoftTripleRow {
  double loss, log_sum, miss;  // log of the sum over all classes, and the probability of those that are not its own
};

// others: sum over the logits of the other classes. Where the own class wins, the loss is exact beside 1.
DML_INLINE SoftTripleRow soft_triple_row(LogSumExp others, double own) {
  others.max -= own;
  const double loss = others.log_one_plus();
  return SoftTripleRow{loss, own + loss, -::expm1(-loss)};
}

// dL/d(similarity) of a class; scale = la * incoming gradient.
template <class V>
DML_INLINE V other_slope(V logit, V log_sum, V scale) {
  return scale * exp(logit - log_sum);
}

}  // namespace DML_ISA
}  // namespace dml
