#include "cpu/nearest_positive.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "common/nearest_positive.h"
#include "common/nearest_positive_arguments.h"
#include "cpu/dispatch.h"
#include "cpu/nearest_positive_kernels.h"
#include "cpu/rows_kernels.h"
#include "cpu/tiles.h"

namespace dml {
namespace {

template <class T>
struct Winners {
  Buffer<T> squared, exact;
  Buffer<int32_t> row;
  Winners(int64_t length, T worst) : squared(length), exact(length), row(length) {
    std::fill_n(squared.data(), length, worst);
    std::fill_n(exact.data(), length, std::numeric_limits<T>::quiet_NaN());
    std::fill_n(row.data(), length, -1);
  }
};

template <class T>
constexpr T kWorst = kFar<T> / 2;  // nearer than the padding, farther than any row

template <class T>
T share_of(const RowsView<T>& rows) {
  return static_cast<T>(tie_share(rows.d, std::numeric_limits<T>::epsilon()));
}

// Nearest negatives, packed gallery rows; beyond the positives of the packed queries, unless that is null.
template <class T>
Winners<T> choose_negatives(const PairRows<T>& rows, const ChosenPositives<T>* beyond) {
  const RowsView<T>&q = rows.queries.view, &g = rows.gallery().view;
  const TileSchedule schedule = TileSchedule::make(q.n, g.n, rows.self);
  Winners<T> found(std::max<int64_t>(1, schedule.parts) * q.padded, kWorst<T>);
  const SelectionProblem<T> problem{q,
                                    g,
                                    rows.self,
                                    false,
                                    nullptr,
                                    nullptr,
                                    beyond == nullptr ? nullptr : beyond->squared.data(),
                                    beyond == nullptr ? nullptr : beyond->row.data(),
                                    share_of(q),
                                    found.squared.data(),
                                    found.exact.data(),
                                    found.row.data()};
  const auto& kernel = kernels<SelectionKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) { kernel.negatives(problem, t.row, t.col, t.part); });
  kernel.merge(problem, schedule.parts);
  return found;
}

// distance (M,) and index (M,) of the caller's rows, from packed ones.
template <class T>
Selected to_tensors(const PairArguments& a, const PairRows<T>& rows, const T* squared, const int32_t* row) {
  const int64_t m = a.embeddings.size(0);
  const bool all_nan = rows.gallery().any_non_finite;
  Tensor distance = filled(a.embeddings, {m}, compute_type(a.embeddings), std::numeric_limits<double>::infinity());
  Tensor index = filled(a.embeddings, {m}, ScalarType::Long, -1);
  T* d = static_cast<T*>(distance.mutable_data_ptr());
  int64_t* at = index.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < m; ++i) {
    const RowState state = rows.queries.state[i];
    if (state == RowState::non_finite || (all_nan && state == RowState::kept))
      d[i] = std::numeric_limits<T>::quiet_NaN();
  }
  if (all_nan) return {distance, index};
  const RowsView<T>& q = rows.queries.view;
  for (int64_t i = 0; i < q.n; ++i) {
    if (row[i] < 0) continue;
    d[q.index[i]] = std::sqrt(squared[i]);
    at[q.index[i]] = rows.gallery().view.index[row[i]];
  }
  return {distance, index};
}

template <class T>
Selected nearest_positive_as(const PairArguments& a, bool check) {
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::panels);
  if (check) check_finite(a.op, rows.queries.any_non_finite || rows.gallery().any_non_finite);
  const ChosenPositives<T> chosen = choose_positives(rows, false);
  return to_tensors(a, rows, chosen.squared.data(), chosen.row.data());
}

template <class T>
Mined mine_as(const PairArguments& a, bool farthest, bool semihard, bool check) {
  const PairRows<T> rows = prepare_pairs<T>(a, Layout::panels);
  if (check) check_finite(a.op, rows.queries.any_non_finite || rows.gallery().any_non_finite);
  ChosenPositives<T> chosen = choose_positives(rows, farthest);
  const int64_t n = rows.queries.view.n;
  // Nothing is farther than the positive that a row does not have.
  for (int64_t i = 0; i < n; ++i)
    if (chosen.row[i] < 0) chosen.squared[i] = std::numeric_limits<T>::infinity();
  const Winners<T> negative = choose_negatives(rows, semihard ? &chosen : nullptr);
  const Selected pos = to_tensors(a, rows, chosen.squared.data(), chosen.row.data());
  const Selected neg = to_tensors(a, rows, negative.squared.data(), negative.row.data());
  return std::tuple_cat(pos, neg);
}

// Gradient of a distance as a weight of (f_i - g_j): grad / d, 0 for coincident points.
template <class T>
Buffer<T> distance_weights(const RowsView<T>& q, const RowsView<T>& g, const int32_t* to, const T* grad) {
  const auto& kernel = kernels<RowsKernels<T>>();
  const T eps = std::numeric_limits<T>::epsilon();
  Buffer<T> weight(q.padded);
  torch::stable::parallel_for(0, q.n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (to[i] < 0) continue;
      const T *f = q.rows + i * q.stride, *other = g.rows + to[i] * g.stride;
      const T squared = kernel.squared_difference(f, other, q.d);
      const T norms = kernel.sum_squares(f, q.d) + kernel.sum_squares(other, q.d);
      weight[i] = squared > norms * (8 * eps * eps) ? grad[i] / std::sqrt(squared) : T(0);
    }
  });
  return weight;
}

// Rows in the caller's order. Nobody chooses a non-finite row, and it chose nobody: as zeros it gets a zero gradient.
template <class T>
Rows<T> finite_rows(const Tensor& x, bool normalize) {
  Rows<T> rows = prepare_rows<T>(x, normalize, Layout::rows);
  const RowsView<T>& view = rows.view;
  torch::stable::parallel_for(0, view.n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* row = rows.rows.data() + i * view.stride;
      if (!std::isfinite(kernels<RowsKernels<T>>().sum_squares(row, view.d))) std::fill_n(row, view.d, T(0));
    }
  });
  return rows;
}

template <class T>
Selected listed_bwd_as(const Tensor& embeddings, const std::optional<Tensor>& ref_emb, const std::vector<Listed>& lists,
                       bool normalize, bool need_grad_ref) {
  const Rows<T> queries = finite_rows<T>(embeddings, normalize);
  const std::optional<Rows<T>> own_gallery =
      ref_emb ? std::make_optional(finite_rows<T>(*ref_emb, normalize)) : std::nullopt;
  const RowsView<T>&q = queries.view, &g = own_gallery ? own_gallery->view : q;
  Buffer<T> sums_q(q.padded * q.stride), weights_q(q.padded), sums_g, weights_g;
  if (need_grad_ref) {
    sums_g = Buffer<T>(g.padded * g.stride);
    weights_g = Buffer<T>(g.padded);
  }
  const bool self = !own_gallery;
  for (const Listed& list : lists) {
    const Buffer<int32_t> to(q.padded);
    const int64_t* index = list.index.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < q.n; ++i) to[i] = static_cast<int32_t>(index[i]);
    const Buffer<T> weight = distance_weights(q, g, to.data(), static_cast<const T*>(list.grad.const_data_ptr()));
    add_listed_pairs(q, g, to.data(), weight.data(), sums_q, weights_q,
                     self            ? &sums_q
                     : need_grad_ref ? &sums_g
                                     : nullptr,
                     self            ? &weights_q
                     : need_grad_ref ? &weights_g
                                     : nullptr);
  }
  Tensor grad_emb = finish_gradient<T>(embeddings, queries, sums_q, weights_q, 1, T(-1), normalize);
  if (!need_grad_ref) return {grad_emb, filled(embeddings, {0, embeddings.size(1)}, embeddings.scalar_type(), 0)};
  return {grad_emb, finish_gradient<T>(*ref_emb, *own_gallery, sums_g, weights_g, 1, T(-1), normalize)};
}

Selected nearest_positive_fwd(const operators::nearest_positive_fwd& t) {
  const PairArguments a(t);
  return in_compute_type(a.embeddings, [&]<class T>() { return nearest_positive_as<T>(a, t.check_finite); });
}

Mined mine_fwd(const operators::mine_fwd& t) {
  const PairArguments a(t);
  return in_compute_type(a.embeddings, [&]<class T>() {
    return mine_as<T>(a, t.positive == "hard", t.negative == "semihard", t.check_finite);
  });
}

template <class Taken>
Selected listed_bwd(const Taken& t) {
  const Tensor x = as_contiguous(t.embeddings);
  return in_compute_type(x, [&]<class T>() {
    return listed_bwd_as<T>(x, as_contiguous(t.ref_emb), lists_of(t), t.normalize, t.need_grad_ref);
  });
}
Selected nearest_positive_bwd(const operators::nearest_positive_bwd& t) { return listed_bwd(t); }
Selected mine_bwd(const operators::mine_bwd& t) { return listed_bwd(t); }

}  // namespace

template <class T>
ChosenPositives<T> choose_positives(const PairRows<T>& rows, bool farthest) {
  const RowsView<T>&q = rows.queries.view, &g = rows.gallery().view;
  Winners<T> found(q.padded, farthest ? T(-1) : kWorst<T>);
  // Both sides are sorted by class: one walk finds each query's range of gallery rows.
  const Buffer<int64_t> begin(q.n + 1), end(q.n + 1);
  for (int64_t i = 0, j = 0; i < q.n; ++i) {
    if (i > 0 && q.classes[i] == q.classes[i - 1]) {
      begin[i] = begin[i - 1];
      end[i] = end[i - 1];
      continue;
    }
    while (j < g.n && g.classes[j] < q.classes[i]) ++j;
    begin[i] = j;
    while (j < g.n && g.classes[j] == q.classes[i]) ++j;
    end[i] = j;
  }
  const SelectionProblem<T> problem{q,
                                    g,
                                    rows.self,
                                    farthest,
                                    begin.data(),
                                    end.data(),
                                    nullptr,
                                    nullptr,
                                    share_of(q),
                                    found.squared.data(),
                                    found.exact.data(),
                                    found.row.data()};
  const auto& kernel = kernels<SelectionKernels<T>>();
  torch::stable::parallel_for(0, (q.n + kTile - 1) / kTile, 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) kernel.positives(problem, tile);
  });
  return ChosenPositives<T>{std::move(found.row), std::move(found.squared)};
}

template <class T>
void add_listed_pairs(const RowsView<T>& q, const RowsView<T>& g, const int32_t* to, const T* weight, Buffer<T>& sums_q,
                      Buffer<T>& weights_q, Buffer<T>* sums_g, Buffer<T>* weights_g) {
  const auto& kernel = kernels<RowsKernels<T>>();
  for (int64_t i = 0; i < q.n; ++i) {
    if (to[i] < 0 || weight[i] == 0) continue;
    weights_q[i] += weight[i];
    if (weights_g != nullptr) (*weights_g)[to[i]] += weight[i];
  }
  // Two queries may choose one gallery row: threads share the columns, not the rows.
  constexpr int64_t kChunk = 64;
  torch::stable::parallel_for(0, (q.d + kChunk - 1) / kChunk, 1, [&](int64_t first, int64_t last) {
    const int64_t k = first * kChunk, width = std::min(last * kChunk, q.d) - k;
    for (int64_t i = 0; i < q.n; ++i) {
      if (to[i] < 0 || weight[i] == 0) continue;
      kernel.add_scaled(sums_q.data() + i * q.stride + k, g.rows + to[i] * g.stride + k, width, weight[i]);
      if (sums_g != nullptr)
        kernel.add_scaled(sums_g->data() + to[i] * g.stride + k, q.rows + i * q.stride + k, width, weight[i]);
    }
  });
}

#define DML_INSTANTIATE(T)                                                                                        \
  template ChosenPositives<T> choose_positives<T>(const PairRows<T>&, bool);                                      \
  template void add_listed_pairs<T>(const RowsView<T>&, const RowsView<T>&, const int32_t*, const T*, Buffer<T>&, \
                                    Buffer<T>&, Buffer<T>*, Buffer<T>*);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("nearest_positive_fwd", dml::boxed<&dml::nearest_positive_fwd, dml::Read::numbers>);
  m.impl("nearest_positive_bwd", dml::boxed<&dml::nearest_positive_bwd, dml::Read::numbers>);
  m.impl("mine_fwd", dml::boxed<&dml::mine_fwd, dml::Read::numbers>);
  m.impl("mine_bwd", dml::boxed<&dml::mine_bwd, dml::Read::numbers>);
}
