#pragma once
// Kernels of the row statistics of pair losses as the launcher calls them.

#include "common/pair_loss.h"
#include "cuda/pairs.h"

namespace dml {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;  // kernels take exponentials to the base 2

struct PairLossProblem {
  PairValue value;
  PairSide pos, neg;
  double pos_shift, neg_shift;  // what is subtracted from every score, unless maxima are running: floats over log2 e
  bool weight_grad, apart, neg_totals, running, normalize;

  // Sides of two different terms take a launch each.
  DML_HD bool mixed() const { return pos.present() && neg.present() && pos.term != neg.term; }
  // The term of both sides, or of the only one.
  DML_HD PairTerm term() const { return pos.present() ? pos.term : neg.present() ? neg.term : PairTerm::hinge; }
  DML_HD bool has_moment() const {
    return (pos.present() && pos.term == PairTerm::moment) || (neg.present() && neg.term == PairTerm::moment);
  }
  PairLossProblem only(bool positive) const {
    PairLossProblem one = *this;
    (positive ? one.neg : one.pos).term = PairTerm::none;
    return one;
  }
};

// What a row adds up on each side: the term, the values, members and slopes; with a moment, e^score x; and the running
// maximum if there is one.
DML_HD constexpr int pair_sums(bool has_moment, bool running) { return 4 + has_moment + running; }
DML_HD inline int pair_sums(const PairLossProblem& problem) { return pair_sums(problem.has_moment(), problem.running); }

// bounds (2, M) or null. sums (2, pair_sums, splits, M); symmetric: one copy of zeros that is added to. active (row
// tiles, column tiles): TileFlags.
template <class T>
void pair_loss_statistics(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem,
                          const T* bounds, bool symmetric, int64_t splits, T* sums, unsigned char* active,
                          Stream stream);

template <class T>
struct PairLossRows {
  const T* sums;
  int64_t splits, count;
  const int64_t* order;  // the caller's row of each, or null
  const RowState* state;
  const int32_t* gallery_non_finite;
  T *stats, *log_sums, *totals, *members, *slopes;  // (2, M) by the caller's rows
};
template <class T>
void pair_loss_finish(const PairLossProblem& problem, const PairLossRows<T>& rows, Stream stream);

// (2, M): what a backward is given.
template <class T>
struct PairLossGradients {
  const T *stats, *log_sums, *sums;   // of the loss
  const T *own_stats, *own_log_sums;  // the statistics themselves
};

// Of each side of a row: what the gradient takes the term's times, what it takes the value's times, what is subtracted
// from scores (the log-sum-exp with running maxima; without, it is in the other factors), and of a moment what it takes
// x - level times, and that level.
constexpr int kPairFactors = 5;
// factors (2, kPairFactors, padded), M padded to whole tiles; what is beyond M is read, and never used.
template <class T>
void pair_loss_factors(const PairLossProblem& problem, int64_t count, int64_t padded,
                       const PairLossGradients<T>& gradients, T* factors, Stream stream);

// Which ends of a pair send a gradient to the rows of the stripe: that of the row, and that of the column.
struct PairEnds {
  bool row, col;
};
template <class T>
void pair_loss_weights(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem, PairEnds ends,
                       const T* factors, int64_t padded, const T* bounds, int64_t queries, const Stripe& stripe,
                       int64_t splits, T* weight_sums, Stream stream);

}  // namespace dml
