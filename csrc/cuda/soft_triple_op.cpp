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
        x(embeddings, &labels, std::nullopt, normalize, precision, device.stream),
        centers(c, nullptr, std::nullopt, normalize, precision, device.stream),
        sides{x.side(std::nullopt, 0), centers.side(std::nullopt, -1), c.size(1)} {
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
    return pair_gradient<T>(problem.precision, rows, others, T(1), false, normalize, others.flag(), nullptr, 0, 0,
                            stream, [&](const Stripe& stripe, int64_t splits, T*) {
                              soft_triple_weights<T>(problem.precision, problem.sides, loss, of_centers, data<T>(grad),
                                                     data<T>(stats), stripe, splits, stream);
                            });
  };
  return {gradient(problem.x, problem.centers, false), gradient(problem.centers, problem.x, true)};
}

std::tuple<Tensor, Tensor> soft_triple_fwd(const Tensor& embeddings, const Tensor& labels, const Tensor& centers,
                                           int64_t centers_per_class, double la, double gamma, double margin,
                                           bool normalize, std::string precision) {
  using torch::stable::contiguous;
  const char* op = "soft_triple_loss";
  const SoftTriple loss = check_soft_triple(op, embeddings, labels, centers, centers_per_class, la, gamma, margin);
  const Tensor x = contiguous(embeddings), y = contiguous(labels), c = contiguous(centers);
  return compute_type(x) == ScalarType::Double ? forward_as<double>(x, y, c, loss, normalize, precision)
                                               : forward_as<float>(x, y, c, loss, normalize, precision);
}

std::tuple<Tensor, Tensor> soft_triple_bwd(const Tensor& grad_loss, const Tensor& embeddings, const Tensor& labels,
                                           const Tensor& centers, const Tensor& row_stats, int64_t centers_per_class,
                                           double la, double gamma, double margin, bool normalize,
                                           std::string precision) {
  using torch::stable::contiguous;
  const char* op = "soft_triple_bwd";
  const SoftTriple loss = check_soft_triple(op, embeddings, labels, centers, centers_per_class, la, gamma, margin);
  check_soft_triple_state(op, grad_loss, row_stats, embeddings);
  const Tensor grad = contiguous(grad_loss), x = contiguous(embeddings), y = contiguous(labels),
               c = contiguous(centers), stats = contiguous(row_stats);
  return compute_type(x) == ScalarType::Double ? backward_as<double>(grad, x, y, c, stats, loss, normalize, precision)
                                               : backward_as<float>(grad, x, y, c, stats, loss, normalize, precision);
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("soft_triple_fwd", TORCH_BOX(&dml::soft_triple_fwd));
  m.impl("soft_triple_bwd", TORCH_BOX(&dml::soft_triple_bwd));
}
