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

// The pairs of one row of a tile, by vectors of columns.
template <bool Pure, class T>
struct PairsOfRow {
  using V = Vec<T>;
  using M = typename Simd<T>::M;
  const PairLossProblem<T>& p;
  const PairTile<T>& tile;
  const T* norms_g;
  int64_t i;
  V norm;

  DML_INLINE PairsOfRow(const PairLossProblem<T>& p, const PairTile<T>& tile, int64_t i)
      : p(p), tile(tile), norms_g(p.g.norms + tile.j0), i(i), norm(p.q.norms[i]) {}
  DML_INLINE V norms(int64_t c) const { return norm + load<V>(norms_g + c); }
  // The similarity of pairs, or their squared distance; near-duplicates that are wanted in difference form.
  DML_INLINE V raw_value(PairValue value, V dot, int64_t c, M wanted) const {
    return value == PairValue::similarity ? dot : squared(dot, c, wanted);
  }
  DML_INLINE V squared(V dot, int64_t c, M wanted) const {
    const V product = product_form(dot, norms(c));
    const M near = is_near(product, norms(c));
    return tile.corrected(product, Pure ? near : both(near, wanted), i, tile.j0 + c);
  }
  // Those that are not excluded.
  DML_INLINE M kept(V dot, int64_t c) const {
    const int64_t j = tile.j0 + c, left = p.g.n - j;
    M m = without(lane_mask<V>(~0u), tile.excluded(i, j));
    if (left < Simd<T>::lanes) m = both(m, lane_mask<V>(left <= 0 ? 0u : (1u << left) - 1));
    return p.apart ? both(m, squared(dot, c, m) > V(0)) : m;
  }
};

template <class M>
DML_INLINE M of_side(M kept, M same, bool positive) {
  return positive ? both(kept, same) : without(kept, same);
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
  const SideVectors<T> side(positive ? p.pos : p.neg);
  T* const sums = (positive ? p.pos : p.neg).sums + part * p.q.padded;
  const int64_t length = parts * p.q.padded;
  const PairValue value = p.value;
  const bool mirrored = p.self && !tile.diagonal;
  TileColumns<Pairs, T> columns;
  if (mirrored) columns.clear();
  SideColumns<T> range(tile, positive);
  uint32_t active = 0;  // any bit
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    const V bound = side.bound_of_row(i);
    range.next(p.q.classes[i]);
    const PairsOfRow<Pure, T> pairs_of_row(p, tile, i);
    Sums<T> row;
    int members = 0;
    uint32_t of_row = 0;
    for (int64_t c = range.begin(); c < range.end(); c += L) {
      const V dot = load<V>(s + r * kTileStride + c);
      auto own = lane_mask<V>(~0u);
      if (!Pure) {
        own = of_side(pairs_of_row.kept(dot, c), tile.same_class(i, tile.j0 + c), positive);
        const uint32_t there = bits(own);
        if (there == 0) continue;
        members += __builtin_popcount(there);
        if (mirrored) columns.add_members(c, masked(own, V(1)));
      }
      const V raw = pairs_of_row.raw_value(value, dot, c, own);
      auto possible = Pairs::possible(side, raw);
      if (!Pure) possible = both(possible, own);
      if (Pairs::kTested && !any(possible)) continue;
      Pairs pairs(side, possible, value_of(value, raw), bound);
      uint32_t on = bits(pairs.on);
      if (Pairs::kTested || on != 0) pairs.add_to(side, row);
      of_row |= on;
      if (!mirrored) continue;
      if constexpr (Pairs::kBounded)
        if (side.bounds != nullptr) {
          pairs.rebind(side, possible, side.bounds_of_columns(tile.j0 + c));
          active |= on = bits(pairs.on);
        }
      if (Pairs::kTested || on != 0) columns.add(c, side, pairs);
    }
    sums[kPairMembers * length + i] += static_cast<T>(Pure ? tile.cols : members);
    if (of_row != 0) add_row<Pairs>(sums + i, length, row);
    active |= of_row;
  }
  if (mirrored) {
    if (active != 0) columns.merge_into(sums + tile.j0, length, tile.cols);
    T* const of_columns = sums + kPairMembers * length + tile.j0;
    for (int64_t c = 0; c < tile.cols; ++c)
      of_columns[c] += Pure ? static_cast<T>(tile.rows) : columns.memory[kPairMembers * kTile + c];
  }
  return active != 0;
}

// Turns the dot products of one side of a tile into the weights of the other row, or of f_i - g_j: for the query rows
// in s, for the gallery rows in `back`, which is s where both ends of a pair get the same. The negatives come first; if
// positives follow, they find the dot products of their class where they were. Gives how many weights are not zero.
template <class Pairs, bool Pure, class T>
int weigh_side(const PairLossProblem<T>& p, const PairTile<T>& tile, bool positive, int64_t part, T* s, T* back,
               TileWeights<T>& out) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const double eps = sizeof(T) == 4 ? 1.1920928955078125e-07 : 2.220446049250313e-16;
  const SideVectors<T> side(positive ? p.pos : p.neg);
  const FactorArrays<T> factors{(positive ? p.pos : p.neg).factors, p.q.padded};
  const PairValue value = p.value;
  // The other end of a pair is a query too: of the mirrored pair, or, in a tile on the diagonal, of one in the tile.
  const bool both_ends = p.both_ends, symmetric = p.self && (both_ends || !tile.diagonal);
  const bool pulls = value != PairValue::similarity;  // only distances need the sums of their weights
  const bool present = (positive ? p.pos : p.neg).side.present(), positives_follow = p.pos.side.present();
  SideColumns<T> range(tile, positive);
  int weights = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t i = tile.i0 + r;
    const V bound = side.bound_of_row(i);
    range.next(p.q.classes[i]);
    const PairsOfRow<Pure, T> pairs_of_row(p, tile, i);
    const Factors<T> of_row = factors.row(i);
    V row_weight(0);
    for (int64_t c = range.begin(); c < range.end(); c += L) {
      const int64_t j = tile.j0 + c;
      T *const at = s + r * kTileStride + c, *const back_at = back + r * kTileStride + c;
      const V dot = load<V>(at);
      auto own = lane_mask<V>(~0u), mine = own;  // pairs of this side, and the places that it fills
      if (!Pure) {
        const auto same = tile.same_class(i, j);
        own = of_side(pairs_of_row.kept(dot, c), same, positive);
        if (positive || positives_follow) mine = of_side(mine, same, positive);
      }
      V to_row(0), to_column(0);
      if (present && (Pure || any(own))) {
        const V raw = pairs_of_row.raw_value(value, dot, c, own);
        auto possible = Pairs::possible(side, raw);
        if (!Pure) possible = both(possible, own);
        if (!Pairs::kTested || any(possible)) {
          const V v = value_of(value, raw);
          Pairs pairs(side, possible, v, bound);
          to_row = pairs.gradient(of_row);
          if (symmetric) {
            if constexpr (Pairs::kBounded)
              if (side.bounds != nullptr) pairs.rebind(side, possible, side.bounds_of_columns(j));
            to_column = pairs.gradient(factors.columns(j));
          }
          // Both ends of a pair are pulled by the sum of both gradients, or each by its own.
          if (both_ends) to_row = to_row + to_column;
          const uint32_t there = bits(both_ends ? to_row != V(0) : either(to_row != V(0), to_column != V(0)));
          if (there != 0) {
            const V norms = value == PairValue::distance ? pairs_of_row.norms(c) : V(0);
            to_row = gradient_of_value(to_row, v, raw, norms, value, eps);
            to_column = both_ends ? to_row : gradient_of_value(to_column, v, raw, norms, value, eps);
            if (pulls) row_weight = row_weight + to_row;
            if (pulls && out.columns) store(out.weights_g + j, load<V>(out.weights_g + j) + to_column);
            weights += __builtin_popcount(there);
            out.row_active[r / Simd<T>::strip] = out.col_active[c / Simd<T>::strip] = true;
            if (L > Simd<T>::strip) out.col_active[c / Simd<T>::strip + 1] = true;
          }
        }
      }
      store(at, Pure ? to_row : select(mine, to_row, dot));
      if (back != s) store(back_at, positive ? select(mine, to_column, load<V>(back_at)) : to_column);
    }
    p.weights_q[part * p.q.padded + i] += sum(row_weight);
  }
  return weights;
}

// Calls back with the pairs of a side's term; one of none has no members.
template <class T, class Call>
DML_INLINE void with_term(const PairLossSide<T>& s, const Call& call) {
  switch (s.side.term) {
#define DML_CASE(name, type) \
  case PairTerm::name:       \
    return call.template operator()<Added<type, T>>();
    DML_PAIR_TERMS(DML_CASE)
#undef DML_CASE
    case PairTerm::exp:
      return s.running ? call.template operator()<Scored<true, T>>() : call.template operator()<Scored<false, T>>();
    default:
      return s.running ? call.template operator()<Moment<true, T>>() : call.template operator()<Moment<false, T>>();
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
    with_term(p.neg, [&]<class Pairs>() {
      active |= pure ? add_side<Pairs, true>(p, tile, false, part, parts, s)
                     : add_side<Pairs, false>(p, tile, false, part, parts, s);
    });
  if (positives)
    with_term(p.pos, [&]<class Pairs>() { active |= add_side<Pairs, false>(p, tile, true, part, parts, s); });
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
  with_term(p.neg, [&]<class Pairs>() {
    weights = pure ? weigh_side<Pairs, true>(p, tile, false, part, s, back, out)
                   : weigh_side<Pairs, false>(p, tile, false, part, s, back, out);
  });
  if (!pure && p.pos.side.present())
    with_term(p.pos, [&]<class Pairs>() { weights += weigh_side<Pairs, false>(p, tile, true, part, s, back, out); });
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
