#include <tuple>

#include "common/pairwise_arguments.h"
#include "cuda/pair_launcher.h"
#include "cuda/pairwise.h"

namespace dml {
namespace {

template <class T>
struct Operands {
  Precision precision;
  RowsOnDevice<T> x;
  std::optional<RowsOnDevice<T>> own_y;
  PairSides<T> sides;

  Operands(const Tensor& left, const std::optional<Tensor>& right, bool normalize, const std::string& name,
           Stream stream)
      : precision(precision_of(left, name)),
        x(left, nullptr, std::nullopt, std::nullopt, normalize, precision, stream, true) {
    if (right) own_y.emplace(*right, nullptr, std::nullopt, std::nullopt, normalize, precision, stream, true);
    sides = PairSides<T>{x.side(0), y().side(0), left.size(1), row_stride(left)};
  }
  const RowsOnDevice<T>& y() const { return own_y ? *own_y : x; }
};

template <class T>
Tensor forward_as(const Tensor& x, const std::optional<Tensor>& y, Metric metric, bool normalize,
                  const std::string& precision) {
  const OnDevice device(x);
  const Operands<T> rows(x, y, normalize, precision, device.stream);
  const Tensor out = empty(x, {x.size(0), rows.y().x.size(0)}, x.scalar_type());
  pairwise_values<T>(rows.precision, rows.sides, metric, out.mutable_data_ptr(), device.stream);
  return out;
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad_out, const Tensor& x, const std::optional<Tensor>& y,
                                       Metric metric, bool normalize, const std::string& precision) {
  const OnDevice device(x);
  const Operands<T> rows(x, y, normalize, precision, device.stream);
  const bool pulls = metric != Metric::dot;
  const int64_t columns = grad_out.size(1);
  const auto gradient = [&](const PairSides<T>& sides, const RowsOnDevice<T>& own, const RowsOnDevice<T>& others,
                            const PairwiseGradient& grad) {
    return pair_gradient<T>(rows.precision, own, others, pulls ? T(-1) : T(1), pulls, normalize, nullptr, device.stream,
                            [&](const Stripe& stripe, int64_t splits, T* weight_sums) {
                              pairwise_weights<T>(rows.precision, sides, metric, normalize, grad, stripe, splits,
                                                  weight_sums, device.stream);
                            });
  };
  const void* const values = grad_out.const_data_ptr();
  const Tensor grad_x = gradient(rows.sides, rows.x, rows.y(), PairwiseGradient{values, columns, 1, !y.has_value()});
  if (!y) return {grad_x, empty(x, {0, x.size(1)}, x.scalar_type())};
  return {grad_x, gradient(swapped(rows.sides), rows.y(), rows.x, PairwiseGradient{values, 1, columns, false})};
}

Tensor pairwise_fwd(const operators::pairwise_fwd& a) {
  const Tensor x = as_contiguous(a.x);
  return in_compute_type(x, [&]<class T>() {
    return forward_as<T>(x, as_contiguous(a.y), metric_of(a.metric), a.normalize, a.precision);
  });
}

std::tuple<Tensor, Tensor> pairwise_bwd(const operators::pairwise_bwd& a) {
  const Tensor grad = as_contiguous(a.grad_out), x = as_contiguous(a.x);
  return in_compute_type(x, [&]<class T>() {
    return backward_as<T>(grad, x, as_contiguous(a.y), metric_of(a.metric), a.normalize, a.precision);
  });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("pairwise_fwd", dml::boxed<&dml::pairwise_fwd>);
  m.impl("pairwise_bwd", dml::boxed<&dml::pairwise_bwd>);
}
