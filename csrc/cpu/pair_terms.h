#pragma once
// Terms of pair losses on vectors of pairs: what takes part, what a row or a vector of columns adds up, and dL/dv.

#include "common/tile_schedule.h"
#include "cpu/pair_loss_kernels.h"
#include "cpu/simd.h"

namespace dml {
inline namespace DML_ISA {

template <class T>
DML_INLINE Vec<T> bound_of_row(const PairLossSide<T>& s, int64_t i) {
  return Vec<T>(s.bounds != nullptr ? s.bounds[i] : static_cast<T>(s.side.base));
}
template <class T>
DML_INLINE Vec<T> bounds_of_columns(const PairLossSide<T>& s, int64_t j) {
  return s.bounds != nullptr ? load<Vec<T>>(s.bounds + j) : Vec<T>(s.side.base);
}

// What a row, or a vector of columns, adds up on one side.
template <class T>
struct Sums {
  using V = Vec<T>;
  V stat{T(0)}, max{static_cast<T>(kNoScore)}, total{T(0)}, slope{T(0)};
};

// A vector of pairs under a term that is added up: which take part (on), what they add to sums, and dL/dv.
template <class Term, class T>
struct Added {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  V x;
  M on;
  DML_INLINE Added(const PairLossSide<T>& s, M members, V v, V bound)
      : x(pair_argument(v, bound, s.side)), on(both(members, Term::active(x))) {}
  DML_INLINE void add_to(const PairLossSide<T>&, V v, Sums<T>& sums) const {
    sums.stat = sums.stat + select(on, Term::term(x), V(0));
    sums.total = sums.total + select(on, v, V(0));
    sums.slope = sums.slope + select(on, Term::slope(x), V(0));
  }
  DML_INLINE V gradient(const PairLossSide<T>&, V scale, V, V add) const {
    return select(on, fma(scale, Term::slope(x), add), V(0));
  }
};

// The same under the log-sum-exp.
template <class T>
struct Scored {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  V slope, score, e;  // e = e^(score - shift), unless maxima are running
  M on;
  DML_INLINE Scored(const PairLossSide<T>& s, M members, V v, V bound)
      : slope(score_slope(v, s.side)), score(slope * (v - V(s.side.base))), on(members) {
    if (s.bounds != nullptr) on = both(members, pair_argument(v, bound, s.side) > V(0));
    e = s.running ? V(0) : exp(score - V(s.shift));
  }
  DML_INLINE void rebind(const PairLossSide<T>& s, M members, V v, V bound) {
    if (s.bounds != nullptr) on = both(members, pair_argument(v, bound, s.side) > V(0));
  }
  DML_INLINE void add_to(const PairLossSide<T>& s, V v, Sums<T>& sums) const {
    if (s.running) {
      PairLogSum<V> log_sum{sums.stat, sums.max};
      add_score<true>(log_sum, on, score);
      sums.stat = log_sum.sum;
      sums.max = log_sum.max;
    } else {
      sums.stat = sums.stat + select(on, e, V(0));
    }
    sums.total = sums.total + select(on, v, V(0));
    if (s.bounds != nullptr) sums.slope = sums.slope + select(on, V(1), V(0));
  }
  DML_INLINE V gradient(const PairLossSide<T>& s, V scale, V log, V add) const {
    const V weight = s.running ? exp(score - log) : e;
    return select(on, fma(scale * weight, slope, add), V(0));
  }
};

// The pairs of a kernel's term. rebind: with other bounds for the same pairs, those of columns instead of the row's.
template <class Term, class T>
struct TermOf {
  using Type = Added<Term, T>;
  static DML_INLINE void rebind(Type& t, const PairLossSide<T>& s, typename Simd<T>::M members, Vec<T> v,
                                Vec<T> bound) {
    if (s.bounds != nullptr) t = Type(s, members, v, bound);
  }
};
struct ExpTerm {};
template <class T>
struct TermOf<ExpTerm, T> {
  using Type = Scored<T>;
  static DML_INLINE void rebind(Type& t, const PairLossSide<T>& s, typename Simd<T>::M members, Vec<T> v,
                                Vec<T> bound) {
    t.rebind(s, members, v, bound);
  }
};

template <class T>
struct SumArrays {
  T *stat, *max, *total, *members, *slope;
  bool running;
  SumArrays(const PairLossSide<T>& s, T* first, int64_t length) : running(s.running) {
    stat = first + kPairStat * length;
    max = first + kPairMax * length;
    total = first + kPairTotal * length;
    members = first + kPairMembers * length;
    slope = first + kPairSlope * length;
  }
  DML_INLINE Sums<T> columns(int64_t j) const {
    using V = Vec<T>;
    return {load<V>(stat + j), load<V>(max + j), load<V>(total + j), load<V>(slope + j)};
  }
  DML_INLINE void store_columns(int64_t j, const Sums<T>& s) const {
    store(stat + j, s.stat);
    if (running) store(max + j, s.max);
    store(total + j, s.total);
    store(slope + j, s.slope);
  }
  // Merges the lanes of a row's sums.
  void add_row(int64_t i, const Sums<T>& s) const {
    using V = Vec<T>;
    T old = stat[i];
    V lanes = s.stat;
    if (running) {
      const T lane_top = largest(s.max), top = lane_top > max[i] ? lane_top : max[i];
      alignas(64) T shrink[Simd<T>::lanes];
      store(shrink, exp(V(max[i] - top)));
      old = old * shrink[0];
      lanes = lanes * exp(s.max - V(top));
      max[i] = top;
    }
    stat[i] = old + sum(lanes);
    total[i] += sum(s.total);
    slope[i] += sum(s.slope);
  }
  // Merges what a tile has of the columns j.. and so many.
  void add_columns(int64_t j, int64_t count, const SumArrays& tile) const {
    using V = Vec<T>;
    for (int64_t c = 0; c < count; c += Simd<T>::lanes) {
      Sums<T> sums = columns(j + c), more = tile.columns(c);
      if (running) {
        const V top = dml::max(sums.max, more.max);
        sums.stat = sums.stat * exp(sums.max - top);
        more.stat = more.stat * exp(more.max - top);
        sums.max = top;
      }
      sums.stat = sums.stat + more.stat;
      sums.total = sums.total + more.total;
      sums.slope = sums.slope + more.slope;
      store_columns(j + c, sums);
      store(members + j + c, load<V>(members + j + c) + load<V>(tile.members + c));
    }
  }
};

// The columns' sums of one tile. Added to those of all tiles pair by pair, a row's would be rounded as often as it has
// pairs, which is seen in float32 from some ten thousand on.
template <class T>
struct TileColumns {
  alignas(64) T memory[kPairSums * kTile] = {};
  SumArrays<T> arrays;
  explicit TileColumns(const PairLossSide<T>& s) : arrays(s, memory, kTile) {
    for (int64_t c = 0; c < kTile; ++c) arrays.max[c] = static_cast<T>(kNoScore);
  }
};

}  // namespace DML_ISA
}  // namespace dml
