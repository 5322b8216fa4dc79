#include "cpu/pair_loss_kernels.h"

#include "cpu/pair_terms.h"
#include "cpu/pair_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

// The value of a vector of pairs, and the squared distance that its gradient needs.
template <class V>
struct Values {
  V v, squared;
};

template <bool Mixed, class T>
DML_INLINE Values<Vec<T>> pair_values(const PairLossProblem<T>& p, const PairTile<T>& tile, Vec<T> dot, int64_t i,
                                      int64_t j) {
  using V = Vec<T>;
  if (p.value == PairValue::similarity) return {dot, V(0)};
  const V squared = tile.template squared<Mixed>(dot, i, j);
  return {p.value == PairValue::distance ? sqrt(squared) : squared, squared};
}

template <class T>
struct Members {
  typename Simd<T>::M pos, neg;
};

template <bool Mixed, class T>
DML_INLINE Members<T> members_of(const PairLossProblem<T>& p, const PairTile<T>& tile, int64_t i, int64_t j) {
  using V = Vec<T>;
  // Similarities do not tell the rows that pad the last tile.
  const int64_t left = p.g.n - j;
  const auto real = lane_mask<V>(left >= Simd<T>::lanes ? ~0u : left <= 0 ? 0u : (1u << left) - 1);
  Members<T> m{lane_mask<V>(0), real};
  if (Mixed) {
    const auto excluded = tile.excluded(i, j);
    const auto same = tile.same_class(i, j);
    m.pos = p.pos.present ? without(same, excluded) : m.pos;
    m.neg = without(real, either(same, excluded));
  }
  m.neg = p.neg.present ? m.neg : lane_mask<V>(0);
  return m;
}

// Adds a vector of pairs of one side to its row and, unless null, to the tile's columns c..; whether any takes part.
template <class Term, class T>
DML_INLINE bool add_pairs(const PairLossSide<T>& s, const SumArrays<T>* columns, typename Simd<T>::M members, Vec<T> v,
                          int64_t i, int64_t j, int64_t c, Sums<T>& row) {
  typename TermOf<Term, T>::Type term(s, members, v, bound_of_row(s, i));
  bool active = any(term.on);
  if (active) term.add_to(s, v, row);
  if (columns == nullptr) return active;
  T* const members_of = columns->members + c;
  store(members_of, load<Vec<T>>(members_of) + select(members, Vec<T>(1), Vec<T>(0)));
  TermOf<Term, T>::rebind(term, s, members, v, bounds_of_columns(s, j));
  if (!any(term.on)) return active;
  Sums<T> sums = columns->columns(c);
  term.add_to(s, v, sums);
  columns->store_columns(c, sums);
  return true;
}

template <class Term, bool Mixed, class T>
void forward_tile(const PairLossProblem<T>& p, const PairTile<T>& tile, int64_t part, int64_t parts, const T* s) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const int64_t first = part * p.q.padded, length = parts * p.q.padded;
  const SumArrays<T> pos(p.pos, p.pos.sums + first, length), neg(p.neg, p.neg.sums + first, length);
  const TileColumns<T> pos_columns(p.pos), neg_columns(p.neg);
  const bool mirrored = p.self && !tile.diagonal;
  const SumArrays<T>* const to_pos = mirrored ? &pos_columns.arrays : nullptr;
  const SumArrays<T>* const to_neg = mirrored ? &neg_columns.arrays : nullptr;
  bool active = false;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    Sums<T> row_pos, row_neg;
    int count_pos = 0, count_neg = 0;
    for (int64_t c = 0; c < tile.cols; c += L) {
      const int64_t j = tile.j0 + c;
      const Members<T> m = members_of<Mixed>(p, tile, i, j);
      const V v = pair_values<Mixed>(p, tile, load<V>(s + r * kTileStride + c), i, j).v;
      if (any(m.neg)) {
        active |= add_pairs<Term>(p.neg, to_neg, m.neg, v, i, j, c, row_neg);
        count_neg += __builtin_popcount(bits(m.neg));
      }
      if (Mixed && any(m.pos)) {
        active |= add_pairs<Term>(p.pos, to_pos, m.pos, v, i, j, c, row_pos);
        count_pos += __builtin_popcount(bits(m.pos));
      }
    }
    if (count_neg > 0) neg.add_row(i, row_neg);
    if (count_pos > 0) pos.add_row(i, row_pos);
    neg.members[i] += static_cast<T>(count_neg);
    pos.members[i] += static_cast<T>(count_pos);
  }
  if (mirrored) {
    pos.add_columns(tile.j0, tile.cols, pos_columns.arrays);
    neg.add_columns(tile.j0, tile.cols, neg_columns.arrays);
  }
  p.active[tile.i * p.col_tiles + tile.j] = active;
}

template <class T>
struct Factors {
  const T *scale, *log, *add;
  Factors(const PairLossSide<T>& s, int64_t padded)
      : scale(s.factors + kPairScale * padded),
        log(s.factors + kPairLog * padded),
        add(s.factors + kPairAdd * padded) {}
};

// dL/dv of a vector of pairs of one side, from the statistics of the row and, in self mode, of the columns.
template <class Term, class T>
DML_INLINE Vec<T> gradient_of_pairs(const PairLossSide<T>& s, const Factors<T>& f, typename Simd<T>::M members,
                                    Vec<T> v, int64_t i, int64_t j, bool symmetric) {
  using V = Vec<T>;
  typename TermOf<Term, T>::Type term(s, members, v, bound_of_row(s, i));
  V gradient = term.gradient(s, V(f.scale[i]), V(f.log[i]), V(f.add[i]));
  if (!symmetric) return gradient;
  TermOf<Term, T>::rebind(term, s, members, v, bounds_of_columns(s, j));
  return gradient + term.gradient(s, load<V>(f.scale + j), load<V>(f.log + j), load<V>(f.add + j));
}

// Turns the tile's dot products s into the weights of the other row, or of f_i - g_j.
template <class Term, bool Mixed, class T>
int weigh_tile(const PairLossProblem<T>& p, const PairTile<T>& tile, int64_t part, T* s, TileWeights<T>& out) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const double eps = sizeof(T) == 4 ? 1.1920928955078125e-07 : 2.220446049250313e-16;
  const Factors<T> pos(p.pos, p.q.padded), neg(p.neg, p.q.padded);
  const bool pulls = p.value != PairValue::similarity;  // only distances need the sums of their weights
  int weights = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    V row_weight(0);
    for (int64_t c = 0; c < tile.cols; c += L) {
      const int64_t j = tile.j0 + c;
      T* const at = s + r * kTileStride + c;
      const Members<T> m = members_of<Mixed>(p, tile, i, j);
      const Values<V> values = pair_values<Mixed>(p, tile, load<V>(at), i, j);
      V gradient(0);
      if (any(m.neg)) gradient = gradient_of_pairs<Term>(p.neg, neg, m.neg, values.v, i, j, p.self);
      if (Mixed && any(m.pos)) gradient = gradient + gradient_of_pairs<Term>(p.pos, pos, m.pos, values.v, i, j, p.self);
      const auto weighted = gradient != V(0);
      if (!any(weighted)) {
        store(at, V(0));
        continue;
      }
      const V norms = p.value == PairValue::distance ? tile.norms(i, j) : V(0);
      const V weight = select(weighted, gradient_of_value(gradient, values.squared, norms, p.value, eps), V(0));
      store(at, weight);
      if (pulls) row_weight = row_weight + weight;
      if (pulls && out.columns) store(out.weights_g + j, load<V>(out.weights_g + j) + weight);
      weights += __builtin_popcount(bits(weighted));
      out.row_active[r / Simd<T>::strip] = out.col_active[c / Simd<T>::strip] = true;
      if (L > Simd<T>::strip) out.col_active[c / Simd<T>::strip + 1] = true;
    }
    p.weights_q[part * p.q.padded + i] += sum(row_weight);
  }
  return weights;
}

// Calls back with the term of the problem.
template <class T, class Call>
DML_INLINE void with_term(const PairLossProblem<T>& p, const Call& call) {
  switch (p.term) {
#define DML_CASE(name, type) \
  case PairTerm::name:       \
    return call(type());
    DML_PAIR_TERMS(DML_CASE)
#undef DML_CASE
    default:
      return call(ExpTerm());
  }
}
template <class T>
void forward(const PairLossProblem<T>& p, int64_t i, int64_t j, int64_t part, int64_t parts) {
  const PairTile<T> tile(p.q, p.g, p.self, i, j);
  if (!tile.mixed && !p.neg.present) return;
  [[maybe_unused]] const WithoutDenormals fast;
  alignas(64) T s[kTile * kTileStride];
  tile.dot_products(s);
  with_term(p, [&](auto term) {
    using Term = decltype(term);
    tile.mixed ? forward_tile<Term, true>(p, tile, part, parts, s) : forward_tile<Term, false>(p, tile, part, parts, s);
  });
}

template <class T>
void backward(const PairLossProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  if (!p.active[i * p.col_tiles + j]) return;
  [[maybe_unused]] const WithoutDenormals fast;
  alignas(64) T s[kTile * kTileStride];
  const PairTile<T> tile(p.q, p.g, p.self, i, j);
  tile.dot_products(s);
  TileWeights<T> out;
  out.columns = p.self ? !tile.diagonal : p.gallery_grad;
  out.weights_g = p.weights_g;
  with_term(p, [&](auto term) {
    using Term = decltype(term);
    const int weights =
        tile.mixed ? weigh_tile<Term, true>(p, tile, part, s, out) : weigh_tile<Term, false>(p, tile, part, s, out);
    out.dense = weights * kSparse > tile.rows * tile.cols;
  });
  add_tile(tile, s, s, out, p.rows_q + part * p.q.padded * p.q.stride, p.rows_g);
}

template <class T>
PairLossKernels<T> table() {
  return {forward<T>, backward<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
PairLossKernels<float> PairLossKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
PairLossKernels<double> PairLossKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
