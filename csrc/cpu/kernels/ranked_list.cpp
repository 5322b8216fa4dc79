#include "cpu/ranked_list_kernels.h"

#include "cpu/pair_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

template <class T>
struct Members {
  typename Simd<T>::M pos, neg;
};

// The non-trivial sets that the pairs of row i with columns j.. belong to.
template <bool Mixed, class T>
DML_INLINE Members<T> classify(const RankedListProblem<T>& p, const PairTile<T>& tile, int64_t i, int64_t j,
                               Vec<T> squared) {
  using V = Vec<T>;
  Members<T> m{lane_mask<V>(0), in_negative_set(squared, p.neg)};
  if (Mixed) {
    const auto excluded = tile.excluded(i, j);
    const auto same = tile.same_class(i, j);
    m.neg = without(m.neg, either(same, excluded));
    if (!p.easy) m.pos = without(both(same, in_positive_set(squared, p.pos)), excluded);
  }
  if (p.apart) {
    m.pos = both(m.pos, squared > V(0));
    m.neg = both(m.neg, squared > V(0));
  }
  return m;
}

template <class T>
struct RowSums {
  T *sum, *moment, *max;
  RowSums(T* first, int64_t length, int set) : sum(first + set * length), moment(sum + length), max(moment + length) {}
};

template <bool Running, class T>
DML_INLINE void add_to_columns(const RowSums<T>& s, int64_t j, typename Simd<T>::M members, Vec<T> v,
                               const RankedSet& set) {
  using V = Vec<T>;
  WeightedSum<V> sum{load<V>(s.sum + j), load<V>(s.moment + j), Running ? load<V>(s.max + j) : V(0)};
  add_where<Running>(sum, members, v, set);
  store(s.sum + j, sum.sum);
  store(s.moment + j, sum.moment);
  if (Running) store(s.max + j, sum.max);
}

// Merges the lanes of a vector of partial sums into one row.
template <bool Running, class T>
DML_INLINE void add_to_row(const RowSums<T>& s, int64_t i, const WeightedSum<Vec<T>>& lanes) {
  using V = Vec<T>;
  T shrink = 1;
  V factor(1);
  if (Running) {
    const T lane_top = largest(lanes.max), old_top = s.max[i];
    const T top = lane_top > old_top ? lane_top : old_top;
    alignas(64) T one[Simd<T>::lanes];
    store(one, exp(V(old_top - top)));
    shrink = one[0];
    factor = exp(lanes.max - V(top));
    s.max[i] = top;
  }
  s.sum[i] = s.sum[i] * shrink + sum(lanes.sum * factor);
  s.moment[i] = s.moment[i] * shrink + sum(lanes.moment * factor);
}

template <bool Running, bool Mixed, class T>
void forward_tile(const RankedListProblem<T>& p, const PairTile<T>& tile, int64_t part, int64_t parts, const T* s) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const int64_t length = p.q.padded * parts;
  T* const first = p.sums + part * p.q.padded;
  const RowSums<T> pos(first, length, kPosSum), neg(first, length, kNegSum);
  const bool columns = p.self && !tile.diagonal;
  const T times = columns ? 2 : 1;  // in the totals, (i, j) stands for (j, i) too
  bool active = false;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    WeightedSum<V> row_pos = empty_sum<Running, V>(), row_neg = empty_sum<Running, V>();
    V dist_pos(0), dist_neg(0);
    int count_pos = 0, count_neg = 0;
    for (int64_t c = 0; c < tile.cols; c += L) {
      const int64_t j = tile.j0 + c;
      const V squared = tile.template squared<Mixed>(load<V>(s + r * kTileStride + c), i, j);
      const Members<T> m = classify<Mixed>(p, tile, i, j, squared);
      if (any(m.neg)) {
        const V d = sqrt(squared), v = violation(d, p.neg);
        add_where<Running>(row_neg, m.neg, v, p.neg);
        if (columns) add_to_columns<Running>(neg, j, m.neg, v, p.neg);
        dist_neg = dist_neg + select(m.neg, d, V(0));
        count_neg += __builtin_popcount(bits(m.neg));
      }
      if (Mixed && any(m.pos)) {
        const V d = sqrt(squared), v = violation(d, p.pos);
        add_where<Running>(row_pos, m.pos, v, p.pos);
        if (columns) add_to_columns<Running>(pos, j, m.pos, v, p.pos);
        dist_pos = dist_pos + select(m.pos, d, V(0));
        count_pos += __builtin_popcount(bits(m.pos));
      }
    }
    if (count_neg > 0) {
      add_to_row<Running>(neg, i, row_neg);
      first[kNegCount * length + i] += times * static_cast<T>(count_neg);
      first[kNegDist * length + i] += times * sum(dist_neg);
    }
    if (count_pos > 0) {
      add_to_row<Running>(pos, i, row_pos);
      first[kPosCount * length + i] += times * static_cast<T>(count_pos);
      first[kPosDist * length + i] += times * sum(dist_pos);
    }
    active |= count_neg + count_pos > 0;
  }
  p.active[tile.i * p.col_tiles + tile.j] = active;
}

template <class T>
void forward(const RankedListProblem<T>& p, int64_t i, int64_t j, int64_t part, int64_t parts) {
  alignas(64) T s[kTile * kTileStride];
  const PairTile<T> tile(p.q, p.g, p.self, i, j);
  tile.dot_products(s);
  if (p.running) {
    tile.mixed ? forward_tile<true, true>(p, tile, part, parts, s) : forward_tile<true, false>(p, tile, part, parts, s);
  } else {
    tile.mixed ? forward_tile<false, true>(p, tile, part, parts, s)
               : forward_tile<false, false>(p, tile, part, parts, s);
  }
}

template <class T>
struct Factors {
  const T *scale, *level, *log_denom;
  Factors(const T* first, int64_t length, int set)
      : scale(first + set * length), level(scale + length), log_denom(level + length) {}
  DML_INLINE RowGradient<Vec<T>> row(int64_t i) const {
    using V = Vec<T>;
    return {V(scale[i]), V(level[i]), V(log_denom[i])};
  }
  DML_INLINE RowGradient<Vec<T>> column(int64_t j) const {
    using V = Vec<T>;
    return {load<V>(scale + j), load<V>(level + j), load<V>(log_denom + j)};
  }
};

// dL/d(distance) of the pairs, from the loss of the row and from the loss of the column (self mode).
template <class V>
struct EndWeights {
  V row, column;
};

template <bool Running, class T>
DML_INLINE void add_weights(EndWeights<Vec<T>>& w, typename Simd<T>::M members, Vec<T> d, const RankedSet& set,
                            const RowGradient<Vec<T>>& row, const Factors<T>& columns, bool symmetric, int64_t j) {
  using V = Vec<T>;
  const V v = violation(d, set);
  const V e = Running ? V(0) : exp(v * V(set.temperature));
  const V sign(set.sign);
  w.row = select(members, sign * pair_gradient<Running>(row, v, e, set), w.row);
  if (symmetric) w.column = select(members, sign * pair_gradient<Running>(columns.column(j), v, e, set), w.column);
}

// Turns the tile's dot products s into weights (dL/dd)/d of (f_i - g_j): of the query rows in s, and in `back`, where
// the ends of a pair get different ones, of the gallery rows.
template <bool Running, bool Mixed, class T>
int weigh_tile(const RankedListProblem<T>& p, const PairTile<T>& tile, int64_t part, T* s, T* back,
               TileWeights<T>& out) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const double eps = sizeof(T) == 4 ? 1.1920928955078125e-07 : 2.220446049250313e-16;
  const Factors<T> pos(p.factors, p.q.padded, kPosScale), neg(p.factors, p.q.padded, kNegScale);
  const bool symmetric = p.self && (p.both_ends || !tile.diagonal);
  int members = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    const RowGradient<V> row_pos = pos.row(i), row_neg = neg.row(i);
    V row_weight(0);
    for (int64_t c = 0; c < tile.cols; c += L) {
      const int64_t j = tile.j0 + c;
      const V squared = tile.template squared<Mixed>(load<V>(s + r * kTileStride + c), i, j);
      const Members<T> m = classify<Mixed>(p, tile, i, j, squared);
      const auto in_set = either(m.pos, m.neg);
      T* const at = s + r * kTileStride + c;
      if (!any(in_set)) {
        store(at, V(0));
        if (back != s) store(back + r * kTileStride + c, V(0));
        continue;
      }
      const V d = sqrt(squared);
      EndWeights<V> w{V(0), V(0)};
      add_weights<Running>(w, m.neg, d, p.neg, row_neg, neg, symmetric, j);
      if (Mixed && any(m.pos)) add_weights<Running>(w, m.pos, d, p.pos, row_pos, pos, symmetric, j);
      const V scale = select(in_set, gradient_scale(squared, tile.norms(i, j), eps), V(0));
      // With both ends, one symmetric weight serves both; else each end keeps the weight of its own loss.
      const V to_row = (p.both_ends ? w.row + w.column : w.row) * scale;
      const V to_column = p.both_ends ? to_row : w.column * scale;
      store(at, to_row);
      if (back != s) store(back + r * kTileStride + c, to_column);
      row_weight = row_weight + to_row;
      if (out.columns) store(out.weights_g + j, load<V>(out.weights_g + j) + to_column);
      members += __builtin_popcount(bits(in_set));
      out.row_active[r / Simd<T>::strip] = out.col_active[c / Simd<T>::strip] = true;
      if (L > Simd<T>::strip) out.col_active[c / Simd<T>::strip + 1] = true;
    }
    p.weights_q[part * p.q.padded + i] += sum(row_weight);
  }
  return members;
}

template <class T>
void backward(const RankedListProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  if (!p.active[i * p.col_tiles + j]) return;
  alignas(64) T s[kTile * kTileStride];
  alignas(64) T other[kTile * kTileStride];
  const PairTile<T> tile(p.q, p.g, p.self, i, j);
  tile.dot_products(s);
  TileWeights<T> out;
  out.columns = p.self ? !tile.diagonal : p.both_ends;
  out.weights_g = p.weights_g;
  T* const back = out.columns && !p.both_ends ? other : s;
  int members;
  if (p.running) {
    members = tile.mixed ? weigh_tile<true, true>(p, tile, part, s, back, out)
                         : weigh_tile<true, false>(p, tile, part, s, back, out);
  } else {
    members = tile.mixed ? weigh_tile<false, true>(p, tile, part, s, back, out)
                         : weigh_tile<false, false>(p, tile, part, s, back, out);
  }
  out.dense = members * kSparse > tile.rows * tile.cols;
  add_tile(tile, s, back, out, p.rows_q + part * p.q.padded * p.q.stride, p.rows_g);
}

template <class T>
RankedListKernels<T> table() {
  return {forward<T>, backward<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
RankedListKernels<float> RankedListKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
RankedListKernels<double> RankedListKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
