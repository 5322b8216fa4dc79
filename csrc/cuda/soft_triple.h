#pragma once
// Kernels of SoftTriple as the launcher calls them: embeddings are the rows of a tile, whole classes of centers its
// columns.

#include "common/soft_triple.h"
#include "cuda/pairs.h"

namespace dml {

constexpr int kSoftTripleSums = 3;  // of e^(logit - max) over the other classes, max, and the logit of the own class

// How many tiles the classes of the centers fill.
inline int64_t class_tiles(int64_t centers, const SoftTriple& loss) {
  const int64_t classes = centers / loss.per_class, per_tile = kMaxCentersPerClass / loss.per_class;
  return (classes + per_tile - 1) / per_tile;
}

// sums (kSoftTripleSums, splits, M).
template <class T>
void soft_triple_logits(Precision precision, const PairSides<T>& sides, const SoftTriple& loss, int64_t splits, T* sums,
                        Stream stream);

// losses (M,) and row_stats (2, M) from the sums. NaN for a row that is not kept, and for all if a center is not
// finite.
template <class T>
void soft_triple_finish(const T* sums, int64_t splits, int64_t count, const RowState* state,
                        const int32_t* centers_non_finite, T* losses, T* row_stats, Stream stream);

// of_centers: the stripe is one of centers; else of embeddings.
template <class T>
void soft_triple_weights(Precision precision, const PairSides<T>& sides, const SoftTriple& loss, bool of_centers,
                         const T* grad_loss, const T* row_stats, const Stripe& stripe, int64_t splits, Stream stream);

}  // namespace dml
