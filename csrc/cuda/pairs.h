#pragma once
// Rows of pair operations as the launchers pass them to the kernels, and the kernels that know rows only, no loss.

#include <stdint.h>

#include "common/hd.h"
#include "cuda/stream.h"

namespace dml {

// How the rows are stored, and how products of float32 rows are computed.
enum class Precision { float64, float32, tf32, bfloat16, float16 };

// Weights per pair are rounded for their product with the rows. A bfloat16 row takes two bfloat16 terms of each weight,
// a float16 row two TF32 terms (small weights would underflow in fp16): one term alone is seen in the gradients. The
// terms of bfloat16 lie side by side, (rows, 2, padded); float32 ones are split as they are multiplied.
DML_HD constexpr int64_t weight_terms(Precision precision) { return precision == Precision::bfloat16 ? 2 : 1; }

enum class RowState : unsigned char { kept, ignored, non_finite };

// By row of one side: 1/||x|| (1 without normalising, 0 for a zero row), ||f||^2 (NaN: the row does not count), label
// (without labels: a class of its own) and id (pairs of equal ids are excluded).
template <class T>
struct RowFacts {
  const T *inverse, *norm;
  const int64_t *labels, *ids;
  int64_t first_id;  // without ids: 0 gives row i the id i, a negative one gives it first_id - i
};

template <class T>
struct SideRows {
  const void* data;  // (count, width), contiguous
  const int64_t* order;
  int64_t count;
  RowFacts<T> facts;
};

template <class T>
struct PairSides {
  SideRows<T> a, b;
  int64_t width;
};

template <class T>
PairSides<T> swapped(const PairSides<T>& s) {
  return PairSides<T>{s.b, s.a, s.width};
}

// Fills inverse, norm and state of the rows of x; any_non_finite, on the device, becomes 1 if there is such a row.
// state may be null: then all rows count, and non-finite ones give NaN.
template <class T>
void row_facts(Precision precision, const void* x, int64_t count, int64_t width, const int64_t* labels,
               bool has_ignore_index, int64_t ignore_index, bool normalize, T* inverse, T* norm, RowState* state,
               int32_t* any_non_finite, Stream stream);

// A label outside [0, classes) makes its row one that is not finite.
void check_class_labels(const int64_t* labels, int64_t count, int64_t classes, RowState* state, int32_t* any_non_finite,
                        Stream stream);

// Weights of pairs for a stripe of rows, as the product takes them: (rows, terms, padded), padded a multiple of the
// tile. Tiles without an active pair are never written nor read.
struct Stripe {
  int64_t first, count, padded;  // first is a multiple of the tile
  Precision precision;
  void* weights;
  const unsigned char* active;  // null: every tile is active
  int64_t active_row_stride, active_col_stride;
};

// x^T (width, padded) in the element of the weights; rows of x that do not count are 0.
void transpose_rows(Precision precision, const void* x, const RowState* state, int64_t count, int64_t width,
                    int64_t padded, void* out, Stream stream);

// sums (stripe.count, width) = weights (stripe.count, padded) x (padded, width).
template <class T>
void weighted_rows(const Stripe& stripe, const void* x_transposed, int64_t width, T* sums, Stream stream);

// Gradient of rows first.. of x from p = weight_sums f + sign * sums, through the normalisation; 0 for ignored rows,
// NaN for non-finite ones and, if `others_non_finite`, for all.
template <class T>
struct FinishGradient {
  const void* x;
  const RowState* state;  // null: all rows count
  const int32_t* others_non_finite;
  const T *inverse, *sums, *weight_sums;  // sums (count, width); weight_sums (splits, rows) or null
  int64_t first, count, width, rows, splits;
  T sign, non_finite_value;  // the gradient of a non-finite row
  bool normalize;
  void* out;
};
template <class T>
void finish_gradient(Precision precision, const FinishGradient<T>& p, Stream stream);

// How many blocks share the columns of one row tile, so that a device has enough of them.
int64_t column_splits(int64_t row_tiles, int64_t col_tiles);

}  // namespace dml
