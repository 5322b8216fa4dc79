#pragma once
// Selection among candidates (Levi et al., ICCV 2021): smaller or larger squared distance, ties to the lower index.
// Squared distances that the product form cannot tell apart are compared in difference form, whose bits are the same on
// every backend; what is equal in exact arithmetic is then a tie.

#include <math.h>
#include <stdint.h>

#include "common/hd.h"

namespace dml {
inline namespace DML_ISA {

// Two product forms of `width` roundings each may be off by so much of their norms, with room to spare.
DML_HD inline double tie_share(int64_t width, double eps) { return eps * (4 + 2 * ::sqrt(static_cast<double>(width))); }

template <class V>
DML_INLINE auto can_win(V squared, V best, V band, bool farthest) {
  return farthest ? best - band <= squared : squared <= best + band;
}

template <class V>
DML_INLINE auto can_tell(V squared, V other, V band) {
  return squared < other - band || squared > other + band;
}

template <class T, class Index>
DML_INLINE bool wins(T squared, Index index, T best, Index best_index, bool farthest) {
  return squared == best ? best_index < 0 || index < best_index : farthest ? squared > best : squared < best;
}

// Semi-hard: farther than the chosen positive, strictly.
template <class V>
DML_INLINE auto beyond_positive(V squared, V positive) {
  return squared > positive;
}

}  // namespace DML_ISA
}  // namespace dml
