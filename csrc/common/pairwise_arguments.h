#pragma once
// What the arguments of pairwise say.

#include "common/operators.h"
#include "common/pairwise.h"

namespace dml {

inline Metric metric_of(const std::string& name) {
  return name == "dot" ? Metric::dot : name == "euclidean" ? Metric::euclidean : Metric::squared;
}

}  // namespace dml
