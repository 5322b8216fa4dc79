#include "common/triplet.h"
#include "cpu/triplet_tile.h"

namespace dml {
inline namespace DML_ISA {
namespace {

constexpr int kGroup = static_cast<int>(kSlotGroup);

template <class V>
struct GroupSum {
  TripletSum<V> of[kGroup];
  GroupSum() {
#pragma GCC unroll 8
    for (int u = 0; u < kGroup; ++u) of[u] = TripletSum<V>{V(0), V(0)};
  }
  DML_INLINE TripletSum<V> total() const {
    return {(of[0].cost + of[1].cost) + (of[2].cost + of[3].cost),
            (of[0].nonzero + of[1].nonzero) + (of[2].nonzero + of[3].nonzero)};
  }
};

template <class Term, class T>
void forward_as(const TripletProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  alignas(64) T s[kTile * kTileStride];
  const int64_t first = part * p.q.padded;
  const NegativeTile<T> n(p, i, j, s, p.negatives == nullptr ? nullptr : p.negatives + first);
  const PairTile<T>& tile = n.tile;
  const V margin(p.margin);
  bool active = false;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const OwnPositives<T> own(p, tile.i0 + r);
    if (out_of_reach(p, own.farthest, n.nearest[r])) continue;
    for (int k = 0; k < own.count; k += kGroup) {
      GroupSum<V> sums;
      V bound[kGroup];
#pragma GCC unroll 8
      for (int u = 0; u < kGroup; ++u) bound[u] = V(own.distance[k + u]) + margin;
      for (int64_t c = 0; c < tile.cols; c += L) {
        const V d = load<V>(n.row(r) + c);
#pragma GCC unroll 8
        for (int u = 0; u < kGroup; ++u) add_triplet<Term>(sums.of[u], bound[u], d);
      }
      const TripletSum<V> total = sums.total();
      const int64_t nonzero = static_cast<int64_t>(sum(total.nonzero));
      p.cost[first + tile.i0 + r] += sum(total.cost);
      p.nonzero[first + tile.i0 + r] += nonzero;
      active |= nonzero > 0;
    }
  }
  for (int64_t c = 0; n.mirrored() && c < tile.cols; c += L) {
    const int64_t column = tile.j0 + c;
    if (out_of_reach(p, farthest_positive(p, column), n.nearest_of_all)) continue;
    TripletSum<V> total{V(0), V(0)};
    for (int64_t k = 0; k < p.slots; k += kGroup) {
      GroupSum<V> sums;
      V bound[kGroup];
#pragma GCC unroll 8
      for (int u = 0; u < kGroup; ++u) bound[u] = load<V>(p.positives + (k + u) * p.q.padded + column) + margin;
      for (int64_t r = 0; r < tile.rows; ++r) {
        const V d = load<V>(n.row(r) + c);
#pragma GCC unroll 8
        for (int u = 0; u < kGroup; ++u) add_triplet<Term>(sums.of[u], bound[u], d);
      }
      const TripletSum<V> group = sums.total();
      total = {total.cost + group.cost, total.nonzero + group.nonzero};
    }
    T cost[L], nonzero[L];
    store(cost, total.cost);
    store(nonzero, total.nonzero);
    for (int lane = 0; lane < L; ++lane) {
      p.cost[first + column + lane] += cost[lane];
      p.nonzero[first + column + lane] += static_cast<int64_t>(nonzero[lane]);
      active |= nonzero[lane] > 0;
    }
  }
  p.active[i * p.col_tiles + j] |= active;
}

template <class T>
void forward(const TripletProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  p.soft ? forward_as<PairSoftplus>(p, i, j, part) : forward_as<PairHinge>(p, i, j, part);
}

// -dL/dd of every pair of the tile to w, and to the slots the sums of the slopes of the positives.
template <class Term, class T>
void weigh_rows(const TripletProblem<T>& p, const NegativeTile<T>& n, int64_t part, T* w) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  for (int64_t r = 0; r < n.tile.rows; ++r) {
    const int64_t i = n.tile.i0 + r;
    const OwnPositives<T> own(p, i);
    if (out_of_reach(p, own.farthest, n.nearest[r])) continue;
    for (int k = 0; k < own.count; k += kGroup) {
      V bound[kGroup], slopes[kGroup];
#pragma GCC unroll 8
      for (int u = 0; u < kGroup; ++u) {
        bound[u] = V(own.distance[k + u]) + V(p.margin);
        slopes[u] = V(0);
      }
      for (int64_t c = 0; c < n.tile.cols; c += L) {
        const V d = load<V>(n.row(r) + c);
        V total(0);
#pragma GCC unroll 8
        for (int u = 0; u < kGroup; ++u) {
          const V slope = triplet_slope<Term>(bound[u], d);
          slopes[u] = slopes[u] + slope;
          total = total + slope;
        }
        T* const at = w + r * kTileStride + c;
        store(at, fma(V(p.grad[i]), total, load<V>(at)));
      }
      for (int u = 0; u < kGroup && k + u < own.count; ++u)
        p.slopes[(part * p.slots + own.slot[k + u]) * p.q.padded + i] += sum(slopes[u]);
    }
  }
}

template <class Term, class T>
void weigh_columns(const TripletProblem<T>& p, const NegativeTile<T>& n, int64_t part, T* w) {
  using V = Vec<T>;
  for (int64_t c = 0; c < n.tile.cols; c += Simd<T>::lanes) {
    const int64_t j = n.tile.j0 + c;
    if (out_of_reach(p, farthest_positive(p, j), n.nearest_of_all)) continue;
    const V grad = load<V>(p.grad + j);
    for (int64_t k = 0; k < p.slots; k += kGroup) {
      V bound[kGroup], slopes[kGroup];
#pragma GCC unroll 8
      for (int u = 0; u < kGroup; ++u) {
        bound[u] = load<V>(p.positives + (k + u) * p.q.padded + j) + V(p.margin);
        slopes[u] = V(0);
      }
      for (int64_t r = 0; r < n.tile.rows; ++r) {
        const V d = load<V>(n.row(r) + c);
        V total(0);
#pragma GCC unroll 8
        for (int u = 0; u < kGroup; ++u) {
          const V slope = triplet_slope<Term>(bound[u], d);
          slopes[u] = slopes[u] + slope;
          total = total + slope;
        }
        T* const at = w + r * kTileStride + c;
        store(at, fma(grad, total, load<V>(at)));
      }
#pragma GCC unroll 8
      for (int u = 0; u < kGroup; ++u) {
        T* const at = p.slopes + (part * p.slots + k + u) * p.q.padded + j;
        store(at, load<V>(at) + slopes[u]);
      }
    }
  }
}

// A diagonal tile holds the pair (j, i) beside (i, j), and adds to its rows only.
template <class T>
void add_mirror(int64_t rows, T* w) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < r; ++c) {
      T &lower = w[r * kTileStride + c], &upper = w[c * kTileStride + r];
      lower = upper = lower + upper;
    }
}

// Weights of (f_i - g_j) from -dL/dd in place; how many there are.
template <class T>
int finish_weights(const TripletProblem<T>& p, const NegativeTile<T>& n, int64_t part, T* w, TileWeights<T>& out) {
  using V = Vec<T>;
  constexpr int L = Simd<T>::lanes;
  const double eps = sizeof(T) == 4 ? 1.1920928955078125e-07 : 2.220446049250313e-16;
  int members = 0;
  for (int64_t r = 0; r < n.tile.rows; ++r) {
    V row_weight(0);
    for (int64_t c = 0; c < n.tile.cols; c += L) {
      T* const at = w + r * kTileStride + c;
      V weight = load<V>(at);
      const auto some = weight != V(0);
      if (!any(some)) continue;
      const V d = load<V>(n.row(r) + c);
      const int64_t i = n.tile.i0 + r, j = n.tile.j0 + c;
      weight = V(0) - select(some, weight * gradient_scale(d * d, n.tile.norms(i, j), eps), V(0));
      store(at, weight);
      row_weight = row_weight + weight;
      if (out.columns) store(out.weights_g + j, load<V>(out.weights_g + j) + weight);
      members += __builtin_popcount(bits(some));
      out.row_active[r / Simd<T>::strip] = out.col_active[c / Simd<T>::strip] = true;
      if (L > Simd<T>::strip) out.col_active[c / Simd<T>::strip + 1] = true;
    }
    p.weights_q[part * p.q.padded + n.tile.i0 + r] += sum(row_weight);
  }
  return members;
}

template <class T>
void backward(const TripletProblem<T>& p, int64_t i, int64_t j, int64_t part) {
  if (!p.active[i * p.col_tiles + j]) return;
  alignas(64) T s[kTile * kTileStride];
  alignas(64) T w[kTile * kTileStride] = {};
  const NegativeTile<T> n(p, i, j, s, nullptr);
  p.soft ? weigh_rows<PairSoftplus>(p, n, part, w) : weigh_rows<PairHinge>(p, n, part, w);
  if (n.mirrored()) p.soft ? weigh_columns<PairSoftplus>(p, n, part, w) : weigh_columns<PairHinge>(p, n, part, w);
  if (n.tile.diagonal) add_mirror(n.tile.rows, w);
  TileWeights<T> out;
  out.columns = p.self ? !n.tile.diagonal : p.both_ends;
  out.weights_g = p.weights_g;
  out.dense = finish_weights(p, n, part, w, out) * kSparse > n.tile.rows * n.tile.cols;
  add_tile(n.tile, w, w, out, p.rows_q + part * p.q.padded * p.q.stride, p.rows_g);
}

template <class T>
void add_rows(const int* list, const T* w, int count, const T* x, int64_t stride, int64_t width, T* out) {
  add_listed_rows(list, w, count, x, stride, width, out);
}

template <class T>
TripletKernels<T> table() {
  return {forward<T>, backward<T>, add_rows<T>};
}

}  // namespace
}  // namespace DML_ISA

template <>
template <>
TripletKernels<float> TripletKernels<float>::make<Isa::DML_ISA>() {
  return table<float>();
}
template <>
template <>
TripletKernels<double> TripletKernels<double>::make<Isa::DML_ISA>() {
  return table<double>();
}

}  // namespace dml
