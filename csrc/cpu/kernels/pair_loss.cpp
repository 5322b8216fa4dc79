#include "cpu/pair_loss_kernels.h"

#include "cpu/pair_terms.h"
#include "cpu/pair_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

// A tile is passed over once for its negatives and, unless it is pure, once more for its positives: so any term meets
// any other. A pure tile holds a negative in every place.
template <class T>
DML_INLINE bool is_pure(const PairLossProblem<T>& p, const PairTile<T>& tile) {
  return !tile.mixed && !p.apart && tile.j0 + tile.cols <= p.g.n;
}

// The columns of a tile that a row's pairs of one side stand in; rows and columns ascend with their classes.
template <class T>
class SideColumns {
 public:
  SideColumns(const PairTile<T>& tile, bool positive)
      : classes_(positive ? tile.g.classes + tile.j0 : nullptr),
        real_(tile.g.n - tile.j0 < tile.cols ? tile.g.n - tile.j0 : tile.cols),
        end_(positive ? 0 : tile.cols) {}
  // Of rows one after the other.
  DML_INLINE void next(int32_t own) {
    if (classes_ == nullptr) return;
    while (end_ < real_ && classes_[end_] <= own) ++end_;
    while (begin_ < end_ && classes_[begin_] < own) ++begin_;
  }
  DML_INLINE int64_t begin() const { return begin_ / Simd<T>::lanes * Simd<T>::lanes; }
  DML_INLINE int64_t end() const { return end_; }

 private:
  const int32_t* classes_;
  int64_t real_, begin_ = 0, end_;
};

template <class T>
struct Members {
  typename Simd<T>::M own, other;  // of this side, and of the other one
};

template <bool Pure, class T>
DML_INLINE Members<T> members_of(const PairLossProblem<T>& p, const PairTile<T>& tile, bool positive, Vec<T> dot,
                                 int64_t i, int64_t j) {
  using V = Vec<T>;
  if (Pure) return {lane_mask<V>(~0u), lane_mask<V>(0)};
  const int64_t left = p.g.n - j;
  auto kept = lane_mask<V>(left >= Simd<T>::lanes ? ~0u : left <= 0 ? 0u : (1u << left) - 1);
  kept = without(kept, tile.excluded(i, j));
  if (p.apart) kept = both(kept, tile.template squared<true>(dot, i, j) > V(0));
  const auto same = tile.same_class(i, j);
  const auto pos = p.pos.side.present() ? both(kept, same) : lane_mask<V>(0);
  const auto neg = p.neg.side.present() ? without(kept, same) : lane_mask<V>(0);
  return positive ? Members<T>{pos, neg} : Members<T>{neg, pos};
}

// The similarity of pairs, or their squared distance.
template <bool Pure, class T>
DML_INLINE Vec<T> raw_value(const PairTile<T>& tile, PairValue value, Vec<T> dot, int64_t i, int64_t j) {
  return value == PairValue::similarity ? dot : tile.template squared<!Pure>(dot, i, j);
}

template <class V>
DML_INLINE V value_of(PairValue value, V raw) {
  return value == PairValue::distance ? sqrt(raw) : raw;
}

// Adds up one side of a tile; whether any pair takes part.
template <class Pairs, bool Pure, class T>
bool add_side(const PairLossProblem<T>& p, const PairTile<T>& tile, bool positive, int64_t part, int64_t parts,
              const T* s) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const PairLossSide<T> side = positive ? p.pos : p.neg;
  const PairValue value = p.value;
  const bool mirrored = p.self && !tile.diagonal;
  const SumArrays<T> sums(side, side.sums + part * p.q.padded, parts * p.q.padded);
  const TileColumns<T> columns(side);
  SideColumns<T> range(tile, positive);
  bool active = false;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    range.next(p.q.classes[i]);
    Sums<T> row;
    int members = 0, taking_part = 0;
    for (int64_t c = range.begin(); c < range.end(); c += L) {
      const int64_t j = tile.j0 + c;
      const V dot = load<V>(s + r * kTileStride + c);
      const Members<T> m = members_of<Pure>(p, tile, positive, dot, i, j);
      if (!Pure) {
        const uint32_t there = bits(m.own);
        if (there == 0) continue;
        members += __builtin_popcount(there);
        T* const count = columns.arrays.members + c;
        store(count, load<V>(count) + select(m.own, V(1), V(0)));
      }
      const V raw = raw_value<Pure>(tile, value, dot, i, j);
      const auto possible = Pairs::possible(side, m.own, raw);
      if (Pairs::kMoment && !any(possible)) continue;
      Pairs pairs(side, possible, value_of(value, raw), bound_of_row(side, i));
      if (Pairs::kMoment || any(pairs.on)) {
        pairs.add_to(side, row);
        taking_part = 1;
      }
      if (!mirrored) continue;
      if constexpr (Pairs::kBounded)
        if (side.bounds != nullptr) pairs.rebind(side, possible, bounds_of_columns(side, j));
      if (!Pairs::kMoment && !any(pairs.on)) continue;
      Sums<T> column = columns.arrays.template columns<Pairs>(c);
      pairs.add_to(side, column);
      columns.arrays.template store_columns<Pairs>(c, column);
      active = true;
    }
    sums.members[i] += static_cast<T>(Pure ? tile.cols : members);
    if (taking_part != 0) sums.template add_row<Pairs>(i, row);
    active |= taking_part != 0;
  }
  if (!mirrored) return active;
  if (active) sums.template add_columns<Pairs>(tile.j0, tile.cols, columns.arrays);
  for (int64_t c = 0; c < tile.cols; ++c)
    sums.members[tile.j0 + c] += Pure ? static_cast<T>(tile.rows) : columns.arrays.members[c];
  return active;
}

// Turns the dot products of one side of a tile into the weights of the other row, or of f_i - g_j: for the query rows
// in s, for the gallery rows in `back`, which is s where both ends of a pair get the same. The negatives come first and
// leave the positives' dot products where they are. Gives how many weights are not zero.
template <class Pairs, bool Pure, class T>
int weigh_side(const PairLossProblem<T>& p, const PairTile<T>& tile, bool positive, int64_t part, T* s, T* back,
               TileWeights<T>& out) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const double eps = sizeof(T) == 4 ? 1.1920928955078125e-07 : 2.220446049250313e-16;
  const PairLossSide<T> side = positive ? p.pos : p.neg;
  const PairValue value = p.value;
  const FactorArrays<T> factors(side, p.q.padded);
  // The other end of a pair is a query too: of the mirrored pair, or, in a tile on the diagonal, of one in the tile.
  const bool symmetric = p.self && (p.both_ends || !tile.diagonal);
  const bool pulls = value != PairValue::similarity;  // only distances need the sums of their weights
  SideColumns<T> range(tile, positive);
  int weights = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    range.next(p.q.classes[i]);
    const Factors<T> row = factors.row(i);
    V row_weight(0);
    for (int64_t c = range.begin(); c < range.end(); c += L) {
      const int64_t j = tile.j0 + c;
      T *const at = s + r * kTileStride + c, *const back_at = back + r * kTileStride + c;
      const V dot = load<V>(at);
      const Members<T> m = members_of<Pure>(p, tile, positive, dot, i, j);
      V to_row(0), to_column(0);
      if (Pure || any(m.own)) {
        const V raw = raw_value<Pure>(tile, value, dot, i, j);
        const auto possible = Pairs::possible(side, m.own, raw);
        if (!Pairs::kMoment || any(possible)) {
          const V v = value_of(value, raw);
          Pairs pairs(side, possible, v, bound_of_row(side, i));
          to_row = pairs.gradient(side, row);
          if (symmetric) {
            if constexpr (Pairs::kBounded)
              if (side.bounds != nullptr) pairs.rebind(side, possible, bounds_of_columns(side, j));
            to_column = pairs.gradient(side, factors.columns(j));
          }
          // Both ends of a pair are pulled by the sum of both gradients, or each by its own.
          if (p.both_ends) to_row = to_column = to_row + to_column;
          const auto weighted = either(to_row != V(0), to_column != V(0));
          const uint32_t there = bits(weighted);
          if (there != 0) {
            const V norms = value == PairValue::distance ? tile.norms(i, j) : V(0);
            to_row = select(weighted, gradient_of_value(to_row, raw, norms, value, eps), V(0));
            to_column = select(weighted, gradient_of_value(to_column, raw, norms, value, eps), V(0));
            if (pulls) row_weight = row_weight + to_row;
            if (pulls && out.columns) store(out.weights_g + j, load<V>(out.weights_g + j) + to_column);
            weights += __builtin_popcount(there);
            out.row_active[r / Simd<T>::strip] = out.col_active[c / Simd<T>::strip] = true;
            if (L > Simd<T>::strip) out.col_active[c / Simd<T>::strip + 1] = true;
          }
        }
      }
      const V rest = positive ? dot : select(m.other, dot, V(0));
      store(at, Pure ? to_row : select(m.own, to_row, rest));
      if (back != s) store(back_at, Pure ? to_column : select(m.own, to_column, positive ? load<V>(back_at) : V(0)));
    }
    p.weights_q[part * p.q.padded + i] += sum(row_weight);
  }
  return weights;
}

// Calls back with the pairs of a term; those of none have no members.
template <class T, class Call>
DML_INLINE void with_term(PairTerm term, const Call& call) {
  switch (term) {
#define DML_CASE(name, type) \
  case PairTerm::name:       \
    return call.template operator()<Added<type, T>>();
    DML_PAIR_TERMS(DML_CASE)
#undef DML_CASE
    case PairTerm::exp:
      return call.template operator()<Scored<T>>();
    default:
      return call.template operator()<Moment<T>>();
  }
}

template <class T>
void forward(const PairLossProblem<T>& p, int64_t i, int64_t j, int64_t part, int64_t parts) {
  const PairTile<T> tile(p.q, p.g, p.self, i, j);
  const bool pure = is_pure(p, tile), negatives = p.neg.side.present(), positives = !pure && p.pos.side.present();
  if (!negatives && !positives) return;
  [[maybe_unused]] const WithoutDenormals fast;
  alignas(64) T s[kTile * kTileStride];
  tile.dot_products(s);
  bool active = false;
  if (negatives)
    with_term<T>(p.neg.side.term, [&]<class Pairs>() {
      active |= pure ? add_side<Pairs, true>(p, tile, false, part, parts, s)
                     : add_side<Pairs, false>(p, tile, false, part, parts, s);
    });
  if (positives)
    with_term<T>(p.pos.side.term,
                 [&]<class Pairs>() { active |= add_side<Pairs, false>(p, tile, true, part, parts, s); });
  p.active[tile.i * p.col_tiles + tile.j] = active;
}

template <class T>
void backward(const PairLossProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  if (!p.active[i * p.col_tiles + j]) return;
  [[maybe_unused]] const WithoutDenormals fast;
  alignas(64) T s[kTile * kTileStride];
  alignas(64) T other[kTile * kTileStride];
  const PairTile<T> tile(p.q, p.g, p.self, i, j);
  const bool pure = is_pure(p, tile);
  tile.dot_products(s);
  TileWeights<T> out;
  out.columns = p.self ? !tile.diagonal : p.both_ends;
  out.weights_g = p.weights_g;
  T* const back = out.columns && !p.both_ends ? other : s;
  int weights = 0;
  with_term<T>(p.neg.side.term, [&]<class Pairs>() {
    weights = pure ? weigh_side<Pairs, true>(p, tile, false, part, s, back, out)
                   : weigh_side<Pairs, false>(p, tile, false, part, s, back, out);
  });
  if (!pure && p.pos.side.present())
    with_term<T>(p.pos.side.term,
                 [&]<class Pairs>() { weights += weigh_side<Pairs, false>(p, tile, true, part, s, back, out); });
  out.dense = weights * kSparse > tile.rows * tile.cols;
  add_tile(tile, s, back, out, p.rows_q + part * p.q.padded * p.q.stride, p.rows_g);
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
