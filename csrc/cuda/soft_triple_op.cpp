#include <tuple>

#include "common/soft_triple_arguments.h"
#include "cuda/pair_launcher.h"
#include "cuda/soft_triple.h"

namespace dml {
namespace {

template <class T>
struct Problem {
  OnDevice device;
  Precision precision;
  RowsOnDevice<T> x, centers;
  PairSides<T> sides;

  Problem(const Tensor& embeddings, const Tensor& labels, const Tensor& c, const SoftTriple& loss, bool normalize,
          const std::string& name)
      : device(embeddings),
        precision(precision_of(embeddings, name)),
        x(embeddings, &labels, std::nullopt, std::nullopt, normalize, precision, device.stream),
        centers(c, nullptr, std::nullopt, std::nullopt, normalize, precision, device.stream),
        sides{x.side(0), centers.side(-1), c.size(1), row_stride(c)} {
    check_class_labels(data<int64_t>(labels), labels.size(0), c.size(0) / loss.per_class, x.states(), x.flag(),
                       device.stream);
  }
};

template <class T>
std::tuple<Tensor, Tensor> forward_as(const Tensor& x, const Tensor& labels, const Tensor& c, const SoftTriple& loss,
                                      bool normalize, const std::string& precision) {
  const Problem<T> problem(x, labels, c, loss, normalize, precision);
  const int64_t m = x.size(0), splits = column_splits((m + kTile - 1) / kTile, class_tiles(c.size(0), loss));
  const ScalarType type = compute_type(x);
  const Tensor sums = empty(x, {kSoftTripleSums, splits, m}, type), value = empty(x, {m}, type);
  const Tensor stats = empty(x, {2, m}, type);
  const Stream stream = problem.device.stream;
  soft_triple_logits<T>(problem.precision, problem.sides, loss, splits, data<T>(sums), stream);
  soft_triple_finish<T>(data<T>(sums), splits, m, problem.x.states(), problem.centers.flag(), data<T>(value),
                        data<T>(stats), stream);
  return {value, stats};
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad, const Tensor& x, const Tensor& labels, const Tensor& c,
                                       const Tensor& stats, const SoftTriple& loss, bool normalize,
                                       const std::string& precision) {
  const Problem<T> problem(x, labels, c, loss, normalize, precision);
  const Stream stream = problem.device.stream;
  const auto gradient = [&](const RowsOnDevice<T>& rows, const RowsOnDevice<T>& others, bool of_centers) {
    return pair_gradient<T>(problem.precision, rows, others, T(1), false, normalize, others.flag(), stream,
                            [&](const Stripe& stripe, int64_t splits, T*) {
                              soft_triple_weights<T>(problem.precision, problem.sides, loss, of_centers, data<T>(grad),
                                                     data<T>(stats), stripe, splits, stream);
                            });
  };
  return {gradient(problem.x, problem.centers, false), gradient(problem.centers, problem.x, true)};
}

std::tuple<Tensor, Tensor> soft_triple_fwd(const operators::soft_triple_fwd& a) {
  const Tensor x = as_contiguous(a.embeddings), y = as_contiguous(a.labels), c = as_contiguous(a.centers);
  return in_compute_type(
      x, [&]<class T>() { return forward_as<T>(x, y, c, soft_triple_of(a), a.normalize, a.precision); });
}

std::tuple<Tensor, Tensor> soft_triple_bwd(const operators::soft_triple_bwd& a) {
  const Tensor grad = as_contiguous(a.grad_loss), x = as_contiguous(a.embeddings), y = as_contiguous(a.labels),
               c = as_contiguous(a.centers), stats = as_contiguous(a.row_stats);
  return in_compute_type(
      x, [&]<class T>() { return backward_as<T>(grad, x, y, c, stats, soft_triple_of(a), a.normalize, a.precision); });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("soft_triple_fwd", dml::boxed<&dml::soft_triple_fwd>);
  m.impl("soft_triple_bwd", dml::boxed<&dml::soft_triple_bwd>);
}
