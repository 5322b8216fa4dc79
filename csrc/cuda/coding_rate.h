#pragma once
// Kernels of the coding rates as their launcher calls them.

#include <stdint.h>

#include "cuda/stored.h"
#include "cuda/stream.h"

namespace dml {

// scale (rows,): 1 / ||x|| (1 without normalising), NaN where the norm is not finite; and the scaled rows, or null.
template <class T>
void scale_rows(Stored x, int64_t rows, int64_t width, bool normalize, T* scale, T* scaled, Stream stream);

// gram (side, side) = I + a times the sum of parts (splits, side, side).
template <class T>
void add_identity(const T* parts, int64_t splits, int64_t side, double a, T* gram, Stream stream);

// grad (rows, width) = factor * y taken through the normalisation; all NaN if the log-determinant is.
template <class T>
struct RateGradient {
  Stored x, grad;
  const T *y, *scale, *logdet;
  int64_t rows, width;
  double factor;
  bool normalize;
};
template <class T>
void finish_rate_gradient(const RateGradient<T>& p, Stream stream);

// rate () = factor * sum of terms (count,).
template <class T>
void sum_terms(const T* terms, int64_t count, double factor, Stored rate, Stream stream);

// out = grad_rate () * rate_grad, by element.
void scale_rate_gradient(Stored grad_rate, Stored rate_grad, int64_t elements, Stored out, Stream stream);

// Classes of rows whose labels are sorted, `order` the rows that they belong to. Every class is factored by its smaller
// Gram matrix.
template <class T>
struct ClassRates {
  Stored x, grad;  // (rows, width); no grad unless need_grad
  const int64_t *labels, *order;
  const T* scale;
  int64_t rows, width;
  double eps_squared, gain, factor;  // factor: of the gradient, a of all rows
  bool normalize, need_grad;
  T* y;           // (rows, width) scratch, or where the gradient goes; null unless need_grad
  T* tiles;       // (rows, width) scratch, needed for sides above kClassSide
  double* terms;  // (class_blocks(rows),): their sum is 2 rows times the rate
};
constexpr int64_t kClassSide = 128;
int64_t class_blocks(int64_t rows);
template <class T>
void class_rates(const ClassRates<T>& p, Stream stream);

}  // namespace dml
