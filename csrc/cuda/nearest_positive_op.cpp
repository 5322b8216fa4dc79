#include <tuple>

#include "common/nearest_positive_arguments.h"
#include "cuda/nearest_positive_launcher.h"

namespace dml {
namespace {

template <class T>
Selected nearest_positive_as(const PairArguments& a, const std::string& precision, bool check) {
  const OnDevice device(a.embeddings);
  const PairsOnDevice<T> pairs(a, precision, device.stream);
  if (check) check_all_finite(a.op, pairs);
  const Tensor distance = empty(a.embeddings, {a.queries()}, compute_type(a.embeddings));
  const Tensor index = empty(a.embeddings, {a.queries()}, ScalarType::Long);
  choose_positives<T>(a, pairs, false, nullptr, data<int64_t>(index), device.stream, data<T>(distance));
  return {distance, index};
}

template <class T>
Mined mine_as(const PairArguments& a, bool farthest, bool semihard, const std::string& precision, bool check) {
  const OnDevice device(a.embeddings);
  const PairsOnDevice<T> pairs(a, precision, device.stream);
  if (check) check_all_finite(a.op, pairs);
  const int64_t m = a.queries(), n = a.gallery();
  const ScalarType type = compute_type(a.embeddings);
  const Tensor squared = empty(a.embeddings, {m}, type), pos = empty(a.embeddings, {m}, type);
  const Tensor neg = empty(a.embeddings, {m}, type), pos_index = empty(a.embeddings, {m}, ScalarType::Long);
  const Tensor neg_index = empty(a.embeddings, {m}, ScalarType::Long);
  choose_positives<T>(a, pairs, farthest, data<T>(squared), data<int64_t>(pos_index), device.stream, data<T>(pos));
  const int64_t splits = column_splits((m + kTile - 1) / kTile, (n + kTile - 1) / kTile);
  const Tensor best = empty(a.embeddings, {splits, m}, type),
               best_index = empty(a.embeddings, {splits, m}, ScalarType::Long);
  select_pairs<T>(
      pairs.precision, pairs.sides,
      Selection<T>{false, false, semihard ? data<T>(squared) : nullptr, data<int64_t>(pos_index), nullptr, nullptr},
      splits, data<T>(best), data<int64_t>(best_index), device.stream);
  finish_selection<T>(
      pairs.precision,
      SelectedRows<T>{pairs.sides, data<T>(best), data<int64_t>(best_index), splits, pairs.queries.states(),
                      pairs.gallery().flag(), false, nullptr, data<T>(neg), data<int64_t>(neg_index)},
      device.stream);
  return {pos, pos_index, neg, neg_index};
}

// The lists have M entries each; index -1 is nobody.
template <class T>
Selected listed_bwd_as(const Tensor& x, const std::optional<Tensor>& ref_emb, const std::vector<Listed>& lists,
                       bool normalize, bool need_grad_ref) {
  const OnDevice device(x);
  const Tensor& y = ref_emb ? *ref_emb : x;
  const int64_t m = x.size(0), n = y.size(0), d = x.size(1);
  const ScalarType type = compute_type(x);
  const Precision precision = precision_of(x, "ieee");
  const RowsOnDevice<T> queries(x, nullptr, std::nullopt, std::nullopt, normalize, precision, device.stream);
  const std::optional<RowsOnDevice<T>> own_gallery =
      ref_emb ? std::make_optional<RowsOnDevice<T>>(y, nullptr, std::nullopt, std::nullopt, normalize, precision,
                                                    device.stream)
              : std::nullopt;
  const RowsOnDevice<T>& gallery = own_gallery ? *own_gallery : queries;
  const ListedSides<T> sides{
      x.const_data_ptr(), y.const_data_ptr(), data<T>(queries.inverse), data<T>(gallery.inverse), m, n, d};
  const Tensor sums_x = zeros(x, {m, d}, type), weights_x = zeros(x, {m}, type);
  const Tensor sums_y = zeros(x, {need_grad_ref ? n : 0, d}, type), weights_y = zeros(x, {need_grad_ref ? n : 0}, type);
  for (const Listed& list : lists) {
    const auto [sorted, from] = stable_sort(list.index);
    const Tensor weight = empty(x, {m}, type);
    const ListedPairs<T> pairs{data<int64_t>(list.index), data<T>(list.grad), data<int64_t>(sorted),
                               data<int64_t>(from), data<T>(weight)};
    listed_weights<T>(precision, sides, pairs, device.stream);
    add_listed_rows<T>(precision, sides, pairs, false, data<T>(sums_x), data<T>(weights_x), device.stream);
    if (!ref_emb) add_listed_rows<T>(precision, sides, pairs, true, data<T>(sums_x), data<T>(weights_x), device.stream);
    if (need_grad_ref)
      add_listed_rows<T>(precision, sides, pairs, true, data<T>(sums_y), data<T>(weights_y), device.stream);
  }
  const auto finish = [&](const RowsOnDevice<T>& rows, const Tensor& sums, const Tensor& weights) {
    const Tensor grad = empty(x, {rows.x.size(0), d}, x.scalar_type());
    // Nobody chooses a non-finite row, and it chose nobody: its gradient is 0.
    finish_gradient<T>(precision,
                       FinishGradient<T>{rows.x.const_data_ptr(), rows.states(), nullptr, data<T>(rows.inverse),
                                         data<T>(sums), data<T>(weights), nullptr, 0, rows.x.size(0), d, rows.x.size(0),
                                         1, 1, T(-1), T(0), normalize, grad.mutable_data_ptr()},
                       device.stream);
    return grad;
  };
  return {finish(queries, sums_x, weights_x),
          need_grad_ref ? finish(gallery, sums_y, weights_y) : empty(x, {0, d}, x.scalar_type())};
}

Selected nearest_positive_fwd(const operators::nearest_positive_fwd& t) {
  const PairArguments a(t);
  return in_compute_type(a.embeddings,
                         [&]<class T>() { return nearest_positive_as<T>(a, t.precision, t.check_finite); });
}

Mined mine_fwd(const operators::mine_fwd& t) {
  const PairArguments a(t);
  return in_compute_type(a.embeddings, [&]<class T>() {
    return mine_as<T>(a, t.positive == "hard", t.negative == "semihard", t.precision, t.check_finite);
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
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("nearest_positive_fwd", dml::boxed<&dml::nearest_positive_fwd>);
  m.impl("nearest_positive_bwd", dml::boxed<&dml::nearest_positive_bwd>);
  m.impl("mine_fwd", dml::boxed<&dml::mine_fwd>);
  m.impl("mine_bwd", dml::boxed<&dml::mine_bwd>);
}
