#pragma once
// Which of two pairs of a query is the nearer one, for the kernels that select.

#include "common/nearest_positive.h"
#include "cpu/pair_tile.h"

namespace dml {
inline namespace DML_ISA {

// The best candidate of a query so far.
template <class T>
struct BestRow {
  T &squared, &exact;  // exact: in difference form, NaN until somebody asks for it
  int32_t& row;        // packed gallery row, -1 for none
};

template <class T>
struct Contest {
  const RowsView<T>&q, &g;
  T share;  // tie_share
  bool farthest;
  bool of_roots;  // the squared distances that come here are the squares of rounded roots

  T band(int64_t i, int64_t j) const { return share * (q.norms[i] + g.norms[j]); }
  // The squared distance of a pair in difference form. To a zero row it is the other's norm, which is 1 by definition.
  T exact(int64_t i, int64_t j, T squared) const {
    const T norm = q.norms[i], other = g.norms[j];
    if (norm == 0 || other == 0) return norm + other;
    if (!of_roots && is_near(squared, norm + other)) return squared;
    constexpr int64_t L = Simd<T>::lanes;
    T lanes[L];
    store(lanes, difference_form(q, i, g, j / L * L));
    return lanes[j % L];
  }
  // Whether j lies beyond the row `to`, which lies at `limit` (infinite where there is none).
  bool beyond(int64_t i, int64_t j, T squared, int64_t to, T limit) const {
    if (can_tell(squared, limit, band(i, j))) return beyond_positive(squared, limit);
    return beyond_positive(exact(i, j, squared), exact(i, to, limit));
  }
  void offer(int64_t i, int64_t j, T squared, BestRow<T> best) const {
    T own = NAN;
    if (best.row < 0 || can_tell(squared, best.squared, band(i, j))) {
      if (!wins(squared, j, best.squared, int64_t{-1}, farthest)) return;
    } else {
      own = exact(i, j, squared);
      if (best.exact != best.exact) best.exact = exact(i, best.row, best.squared);
      if (!wins(own, g.index[j], best.exact, g.index[best.row], farthest)) return;
    }
    best.squared = squared;
    best.exact = own;
    best.row = static_cast<int32_t>(j);
  }
};

}  // namespace DML_ISA
}  // namespace dml
