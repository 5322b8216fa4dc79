#pragma once
// The term log(1 + e^x) of NT-Xent and of soft triplets.

#include <math.h>

#include "common/hd.h"

namespace dml {
inline namespace DML_ISA {

// log(1 + y), 0 <= y <= 1, as 2 atanh(z), z = y / (2 + y) <= 1/3: its series to z^33, of remainder under 1e-17.
template <class V>
DML_INLINE V log_one_plus(V y) {
  const V z = y / (V(2) + y), square = z * z;
  V series(1.0 / 33);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 16
#endif
  for (int k = 31; k > 0; k -= 2) series = fma(series, square, V(1.0 / k));
  return V(2) * z * series;
}

struct PairSoftplus {
  // Every pair; x is -inf where the bound is the log-sum-exp of nothing, and the term 0.
  template <class V>
  static DML_INLINE auto active(V x) {
    return x <= V(INFINITY);
  }
  template <class V>
  static DML_INLINE V term(V x) {
    return max(x, V(0)) + log_one_plus(exp(V(0) - max(x, V(0) - x)));
  }
  template <class V>
  static DML_INLINE V slope(V x) {
    const V e = exp(V(0) - max(x, V(0) - x)), share = V(1) / (V(1) + e);
    return select(x > V(0), share, e * share);
  }
};

}  // namespace DML_ISA
}  // namespace dml
