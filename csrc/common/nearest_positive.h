#pragma once
// Selection among candidates (Levi et al., ICCV 2021): smaller or larger squared distance, ties to the lower index.

#include "common/hd.h"

namespace dml {
inline namespace DML_ISA {

template <class V>
DML_INLINE auto can_win(V squared, V best, bool farthest) {
  return farthest ? best <= squared : squared <= best;
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
