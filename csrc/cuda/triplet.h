#pragma once
// Kernels of the triplet loss with all positives, as the launcher calls them. They work on a stripe of anchors, whose
// distances to all rows of the gallery are in memory.

#include <math.h>

#include "cuda/pairs.h"

namespace dml {

struct TripletProblem {
  double margin;
  bool soft, normalize;
  int64_t col_tiles;
  unsigned char*
      active;  // (row tiles, col tiles), or null: 1 where a tile has a pair in a triplet that costs something
};

// Distance of a pair that is neither positive nor negative.
template <class T>
constexpr T kNoPair = static_cast<T>(INFINITY);

// A stripe of anchors and their distances (count, padded): of a negative d, of a positive -d, and +inf of neither. The
// gallery sorted by label says where the positives are.
template <class T>
struct TripletStripe {
  int64_t first, count, padded, gallery;
  T* distances;
  const int64_t *labels, *sorted_labels, *order;  // labels: of all anchors
  const RowState* state;                          // of all anchors
  const int32_t* gallery_non_finite;
  const T *norm, *gallery_norm;
};

// With only_active, the pairs of tiles that are not marked get +inf unseen.
template <class T>
void triplet_distances(Precision precision, const PairSides<T>& sides, const TripletProblem& problem,
                       const TripletStripe<T>& stripe, bool only_active, Stream stream);

template <class T>
struct TripletRows {
  T* loss_sum;
  int64_t *nonzero, *count;  // each (anchors,)
};
template <class T>
void triplet_sums(Precision precision, const PairSides<T>& sides, const TripletProblem& problem,
                  const TripletStripe<T>& stripe, bool semihard, const TripletRows<T>& rows, Stream stream);

// weights (count, padded): of (f_i - g_j), from the incoming gradients of all anchors.
template <class T>
void triplet_weights(Precision precision, const PairSides<T>& sides, const TripletProblem& problem,
                     const TripletStripe<T>& stripe, bool semihard, const T* grad, T* weights, Stream stream);

// The weights as the product takes them, with the anchors as its rows, and with the gallery's rows as its rows; the
// sums of the weights are added to those of the rows.
template <class T>
void triplet_round_rows(const TripletProblem& problem, const TripletStripe<T>& stripe, const T* weights,
                        const T* inverse, const Stripe& out, T* weight_sums, Stream stream);
template <class T>
void triplet_round_columns(const TripletProblem& problem, const TripletStripe<T>& stripe, const T* weights,
                           const T* inverse, const Stripe& out, T* weight_sums, Stream stream);

// to += from, `count` numbers.
template <class T>
void triplet_add(const T* from, int64_t count, T* to, Stream stream);

}  // namespace dml
