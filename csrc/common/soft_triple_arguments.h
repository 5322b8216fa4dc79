#pragma once
// What the arguments of soft_triple say; what the labels hold is checked where they are (csrc/cpu) or gives NaN.

#include "common/operators.h"
#include "common/soft_triple.h"

namespace dml {

template <class Taken>
SoftTriple soft_triple_of(const Taken& a) {
  return SoftTriple{a.la, 1 / a.gamma, a.margin, a.centers_per_class};
}

}  // namespace dml
