#pragma once
// Spherical Embedding Expansion (Le & Woo, PAKDD 2024) on the centres of Pang et al. (ICML 2018).

#include <math.h>

#include "common/hd.h"

namespace dml {
inline namespace DML_ISA {

// Entry j of centre i of the n + 1 vertices of a regular simplex in R^n: unit norm, dot products -1/n.
DML_HD inline double simplex_center(int n, int i, int j) {
  if (i < j) return 0;
  const double vertices = n + 1;
  const double own = ::sqrt(vertices * (vertices - 1 - j) / ((vertices - 1) * (vertices - j)));
  return i == j ? own : -own / (vertices - 1 - j);
}

// Residuals up to this norm have no direction: the sample is its own proxy.
constexpr double kNoResidual = 1e-6;

}  // namespace DML_ISA
}  // namespace dml
