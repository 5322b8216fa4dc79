#pragma once
// The sides of a pair loss as its kernels compute them: what a pair adds to the sums of a row, and what it gives to the
// gradient. Exponentials are to the base 2, and the factors are folded into the numbers of a side.

#include "cuda/number.cuh"

#include "cuda/pair_engine.cuh"
#include "cuda/pair_loss.h"
#include "cuda/pair_values.cuh"

namespace dml {

// Terms beside those of DML_PAIR_TERMS.
struct ExpTerm {};
struct MomentTerm {};

// Calls back with the term of a side.
template <class Call>
void with_term(PairTerm term, const Call& call) {
  switch (term) {
#define DML_CASE(name, type) \
  case PairTerm::name:       \
    return call(type());
    DML_PAIR_TERMS(DML_CASE)
#undef DML_CASE
    case PairTerm::exp:
      return call(ExpTerm());
    default:
      return call(MomentTerm());
  }
}

// The numbers of a side, of the type that the kernels compute in.
template <class T>
struct SideOf {
  bool present;
  T scale, base, offset;                          // x = scale (v - base) = scale v + offset
  T score_slope, ramp, ramp_offset, temperature;  // of the scores, times log2 e unless they are natural
  bool natural;
  T shift;            // what is subtracted from them, unless maxima are running
  T whole_shift;      // the same of score_slope v, without a ramp
  T direction, open;  // of pairs that a bound mines: towards which values they lie of it, and a bound that none meets

  SideOf(const PairSide& side, double shift, bool natural, bool bounded)
      : present(side.present()),
        scale(static_cast<T>(side.scale)),
        base(static_cast<T>(side.base)),
        offset(static_cast<T>(-side.scale * side.base)),
        score_slope(static_cast<T>(side.scale * (natural ? 1 : kLog2E))),
        ramp(static_cast<T>(side.ramp)),
        ramp_offset(static_cast<T>(side.ramp == 0 ? 1 : -side.ramp * side.origin)),
        temperature(static_cast<T>(side.temperature * (natural ? 1 : kLog2E))),
        natural(natural),
        shift(static_cast<T>(shift * kLog2E)),
        whole_shift(static_cast<T>((shift + side.scale * side.base) * kLog2E)),
        direction(static_cast<T>(!bounded || side.scale > 0 ? 1
                                 : side.scale < 0           ? -1
                                                            : 0)),
        open(static_cast<T>(-INFINITY)) {}

  // One of two, by its numbers: an address that is not constant would take a copy of both in memory.
  static DML_DEVICE SideOf choose(bool first, const SideOf& a, const SideOf& b) {
    SideOf side = b;
#define DML_CHOOSE(name) side.name = first ? a.name : b.name;
    DML_CHOOSE(present)
    DML_CHOOSE(scale)
    DML_CHOOSE(base)
    DML_CHOOSE(offset)
    DML_CHOOSE(score_slope)
    DML_CHOOSE(ramp)
    DML_CHOOSE(ramp_offset)
    DML_CHOOSE(temperature)
    DML_CHOOSE(natural)
    DML_CHOOSE(shift)
    DML_CHOOSE(whole_shift)
    DML_CHOOSE(direction)
    DML_CHOOSE(open)
#undef DML_CHOOSE
    return side;
  }
};

// What a query brings to the gradient of its pairs: the bound, what is subtracted from scores, and what its sums take
// of the term, of the value, and of a moment x - level.
template <class T>
struct PairEnd {
  T bound, shift, of_term, of_value, linear, level;
};

// e^(score - shift), score = factor times value. Where pairs are not alike a shift may have been a score: its own pair
// has exactly 0 left of it, in the gradient as in the sums, however large scores are. Natural ones may be large, and
// their exponentials are those of the library.
template <bool Alike, class T>
DML_DEVICE T exponential(const SideOf<T>& side, T factor, T value, T shift) {
  if constexpr (Alike) return exp2_of(fma(factor, value, -shift));
  const T rest = factor * value - shift;
  return side.natural ? exp(rest) : exp2_of(rest);
}

// A term that is added up. Pairs take part where it is active; those of NaN never.
template <class Term>
struct Summand {
  static constexpr bool kScored = false, kMoment = false, kUnrolled = std::is_same_v<Term, PairHinge>;
  static constexpr int kSums = 3;  // of the term, of the value, of the slope

  template <class T>
  static DML_DEVICE T bound(const SideOf<T>& side) {
    return side.base;
  }
  // Whether a pair takes part, and what it adds to the sums: value[k] times factor[k]. Plain: the shift is constant.
  template <bool Plain, class T>
  static DML_DEVICE bool add(const SideOf<T>& side, T v, T bound, T, T (&value)[kSums], T (&factor)[kSums]) {
    const T x = side.scale * (v - bound);
    value[0] = Term::term(x), value[1] = v, value[2] = Term::slope(x);
    factor[0] = factor[1] = factor[2] = T(1);
    return Term::active(x);
  }
  // Whether a pair takes part, and dL/dv by an end of it.
  template <bool Alike, class T>
  static DML_DEVICE bool pull(const SideOf<T>& side, T v, const PairEnd<T>& end, T& slope) {
    const T x = side.scale * (v - end.bound);
    slope = fma(end.of_term, Term::slope(x), end.of_value);
    return Term::active(x);
  }
  // Of a plain pair: whether it takes part, x, the term, and what of its slope is no constant (`constant_slope`).
  template <class T>
  static DML_DEVICE bool plain(const SideOf<T>& side, T v, T& x, T& term, T& slope) {
    x = fma(side.scale, v, side.offset);
    term = Term::term(x), slope = Term::slope(x);
    return Term::active(x);
  }
  template <class T>
  static DML_DEVICE T constant_slope(const SideOf<T>&) {
    return T(1);
  }
};

// e^score, score = scale max(ramp (v - origin), 0) (v - base); the ramp is a constant of the gradient.
template <>
struct Summand<ExpTerm> {
  static constexpr bool kScored = true, kMoment = false, kUnrolled = true;
  static constexpr int kSums = 2;  // of e^score, of the value

  template <class T>
  static DML_DEVICE T ramp_of(const SideOf<T>& side, T v) {
    return max(fma(side.ramp, v, side.ramp_offset), T(0));
  }
  template <class T>
  static DML_DEVICE T score(const SideOf<T>& side, T v) {
    return side.score_slope * (ramp_of(side, v) * (v - side.base));
  }
  template <class T>
  static DML_DEVICE T bound(const SideOf<T>& side) {
    return side.open;
  }
  template <class T>
  static DML_DEVICE bool takes_part(const SideOf<T>& side, T v, T bound) {
    return side.direction * (v - bound) > T(0);
  }
  template <bool Plain, class T>
  static DML_DEVICE bool add(const SideOf<T>& side, T v, T bound, T shift, T (&value)[kSums], T (&factor)[kSums]) {
    value[0] = exponential<Plain>(side, side.score_slope, ramp_of(side, v) * (v - side.base), shift);
    value[1] = v;
    factor[0] = factor[1] = T(1);
    return takes_part(side, v, bound);
  }
  template <bool Alike, class T>
  static DML_DEVICE bool pull(const SideOf<T>& side, T v, const PairEnd<T>& end, T& slope) {
    const T ramp = ramp_of(side, v), e = exponential<Alike>(side, side.score_slope, ramp * (v - side.base), end.shift);
    slope = fma(end.of_term * (side.score_slope * ramp), e, end.of_value);
    return takes_part(side, v, end.bound);
  }
  // Without a ramp.
  template <class T>
  static DML_DEVICE bool plain(const SideOf<T>& side, T v, T&, T& term, T& slope) {
    term = slope = exp2_of(fma(side.score_slope, v, -side.whole_shift));
    return true;
  }
  template <class T>
  static DML_DEVICE T constant_slope(const SideOf<T>& side) {
    return side.score_slope;
  }
};

// x > 0 under the weights e^(T x).
template <>
struct Summand<MomentTerm> {
  static constexpr bool kScored = true, kMoment = true, kUnrolled = true;
  static constexpr int kSums = 3;  // of e^score, of the value, of e^score x

  template <class T>
  static DML_DEVICE T argument(const SideOf<T>& side, T v) {
    return fma(side.scale, v, side.offset);
  }
  template <class T>
  static DML_DEVICE T score(const SideOf<T>& side, T v) {
    return side.temperature * argument(side, v);
  }
  template <class T>
  static DML_DEVICE T bound(const SideOf<T>& side) {
    return side.base;
  }
  template <class T>
  static DML_DEVICE bool takes_part(const SideOf<T>& side, T v, T) {
    return argument(side, v) > T(0);
  }
  template <bool Plain, class T>
  static DML_DEVICE bool add(const SideOf<T>& side, T v, T, T shift, T (&value)[kSums], T (&factor)[kSums]) {
    const T x = argument(side, v);
    const T e = exponential<Plain>(side, side.temperature, x, shift);
    value[0] = value[2] = e, value[1] = v;
    factor[0] = factor[1] = T(1), factor[2] = x;
    return x > T(0);
  }
  template <bool Alike, class T>
  static DML_DEVICE bool pull(const SideOf<T>& side, T v, const PairEnd<T>& end, T& slope) {
    const T x = argument(side, v), e = exponential<Alike>(side, side.temperature, x, end.shift);
    slope = fma(fma(end.linear, x - end.level, end.of_term), e, end.of_value);
    return x > T(0);
  }
  // Without a gradient of the weights.
  template <class T>
  static DML_DEVICE bool plain(const SideOf<T>& side, T v, T& x, T& term, T& slope) {
    x = argument(side, v);
    term = slope = exp2_of(fma(side.temperature, x, -side.shift));
    return x > T(0);
  }
  template <class T>
  static DML_DEVICE T constant_slope(const SideOf<T>&) {
    return T(1);
  }
};

// A pair loss as its kernels take it.
template <class T>
struct PairLoss {
  ValueOptions values;
  bool running, neg_totals;
  SideOf<T> pos, neg;
  const T* bounds;  // (2, queries) or null
  int64_t queries;

  // natural: maxima of scores are kept, and a score is then not multiplied by log2 e: the largest has no other
  // rounding.
  PairLoss(const PairLossProblem& problem, bool natural, const T* bounds, int64_t queries)
      : values{problem.value, problem.normalize, problem.apart, false},
        running(problem.running),
        neg_totals(problem.neg_totals),
        pos(problem.pos, problem.pos_shift, natural, bounds != nullptr),
        neg(problem.neg, problem.neg_shift, natural, bounds != nullptr),
        bounds(bounds),
        queries(queries) {}

  DML_DEVICE SideOf<T> side(bool positive) const { return SideOf<T>::choose(positive, pos, neg); }
  // What is subtracted from the scores of a row, before any is known.
  DML_DEVICE T first_shift(bool positive) const { return running ? T(kNoScore) : positive ? pos.shift : neg.shift; }
  // Whether all pairs of negatives are alike: a tile of them then needs no more than their values.
  DML_DEVICE bool is_plain() const { return !values.apart && !running && bounds == nullptr; }
  // Whether the pairs of plain tiles have a formula that is short enough to be unrolled.
  DML_DEVICE bool is_short() const { return neg_totals && neg.ramp == T(0); }
  // Whether a tile may have a pair that counts, by what it holds.
  DML_DEVICE bool meets(unsigned char contents) const {
    return ((contents & kPositives) != 0 && pos.present) || ((contents & kNegatives) != 0 && neg.present);
  }
};

}  // namespace dml
