#pragma once
// Rows of pair operations as the launchers pass them to the kernels, and the kernels that know rows only, no loss.

#include <stdint.h>

#include "common/hd.h"
#include "cuda/stream.h"

namespace dml {

// How the rows are stored, and how products of float32 rows are computed.
enum class Precision { float64, float32, tf32, bfloat16, float16 };

enum class RowState : unsigned char { kept, ignored, non_finite };

struct Range {
  int64_t first, last;
  DML_HD bool meets(const Range& other) const { return first <= other.last && other.first <= last; }
};

// Of the rows of a tile: where their labels lie, and their ids if they were given; whether all 128 are there and count;
// and whether the norm of each is exactly 1.
struct TileSummary {
  Range labels, ids;
  bool full, unit;
};

// By row of one side: 1/||x|| (1 without normalising, 0 for a zero row), ||f||^2 (NaN: the row does not count), label
// (without labels: a class of its own) and id (pairs of equal ids are excluded).
template <class T>
struct RowFacts {
  const T *inverse, *norm;
  const int64_t *labels, *ids;
  int64_t first_id;  // without ids: 0 gives row i the id i, a negative one gives it first_id - i
  const TileSummary* tiles;
};

// Rows of tiles begin at this many bytes, and fill them.
constexpr int64_t kRowAlignment = 16;

template <class T>
struct SideRows {
  const void* data;  // (count, stride); zeros beyond the width
  const int64_t* order;
  int64_t count;
  RowFacts<T> facts;
};

template <class T>
struct PairSides {
  SideRows<T> a, b;
  int64_t width, stride;
};

template <class T>
PairSides<T> swapped(const PairSides<T>& s) {
  return PairSides<T>{s.b, s.a, s.width, s.stride};
}

// What is found out about the rows of x (count, width).
template <class T>
struct RowsToRead {
  const void* x;
  int64_t count, width;
  const int64_t *labels, *ids;  // or null
  bool has_ignore_index, normalize;
  int64_t ignore_index;
  T *inverse, *norm;
  RowState* state;          // or null: then all rows count, and non-finite ones give NaN
  int32_t* any_non_finite;  // becomes 1 if there is such a row
  TileSummary* tiles;       // or null
};
template <class T>
void row_facts(Precision precision, const RowsToRead<T>& rows, Stream stream);

// out (count, stride) = x (count, width) and zeros beside it; of elements of 2, 4 or 8 bytes.
void pad_rows(const void* x, int64_t count, int64_t width, int64_t stride, int64_t element_bytes, void* out,
              Stream stream);

// A label outside [0, classes) makes its row one that is not finite.
void check_class_labels(const int64_t* labels, int64_t count, int64_t classes, RowState* state, int32_t* any_non_finite,
                        Stream stream);

// What the forward has found out of a tile of pairs.
enum TileFlag : unsigned char { kActive = 1, kNearPairs = 2 };

// Which tiles of pairs a gradient reads: those with an active pair, or whose mirror image has one.
struct ActiveTiles {
  const unsigned char* flags;  // null: every tile is active
  int64_t row_stride, col_stride;
  bool mirrored;

  DML_HD unsigned char of(int64_t row_tile, int64_t col_tile) const {
    if (flags == nullptr) return kActive;
    const unsigned char own = flags[row_tile * row_stride + col_tile * col_stride];
    return mirrored ? own | flags[col_tile * row_stride + row_tile * col_stride] : own;
  }
};

// Weights of pairs for a stripe of rows, as the product takes them, rounded: (rows, padded), padded a multiple of the
// tile. bfloat16 rows take bfloat16 weights (or TF32 ones), float16 rows two TF32 terms of a float32 one (small weights
// would underflow in fp16). Tiles without an active pair are never written nor read.
struct Stripe {
  int64_t first, count, padded;  // first is a multiple of the tile
  Precision precision;
  void* weights;
  ActiveTiles active;
  bool adds = false;  // a tile at a time, to what another side has left there of other pairs
};

// x^T (width, padded) in the element of the weights; rows of x that do not count are 0. weighted: their precision.
void transpose_rows(Precision precision, Precision weighted, const void* x, const RowState* state, int64_t count,
                    int64_t width, int64_t padded, void* out, Stream stream);

// How many times 128 columns of its product a block takes: other products than these have no registers for two.
constexpr int strips_of(Precision precision, int64_t width) {
  return (precision == Precision::bfloat16 || precision == Precision::tf32) && width > 128 ? 2 : 1;
}

// sums (splits, stripe.count, width): weights (stripe.count, padded) x (padded, width), each split a share of the
// padded.
template <class T>
void weighted_rows(const Stripe& stripe, const void* x_transposed, int64_t width, int64_t splits, T* sums,
                   Stream stream);

// Gradient of rows first.. of x from p = weight_sums f + sign * sums, through the normalisation; 0 for ignored rows,
// NaN for non-finite ones and, if `others_non_finite`, for all.
template <class T>
struct FinishGradient {
  const void* x;
  const RowState* state;  // null: all rows count
  const int32_t* others_non_finite;
  const T *inverse, *sums, *weight_sums;  // sums (sum_splits, count, width); weight_sums (splits, rows) or null
  const int64_t* order;                   // the caller's row of each, or null
  int64_t first, count, width, rows, splits, sum_splits;
  T sign, non_finite_value;  // the gradient of a non-finite row
  bool normalize;
  void* out;
};
template <class T>
void finish_gradient(Precision precision, const FinishGradient<T>& p, Stream stream);

// How many blocks share the columns of one row tile, so that a device has enough of them.
int64_t column_splits(int64_t row_tiles, int64_t col_tiles);

}  // namespace dml
