#pragma once
// The term [x]_+ of contrastive, margin and triplet losses.

#include "common/hd.h"

namespace dml {
inline namespace DML_ISA {

struct PairHinge {
  // Whether a pair takes part; one that does not adds nothing to value and gradient.
  template <class V>
  static DML_INLINE auto active(V x) {
    return x > V(0);
  }
  template <class V>
  static DML_INLINE V term(V x) {
    return max(x, V(0));
  }
  // d term / dx of an active pair.
  template <class V>
  static DML_INLINE V slope(V) {
    return V(1);
  }
};

}  // namespace DML_ISA
}  // namespace dml
