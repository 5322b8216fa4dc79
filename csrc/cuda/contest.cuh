#pragma once
// Which of two pairs of a query is the nearer one, for the kernels that select. Rows are the caller's.

#include "cuda/pairs.cuh"

#include "common/nearest_positive.h"

namespace dml {

template <class T>
struct Best {
  T squared;
  int64_t index;  // -1 for none
};

template <class T>
DML_DEVICE Best<T> nothing(bool farthest) {
  return Best<T>{farthest ? T(-1) : static_cast<T>(INFINITY), -1};
}

template <class E, class T>
struct Contest {
  const E *x, *y;
  RowFacts<T> queries, gallery;
  int64_t width, stride;
  T share;  // tie_share
  bool farthest;

  DML_DEVICE T band(int64_t i, int64_t j) const { return share * (queries.norm[i] + gallery.norm[j]); }
  // The squared distance of a pair in difference form. To a zero row it is the other's norm, which is 1 by definition.
  DML_DEVICE T exact(int64_t i, int64_t j) const {
    const T norm = queries.norm[i], other = gallery.norm[j];
    if (norm == T(0) || other == T(0)) return norm + other;
    return difference_form(x + i * stride, queries.inverse[i], y + j * stride, gallery.inverse[j], width);
  }
  // Whether j lies beyond the row `to`, which lies at `limit` (infinite where there is none).
  DML_DEVICE bool beyond(int64_t i, int64_t j, T squared, int64_t to, T limit) const {
    if (can_tell(squared, limit, band(i, j))) return beyond_positive(squared, limit);
    return beyond_positive(exact(i, j), exact(i, to));
  }
  DML_DEVICE void offer(int64_t i, Best<T>& best, T squared, int64_t j) const {
    if (j < 0) return;
    bool won = best.index < 0;
    if (!won && can_tell(squared, best.squared, band(i, j)))
      won = wins(squared, j, best.squared, best.index, farthest);
    else if (!won)
      won = wins(exact(i, j), j, exact(i, best.index), best.index, farthest);
    if (won) best = Best<T>{squared, j};
  }
};

template <class E, class T>
inline Contest<E, T> make_contest(const PairSides<T>& sides, bool farthest) {
  return Contest<E, T>{static_cast<const E*>(sides.a.data),
                       static_cast<const E*>(sides.b.data),
                       sides.a.facts,
                       sides.b.facts,
                       sides.width,
                       sides.stride,
                       static_cast<T>(tie_share(sides.width, kEps<T>)),
                       farthest};
}

}  // namespace dml
