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
  V stat{T(0)}, max{static_cast<T>(kNoScore)}, moment{T(0)}, total{T(0)}, slope{T(0)};
};

// What the gradient of the pairs of a row, or of a vector of columns, is made of (cpu/pair_loss_kernels.h: PairFactor).
template <class T>
struct Factors {
  Vec<T> scale, linear, level, log, add;
};

// A vector of pairs under a term that is added up: which take part (on), what they add to sums, and dL/dv. `Sums` that
// a kind of pairs does not have are kNone of it; its slope is how many take part, or something else (kSlope).
template <class Term, class T>
struct Added {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  static constexpr bool kScored = false, kMoment = false, kBounded = true;
  V v, x;
  M on;
  // Those that can take part, by the similarity or the squared distance.
  static DML_INLINE M possible(const PairLossSide<T>&, M members, V) { return members; }
  DML_INLINE Added(const PairLossSide<T>& s, M members, V v, V bound)
      : v(v), x(pair_argument(v, bound, s.side)), on(both(members, Term::active(x))) {}
  // The same pairs with other bounds: those of the columns instead of the row's.
  DML_INLINE void rebind(const PairLossSide<T>& s, M members, V bound) { *this = Added(s, members, v, bound); }
  DML_INLINE void add_to(const PairLossSide<T>&, Sums<T>& sums) const {
    sums.stat = sums.stat + select(on, Term::term(x), V(0));
    sums.total = sums.total + select(on, v, V(0));
    sums.slope = sums.slope + select(on, Term::slope(x), V(0));
  }
  DML_INLINE V gradient(const PairLossSide<T>&, const Factors<T>& f) const {
    return select(on, fma(f.scale, Term::slope(x), f.add), V(0));
  }
};

// The same under the log-sum-exp.
template <class T>
struct Scored {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  static constexpr bool kScored = true, kMoment = false, kBounded = true;
  V v, slope, score, e;  // e = e^(score - shift), unless maxima are running
  M on;
  static DML_INLINE M possible(const PairLossSide<T>&, M members, V) { return members; }
  DML_INLINE Scored(const PairLossSide<T>& s, M members, V v, V bound)
      : v(v), slope(score_slope(v, s.side)), score(slope * (v - V(s.side.base))), on(members) {
    e = s.running ? V(0) : exp(score - V(s.shift));
    if (s.bounds != nullptr) rebind(s, members, bound);
  }
  DML_INLINE void rebind(const PairLossSide<T>& s, M members, V bound) {
    on = both(members, pair_argument(v, bound, s.side) > V(0));
  }
  DML_INLINE void add_to(const PairLossSide<T>& s, Sums<T>& sums) const {
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
  DML_INLINE V gradient(const PairLossSide<T>& s, const Factors<T>& f) const {
    const V weight = s.running ? exp(score - f.log) : e;
    return select(on, fma(f.scale * weight, slope, f.add), V(0));
  }
};

// The same under the moment.
template <class T>
struct Moment {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  static constexpr bool kScored = true, kMoment = true, kBounded = false;
  V v, x, score, e;  // e = e^(score - shift), unless maxima are running
  M on;
  static DML_INLINE M possible(const PairLossSide<T>& s, M members, V raw) {
    return both(members, beyond(raw, s.limit));
  }
  DML_INLINE Moment(const PairLossSide<T>& s, M members, V v, V bound)
      : v(v), x(pair_argument(v, bound, s.side)), score(V(s.side.temperature) * x), on(members) {
    e = s.running ? V(0) : exp(score - V(s.shift));
  }
  DML_INLINE void add_to(const PairLossSide<T>& s, Sums<T>& sums) const {
    if (s.running) {
      PairMoment<V> moment{sums.stat, sums.moment, sums.max};
      add_moment<true>(moment, on, x, score);
      sums.stat = moment.sum;
      sums.moment = moment.moment;
      sums.max = moment.max;
    } else {
      const V weight = select(on, e, V(0));
      sums.stat = sums.stat + weight;
      sums.moment = fma(weight, x, sums.moment);
    }
    sums.total = sums.total + select(on, v, V(0));
    sums.slope = sums.slope + select(on, V(1), V(0));
  }
  DML_INLINE V gradient(const PairLossSide<T>& s, const Factors<T>& f) const {
    const V weight = s.running ? exp(score - f.log) : e;
    return select(on, fma(weight, fma(f.linear, x - f.level, f.scale), f.add), V(0));
  }
};

template <class T>
struct SumArrays {
  T *stat, *max, *moment, *total, *members, *slope;
  bool running;
  SumArrays(const PairLossSide<T>& s, T* first, int64_t length) : running(s.running) {
    stat = first + kPairStat * length;
    max = first + kPairMax * length;
    moment = first + kPairMoment * length;
    total = first + kPairTotal * length;
    members = first + kPairMembers * length;
    slope = first + kPairSlope * length;
  }
  template <class Pairs>
  DML_INLINE Sums<T> columns(int64_t j) const {
    using V = Vec<T>;
    Sums<T> s;
    s.stat = load<V>(stat + j);
    if (Pairs::kScored && running) s.max = load<V>(max + j);
    if (Pairs::kMoment) s.moment = load<V>(moment + j);
    s.total = load<V>(total + j);
    s.slope = load<V>(slope + j);
    return s;
  }
  template <class Pairs>
  DML_INLINE void store_columns(int64_t j, const Sums<T>& s) const {
    store(stat + j, s.stat);
    if (Pairs::kScored && running) store(max + j, s.max);
    if (Pairs::kMoment) store(moment + j, s.moment);
    store(total + j, s.total);
    store(slope + j, s.slope);
  }
  // Merges the lanes of a row's sums.
  template <class Pairs>
  DML_INLINE void add_row(int64_t i, const Sums<T>& s) const {
    using V = Vec<T>;
    T shrink = 1;
    V factor(1);
    if (Pairs::kScored && running) {
      const T lane_top = largest(s.max), top = lane_top > max[i] ? lane_top : max[i];
      alignas(64) T lanes[Simd<T>::lanes];
      store(lanes, exp(V(max[i] - top)));
      shrink = lanes[0];
      factor = exp(s.max - V(top));
      max[i] = top;
    }
    stat[i] = stat[i] * shrink + sum(s.stat * factor);
    if (Pairs::kMoment) moment[i] = moment[i] * shrink + sum(s.moment * factor);
    total[i] += sum(s.total);
    slope[i] += sum(s.slope);
  }
  // Merges what a tile has of the columns j.. and so many.
  template <class Pairs>
  DML_INLINE void add_columns(int64_t j, int64_t count, const SumArrays& tile) const {
    using V = Vec<T>;
    for (int64_t c = 0; c < count; c += Simd<T>::lanes) {
      Sums<T> sums = columns<Pairs>(j + c), more = tile.columns<Pairs>(c);
      if (Pairs::kScored && running) {
        const V top = dml::max(sums.max, more.max), shrink = exp(sums.max - top), other = exp(more.max - top);
        sums.stat = sums.stat * shrink;
        more.stat = more.stat * other;
        sums.moment = sums.moment * shrink;
        more.moment = more.moment * other;
        sums.max = top;
      }
      sums.stat = sums.stat + more.stat;
      sums.moment = sums.moment + more.moment;
      sums.total = sums.total + more.total;
      sums.slope = sums.slope + more.slope;
      store_columns<Pairs>(j + c, sums);
    }
  }
};

// The columns' sums of one tile. Added to those of all tiles pair by pair, a row's would be rounded as often as it has
// pairs, which is seen in float32 from some ten thousand on.
template <class T>
struct TileColumns {
  alignas(64) T memory[kPairSums * kTile];
  SumArrays<T> arrays;
  explicit TileColumns(const PairLossSide<T>& s) : arrays(s, memory, kTile) {
    for (T& sum : memory) sum = 0;
    if (s.running)
      for (int64_t c = 0; c < kTile; ++c) arrays.max[c] = static_cast<T>(kNoScore);
  }
};

template <class T>
struct FactorArrays {
  const T *scale, *linear, *level, *log, *add;
  FactorArrays(const PairLossSide<T>& s, int64_t padded)
      : scale(s.factors + kPairScale * padded),
        linear(s.factors + kPairLinear * padded),
        level(s.factors + kPairLevel * padded),
        log(s.factors + kPairLog * padded),
        add(s.factors + kPairAdd * padded) {}
  DML_INLINE Factors<T> row(int64_t i) const {
    using V = Vec<T>;
    return {V(scale[i]), V(linear[i]), V(level[i]), V(log[i]), V(add[i])};
  }
  DML_INLINE Factors<T> columns(int64_t j) const {
    using V = Vec<T>;
    return {load<V>(scale + j), load<V>(linear + j), load<V>(level + j), load<V>(log + j), load<V>(add + j)};
  }
};

}  // namespace DML_ISA
}  // namespace dml
