#pragma once
// What the operators nearest_positive and mine give and take.

#include <tuple>
#include <vector>

#include "common/pair_arguments.h"

namespace dml {

using Selected = std::tuple<Tensor, Tensor>;
using Mined = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// For each query the gallery row that it chose (-1 for nobody), and the gradient of their distance.
struct Listed {
  Tensor index, grad;
};

inline std::vector<Listed> lists_of(const operators::nearest_positive_bwd& a) {
  return {{as_contiguous(a.index), as_contiguous(a.grad_distance)}};
}

inline std::vector<Listed> lists_of(const operators::mine_bwd& a) {
  return {{as_contiguous(a.pos_index), as_contiguous(a.grad_pos)},
          {as_contiguous(a.neg_index), as_contiguous(a.grad_neg)}};
}

}  // namespace dml
