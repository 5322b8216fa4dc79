#include "cpu/rows.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/pairwise.h"
#include "common/tile_schedule.h"
#include "cpu/dispatch.h"
#include "cpu/rows_kernels.h"

namespace dml {
namespace {

constexpr int64_t kGrain = 64;  // rows a thread takes at least

template <class T, class From>
void convert(const From* from, int64_t n, T* to) {
  for (int64_t k = 0; k < n; ++k)
    to[k] = static_cast<T>(static_cast<std::conditional_t<std::is_same_v<From, double>, double, float>>(from[k]));
}

template <class T, class To>
void write(const T* from, int64_t n, To* to) {
  for (int64_t k = 0; k < n; ++k) to[k] = static_cast<To>(from[k]);
}

// Kept rows sorted by (label, row); in the caller's order where there are no labels.
std::vector<int32_t> order_rows(const std::vector<RowState>& state, const int64_t* labels) {
  std::vector<int32_t> order;
  order.reserve(state.size());
  bool sorted = true;
  for (size_t i = 0; i < state.size(); ++i) {
    if (state[i] != RowState::kept) continue;
    if (labels != nullptr && !order.empty()) sorted = sorted && labels[order.back()] <= labels[i];
    order.push_back(static_cast<int32_t>(i));
  }
  if (sorted) return order;
  std::vector<std::pair<int64_t, int32_t>> keyed(order.size());
  for (size_t k = 0; k < order.size(); ++k) keyed[k] = {labels[order[k]], order[k]};
  std::sort(keyed.begin(), keyed.end());
  for (size_t k = 0; k < order.size(); ++k) order[k] = keyed[k].second;
  return order;
}

template <class T>
std::vector<RowState> row_states(const Tensor& x, const int64_t* labels, std::optional<int64_t> ignore_index,
                                 bool normalize) {
  const int64_t n = x.size(0), d = x.size(1);
  const auto& kernel = kernels<RowsKernels<T>>();
  std::vector<RowState> state(static_cast<size_t>(n), RowState::kept);
  torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> row(static_cast<size_t>(d));
    for (int64_t i = begin; i < end; ++i) {
      if (labels != nullptr && ignore_index && labels[i] == *ignore_index) {
        state[i] = RowState::ignored;
        continue;
      }
      read_row(x, i, row.data(), 0, d);
      // Rows that are not normalised must stay nearer to each other than to the padding.
      const T largest = normalize ? std::numeric_limits<T>::max() : kFar<T> / 8;
      if (!(kernel.sum_squares(row.data(), d) <= largest)) state[i] = RowState::non_finite;
    }
  });
  return state;
}

// Normalises and packs the ordered rows of x, panel by panel; -1 stands for a row of zeros.
template <class T>
void pack(const Tensor& x, const std::vector<int32_t>& order, bool normalize, Layout layout, Rows<T>& out) {
  const bool with_rows = layout != Layout::panels, with_panels = layout != Layout::rows;
  const auto& kernel = kernels<RowsKernels<T>>();
  const int64_t n = static_cast<int64_t>(order.size()), d = x.size(1), width = kernel.panel_width;
  const int64_t padded = (n + width - 1) / width * width;
  // One more cache line than whole panels: a stride of a power of two would put the rows of a tile into few cache sets.
  const int64_t stride = (d + width - 1) / width * width + 64 / static_cast<int64_t>(sizeof(T));
  if (with_panels) out.panels = Buffer<T>(padded * d);
  out.norms = Buffer<T>(padded);
  out.inverse = Buffer<T>(padded);
  out.index = Buffer<int32_t>(padded);
  if (with_rows) out.rows = Buffer<T>(padded * stride);
  std::atomic<bool> non_finite{out.any_non_finite};
  torch::stable::parallel_for(0, padded / width, std::max<int64_t>(1, kGrain / width), [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(with_rows ? 0 : width * stride);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * width, count = std::min(width, n - first);
      T* const rows = with_rows ? out.rows.data() + first * stride : scratch.data();
      for (int64_t r = 0; r < count; ++r) {
        const int64_t i = first + r;
        out.index[i] = order[i];
        if (order[i] < 0) {
          std::memset(rows + r * stride, 0, static_cast<size_t>(stride) * sizeof(T));
          continue;
        }
        read_row(x, order[i], rows + r * stride, 0, d);
        const T squared = kernel.sum_squares(rows + r * stride, d);
        if (!std::isfinite(squared)) non_finite.store(true, std::memory_order_relaxed);
        const T norm = normalize ? std::sqrt(squared) : T(1), shortest = static_cast<T>(kShortest);
        if (normalize) kernel.scale(rows + r * stride, d, T(1) / std::max(norm, shortest));
        out.inverse[i] = norm > shortest ? T(1) / norm : T(0);
        out.norms[i] = !normalize ? squared : norm < shortest ? kernel.sum_squares(rows + r * stride, d) : norm / norm;
      }
      for (int64_t r = count; r < width; ++r) {
        std::memset(rows + r * stride, 0, static_cast<size_t>(stride) * sizeof(T));
        out.index[first + r] = -1;
      }
      for (int64_t r = 0; r < width; ++r)
        if (out.index[first + r] < 0) out.norms[first + r] = kFar<T>;
      if (with_panels) kernel.pack_panel(rows, stride, d, out.panels.data() + panel * width * d);
    }
  });
  out.any_non_finite = non_finite;
  out.view = RowsView<T>{
      n, padded, d, stride, out.panels.data(), out.rows.data(), out.norms.data(), nullptr, nullptr, out.index.data()};
}

// Dense numbers from 0, ascending with the label, the same in both lists; -1 in the padding.
template <class T>
void number_classes(Rows<T>& rows, const std::vector<int32_t>& order, const int64_t* labels,
                    const std::vector<int64_t>& distinct) {
  rows.classes = Buffer<int32_t>(rows.view.padded);
  for (int64_t k = 0; k < rows.view.padded; ++k) {
    const auto at =
        k < rows.view.n ? std::lower_bound(distinct.begin(), distinct.end(), labels[order[k]]) - distinct.begin() : -1;
    rows.classes[k] = static_cast<int32_t>(at);
  }
  rows.view.classes = rows.classes.data();
}

// The same rows, with as many of them to a tile as make whole classes.
std::vector<int32_t> whole_classes(const std::vector<int32_t>& order, int64_t rows_per_class) {
  const int64_t per_tile = kTile / rows_per_class * rows_per_class, rows = static_cast<int64_t>(order.size());
  std::vector<int32_t> spread;
  spread.reserve(static_cast<size_t>((rows + per_tile - 1) / per_tile * kTile));
  for (int64_t first = 0; first < rows; first += per_tile) {
    if (first > 0) spread.resize(static_cast<size_t>(first / per_tile * kTile), -1);
    spread.insert(spread.end(), order.begin() + first, order.begin() + std::min(first + per_tile, rows));
  }
  return spread;
}

std::vector<int64_t> distinct_values(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

template <class T>
void number_ids(Rows<T>& rows, const std::vector<int32_t>& order, const int64_t* ids,
                const std::vector<int64_t>& distinct) {
  rows.ids = Buffer<int32_t>(rows.view.padded);
  for (int64_t k = 0; k < rows.view.n; ++k)
    rows.ids[k] =
        static_cast<int32_t>(std::lower_bound(distinct.begin(), distinct.end(), ids[order[k]]) - distinct.begin());
  rows.view.ids = rows.ids.data();
}

// The rows of x that are kept, in the order of their labels or in the caller's.
template <class T>
std::vector<int32_t> kept_rows(const Tensor& x, const int64_t* labels, std::optional<int64_t> ignore_index,
                               bool normalize, RowOrder row_order, Rows<T>& rows) {
  rows.state = row_states<T>(x, labels, ignore_index, normalize);
  rows.any_non_finite = std::find(rows.state.begin(), rows.state.end(), RowState::non_finite) != rows.state.end();
  return order_rows(rows.state, row_order == RowOrder::by_class ? labels : nullptr);
}

std::vector<int64_t> kept_values(const std::vector<int32_t>& order, const int64_t* values) {
  std::vector<int64_t> kept(order.size());
  for (size_t k = 0; k < order.size(); ++k) kept[k] = values[order[k]];
  return kept;
}

}  // namespace

template <class T>
void read_row(const Tensor& x, int64_t row, T* to, int64_t first, int64_t count) {
  const int64_t at = row * x.size(1) + first;
  const void* data = x.const_data_ptr();
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return convert(static_cast<const double*>(data) + at, count, to);
    case ScalarType::Float:
      return convert(static_cast<const float*>(data) + at, count, to);
    case ScalarType::BFloat16:
      return convert(static_cast<const torch::headeronly::BFloat16*>(data) + at, count, to);
    default:
      return convert(static_cast<const torch::headeronly::Half*>(data) + at, count, to);
  }
}

template <class T>
void write_row(const T* from, const Tensor& x, int64_t row, int64_t first, int64_t count) {
  const int64_t at = row * x.size(1) + first;
  void* data = x.mutable_data_ptr();
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return write(from, count, static_cast<double*>(data) + at);
    case ScalarType::Float:
      return write(from, count, static_cast<float*>(data) + at);
    case ScalarType::BFloat16:
      return write(from, count, static_cast<torch::headeronly::BFloat16*>(data) + at);
    default:
      return write(from, count, static_cast<torch::headeronly::Half*>(data) + at);
  }
}

template <class T>
PairRows<T> prepare_pairs(const PairArguments& a, Layout layout, RowOrder row_order) {
  PairRows<T> out;
  out.self = !a.ref_emb.has_value();
  const auto side = [&](const Tensor& x, const Tensor& labels, Rows<T>& rows) {
    std::vector<int32_t> order =
        kept_rows(x, labels.const_data_ptr<int64_t>(), a.ignore_index, a.normalize, row_order, rows);
    pack(x, order, a.normalize, layout, rows);
    return order;
  };
  const int64_t *y = a.labels.const_data_ptr<int64_t>(), *h = nullptr;
  const std::vector<int32_t> query_order = side(a.embeddings, a.labels, out.queries);
  std::vector<int32_t> gallery_order;
  std::vector<int64_t> labels = kept_values(query_order, y);
  if (!out.self) {
    h = a.ref_labels->const_data_ptr<int64_t>();
    gallery_order = side(*a.ref_emb, *a.ref_labels, out.own_gallery);
    const std::vector<int64_t> more = kept_values(gallery_order, h);
    labels.insert(labels.end(), more.begin(), more.end());
  }
  const std::vector<int64_t> classes = distinct_values(std::move(labels));
  number_classes(out.queries, query_order, y, classes);
  if (!out.self) number_classes(out.own_gallery, gallery_order, h, classes);
  if (!a.ids) return out;
  std::vector<int64_t> values = kept_values(query_order, a.ids->const_data_ptr<int64_t>());
  if (!out.self) {
    const std::vector<int64_t> more = kept_values(gallery_order, a.ref_ids->const_data_ptr<int64_t>());
    values.insert(values.end(), more.begin(), more.end());
  }
  const std::vector<int64_t> distinct = distinct_values(std::move(values));
  number_ids(out.queries, query_order, a.ids->const_data_ptr<int64_t>(), distinct);
  if (!out.self) number_ids(out.own_gallery, gallery_order, a.ref_ids->const_data_ptr<int64_t>(), distinct);
  return out;
}

template <class T>
Rows<T> prepare_rows(const Tensor& x, bool normalize, Layout layout) {
  Rows<T> out;
  out.state.assign(static_cast<size_t>(x.size(0)), RowState::kept);
  pack(x, order_rows(out.state, nullptr), normalize, layout, out);
  return out;
}

template <class T>
Rows<T> prepare_class_rows(const Tensor& x, const Tensor& labels, bool normalize, Layout layout) {
  Rows<T> out;
  const int64_t* y = labels.const_data_ptr<int64_t>();
  const std::vector<int32_t> order = kept_rows(x, y, std::nullopt, normalize, RowOrder::by_class, out);
  pack(x, order, normalize, layout, out);
  number_classes(out, order, y, distinct_values(kept_values(order, y)));
  return out;
}

template <class T>
Rows<T> prepare_finite_rows(const Tensor& x, bool normalize, Layout layout, int64_t rows_per_class) {
  Rows<T> out;
  const std::vector<int32_t> order = kept_rows(x, nullptr, std::nullopt, normalize, RowOrder::given, out);
  pack(x, rows_per_class > 0 ? whole_classes(order, rows_per_class) : order, normalize, layout, out);
  return out;
}

Tensor filled(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type, double value) {
  return torch::stable::fill_(aten::empty(like, shape, type), value);
}

template <class T>
Tensor finish_gradient(const Tensor& x, const Rows<T>& rows, const Buffer<T>& sums, const Buffer<T>& weights,
                       int64_t parts, T sign, bool normalize) {
  const auto& kernel = kernels<RowsKernels<T>>();
  const RowsView<T>& view = rows.view;
  Tensor grad = filled(x, {x.size(0), x.size(1)}, x.scalar_type(), 0.0);
  torch::stable::parallel_for(0, view.n, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> p(static_cast<size_t>(view.d));
    for (int64_t i = begin; i < end; ++i) {
      if (view.index[i] < 0) continue;
      const T* f = view.rows + i * view.stride;
      std::fill(p.begin(), p.end(), T(0));
      T weight = 0;
      for (int64_t part = 0; part < parts; ++part) {
        kernel.add_scaled(p.data(), sums.data() + (part * view.padded + i) * view.stride, view.d, sign);
        weight += weights[part * view.padded + i];
      }
      kernel.add_scaled(p.data(), f, view.d, weight);
      if (normalize) {
        kernel.add_scaled(p.data(), f, view.d, -kernel.dot(p.data(), f, view.d));
        kernel.scale(p.data(), view.d, rows.inverse[i]);
      }
      write_row(p.data(), grad, view.index[i], 0, view.d);
    }
  });
  if (rows.any_non_finite) {
    const std::vector<T> nan(static_cast<size_t>(view.d), std::numeric_limits<T>::quiet_NaN());
    for (size_t i = 0; i < rows.state.size(); ++i)
      if (rows.state[i] == RowState::non_finite) write_row(nan.data(), grad, static_cast<int64_t>(i), 0, view.d);
  }
  return grad;
}

template <class T>
Tensor nan_gradient(const Tensor& x, const Rows<T>& rows) {
  Tensor grad = filled(x, {x.size(0), x.size(1)}, x.scalar_type(), 0);
  const std::vector<T> nan(static_cast<size_t>(x.size(1)), std::numeric_limits<T>::quiet_NaN());
  for (int64_t i = 0; i < x.size(0); ++i)
    if (rows.state[i] != RowState::ignored) write_row(nan.data(), grad, i, 0, x.size(1));
  return grad;
}

#define DML_INSTANTIATE(T)                                                                                          \
  template void read_row<T>(const Tensor&, int64_t, T*, int64_t, int64_t);                                          \
  template void write_row<T>(const T*, const Tensor&, int64_t, int64_t, int64_t);                                   \
  template PairRows<T> prepare_pairs<T>(const PairArguments&, Layout, RowOrder);                                    \
  template Rows<T> prepare_rows<T>(const Tensor&, bool, Layout);                                                    \
  template Rows<T> prepare_class_rows<T>(const Tensor&, const Tensor&, bool, Layout);                               \
  template Rows<T> prepare_finite_rows<T>(const Tensor&, bool, Layout, int64_t);                                    \
  template Tensor finish_gradient<T>(const Tensor&, const Rows<T>&, const Buffer<T>&, const Buffer<T>&, int64_t, T, \
                                     bool);                                                                         \
  template Tensor nan_gradient<T>(const Tensor&, const Rows<T>&);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
