#pragma once
// Terms of pair losses on vectors of pairs: what takes part, what a row or a vector of columns adds up, and dL/dv.

#include "common/tile_schedule.h"
#include "cpu/pair_loss_kernels.h"
#include "cpu/simd.h"

namespace dml {
inline namespace DML_ISA {

// A side with its numbers as vectors, so that no loop converts them.
template <class T>
struct SideVectors {
  using V = Vec<T>;
  struct Limit {
    V sign, limit;
  };
  V scale, base, origin, temperature, shift;
  double ramp;
  Limit limit;
  const T* bounds;

  explicit SideVectors(const PairLossSide<T>& s)
      : scale(s.side.scale),
        base(s.side.base),
        origin(s.side.origin),
        temperature(s.side.temperature),
        shift(s.shift),
        ramp(s.side.ramp),
        limit{V(s.limit.sign), V(s.limit.limit)},
        bounds(s.bounds) {}
  DML_INLINE V bound_of_row(int64_t i) const { return bounds != nullptr ? V(bounds[i]) : base; }
  DML_INLINE V bounds_of_columns(int64_t j) const { return load<V>(bounds + j); }
};

// What a row, or a vector of columns, adds up on one side, members aside.
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

// A vector of pairs under a term that is added up: which of the members take part (on), what they add to sums, dL/dv.
template <class Term, class T>
struct Added {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  // Whether bounds may replace the base; whether the similarity or the squared distance tells, before there is a value,
  // who takes part; whether maxima are running; and whether there is a moment.
  static constexpr bool kBounded = true, kTested = false, kRunning = false, kMoment = false;
  V v, x;
  M on;
  static DML_INLINE M possible(const SideVectors<T>&, V) { return lane_mask<V>(~0u); }
  DML_INLINE Added(const SideVectors<T>& s, M members, V v, V bound)
      : v(v), x(pair_argument(v, bound, s)), on(both(members, Term::active(x))) {}
  // The same pairs with other bounds: those of the columns instead of the row's.
  DML_INLINE void rebind(const SideVectors<T>& s, M members, V bound) { *this = Added(s, members, v, bound); }
  DML_INLINE void add_to(const SideVectors<T>&, Sums<T>& sums) const {
    sums.stat = sums.stat + masked(on, Term::term(x));
    sums.total = sums.total + masked(on, v);
    sums.slope = sums.slope + masked(on, Term::slope(x));
  }
  DML_INLINE V gradient(const Factors<T>& f) const { return masked(on, fma(f.scale, Term::slope(x), f.add)); }
};

// The same under the log-sum-exp.
template <bool Running, class T>
struct Scored {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  static constexpr bool kBounded = true, kTested = false, kRunning = Running, kMoment = false;
  V v, slope, score, e;  // e = e^(score - shift), unless maxima are running
  M on;
  static DML_INLINE M possible(const SideVectors<T>&, V) { return lane_mask<V>(~0u); }
  DML_INLINE Scored(const SideVectors<T>& s, M members, V v, V bound)
      : v(v), slope(score_slope(v, s)), score(slope * (v - s.base)), on(members) {
    e = Running ? V(0) : exp_normal(score - s.shift);
    if (s.bounds != nullptr) rebind(s, members, bound);
  }
  DML_INLINE void rebind(const SideVectors<T>& s, M members, V bound) {
    on = both(members, pair_argument(v, bound, s) > V(0));
  }
  DML_INLINE void add_to(const SideVectors<T>& s, Sums<T>& sums) const {
    if (Running) {
      PairLogSum<V> log_sum{sums.stat, sums.max};
      add_score<true>(log_sum, on, score);
      sums.stat = log_sum.sum;
      sums.max = log_sum.max;
    } else {
      sums.stat = sums.stat + masked(on, e);
    }
    sums.total = sums.total + masked(on, v);
    if (s.bounds != nullptr) sums.slope = sums.slope + masked(on, V(1));
  }
  DML_INLINE V gradient(const Factors<T>& f) const {
    const V weight = Running ? exp(score - f.log) : e;
    return masked(on, fma(f.scale * weight, slope, f.add));
  }
};

// The same under the moment.
template <bool Running, class T>
struct Moment {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  static constexpr bool kBounded = false, kTested = true, kRunning = Running, kMoment = true;
  V v, x, score, e;  // e = e^(score - shift), unless maxima are running
  M on;
  static DML_INLINE M possible(const SideVectors<T>& s, V raw) { return beyond(raw, s.limit); }
  DML_INLINE Moment(const SideVectors<T>& s, M members, V v, V)
      : v(v), x(pair_argument(v, s.base, s)), score(s.temperature * x), on(members) {
    e = Running ? V(0) : exp_normal(score - s.shift);
  }
  DML_INLINE void add_to(const SideVectors<T>&, Sums<T>& sums) const {
    if (Running) {
      PairMoment<V> moment{sums.stat, sums.moment, sums.max};
      add_moment<true>(moment, on, x, score);
      sums.stat = moment.sum;
      sums.moment = moment.moment;
      sums.max = moment.max;
    } else {
      const V weight = masked(on, e);
      sums.stat = sums.stat + weight;
      sums.moment = fma(weight, x, sums.moment);
    }
    sums.total = sums.total + masked(on, v);
    sums.slope = sums.slope + masked(on, V(1));
  }
  DML_INLINE V gradient(const Factors<T>& f) const {
    const V weight = Running ? exp(score - f.log) : e;
    return masked(on, fma(weight, fma(f.linear, x - f.level, f.scale), f.add));
  }
};

// The sums of columns in arrays of a length: those that pairs have of them.
template <class Pairs, class T>
DML_INLINE Sums<T> load_sums(const T* at, int64_t length) {
  using V = Vec<T>;
  Sums<T> s;
  s.stat = load<V>(at + kPairStat * length);
  if (Pairs::kRunning) s.max = load<V>(at + kPairMax * length);
  if (Pairs::kMoment) s.moment = load<V>(at + kPairMoment * length);
  s.total = load<V>(at + kPairTotal * length);
  s.slope = load<V>(at + kPairSlope * length);
  return s;
}
template <class Pairs, class T>
DML_INLINE void store_sums(T* at, int64_t length, const Sums<T>& s) {
  store(at + kPairStat * length, s.stat);
  if (Pairs::kRunning) store(at + kPairMax * length, s.max);
  if (Pairs::kMoment) store(at + kPairMoment * length, s.moment);
  store(at + kPairTotal * length, s.total);
  store(at + kPairSlope * length, s.slope);
}

// Merges the lanes of a row's sums into its place in the arrays.
template <class Pairs, class T>
DML_INLINE void add_row(T* at, int64_t length, const Sums<T>& s) {
  using V = Vec<T>;
  T shrink = 1;
  V factor(1);
  if (Pairs::kRunning) {
    T& max = at[kPairMax * length];
    const T lane_top = largest(s.max), top = lane_top > max ? lane_top : max;
    alignas(64) T lanes[Simd<T>::lanes];
    store(lanes, exp(V(max - top)));
    shrink = lanes[0];
    factor = exp(s.max - V(top));
    max = top;
  }
  at[kPairStat * length] = at[kPairStat * length] * shrink + sum(s.stat * factor);
  if (Pairs::kMoment) at[kPairMoment * length] = at[kPairMoment * length] * shrink + sum(s.moment * factor);
  at[kPairTotal * length] += sum(s.total);
  at[kPairSlope * length] += sum(s.slope);
}

// The columns' sums of one tile. Added to those of all tiles pair by pair, a row's would be rounded as often as it has
// pairs, which is seen in float32 from some ten thousand on.
template <class Pairs, class T>
struct TileColumns {
  alignas(64) T memory[kPairSums * kTile];

  void clear() {
    for (T& sum : memory) sum = 0;
    for (int64_t c = 0; Pairs::kRunning && c < kTile; ++c) memory[kPairMax * kTile + c] = static_cast<T>(kNoScore);
  }
  DML_INLINE void add(int64_t c, const SideVectors<T>& side, const Pairs& pairs) {
    Sums<T> sums = load_sums<Pairs>(memory + c, kTile);
    pairs.add_to(side, sums);
    store_sums<Pairs>(memory + c, kTile, sums);
  }
  DML_INLINE void add_members(int64_t c, Vec<T> count) {
    T* const at = memory + kPairMembers * kTile + c;
    store(at, load<Vec<T>>(at) + count);
  }
  // Adds them to the arrays.
  void merge_into(T* at, int64_t length, int64_t columns) const {
    using V = Vec<T>;
    for (int64_t c = 0; c < columns; c += Simd<T>::lanes) {
      Sums<T> sums = load_sums<Pairs>(at + c, length), more = load_sums<Pairs>(memory + c, kTile);
      if (Pairs::kRunning) {
        const V top = max(sums.max, more.max), shrink = exp(sums.max - top), other = exp(more.max - top);
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
      store_sums<Pairs>(at + c, length, sums);
    }
  }
};

template <class T>
struct FactorArrays {
  const T* first;
  int64_t padded;
  DML_INLINE const T* of(PairFactor factor, int64_t i) const { return first + factor * padded + i; }
  DML_INLINE Factors<T> row(int64_t i) const {
    using V = Vec<T>;
    return {V(*of(kPairScale, i)), V(*of(kPairLinear, i)), V(*of(kPairLevel, i)), V(*of(kPairLog, i)),
            V(*of(kPairAdd, i))};
  }
  DML_INLINE Factors<T> columns(int64_t j) const {
    using V = Vec<T>;
    return {load<V>(of(kPairScale, j)), load<V>(of(kPairLinear, j)), load<V>(of(kPairLevel, j)),
            load<V>(of(kPairLog, j)), load<V>(of(kPairAdd, j))};
  }
};

}  // namespace DML_ISA
}  // namespace dml
