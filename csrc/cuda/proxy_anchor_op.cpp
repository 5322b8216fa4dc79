#include <tuple>

#include "common/proxy_anchor_arguments.h"
#include "cuda/pair_launcher.h"
#include "cuda/proxy_anchor.h"

namespace dml {
namespace {

// Proxies as the queries, without labels each a class of its own, and the embeddings as the gallery.
template <class T>
struct Problem {
  OnDevice device;
  Precision precision;
  Tensor seen, bad;
  RowsOnDevice<T> proxies, embeddings;
  PairSides<T> sides;

  Problem(const Tensor& x, const Tensor& labels, const Tensor& p, bool normalize, const std::string& name)
      : device(x),
        precision(precision_of(x, name)),
        seen(zeros(p, {p.size(0)}, ScalarType::Byte)),
        bad(zeros(p, {1}, ScalarType::Int)),
        proxies(p, nullptr, std::nullopt, normalize, precision, device.stream),
        embeddings(x, &labels, std::nullopt, normalize, precision, device.stream),
        sides{proxies.side(std::nullopt, 0), embeddings.side(std::nullopt, -1), x.size(1)} {
    mark_classes(data<int64_t>(labels), labels.size(0), p.size(0), data<unsigned char>(seen), data<int32_t>(bad),
                 device.stream);
  }
  ProxyRows<T> rows() const {
    return ProxyRows<T>{data<unsigned char>(seen), proxies.x.size(0), data<int32_t>(bad), embeddings.flag(),
                        proxies.flag()};
  }
};

template <class T>
std::tuple<Tensor, Tensor> forward_as(const Tensor& x, const Tensor& labels, const Tensor& p, const ProxyAnchor& loss,
                                      bool normalize, const std::string& precision) {
  const Problem<T> problem(x, labels, p, normalize, precision);
  const int64_t c = p.size(0), splits = column_splits((c + kTile - 1) / kTile, (x.size(0) + kTile - 1) / kTile);
  const ScalarType type = compute_type(x);
  const Tensor sums = empty(x, {kProxySums, splits, c}, type), value = empty(x, {}, type);
  const Tensor stats = empty(x, {2, c}, type);
  proxy_anchor_statistics<T>(problem.precision, problem.sides, loss, splits, data<T>(sums), problem.device.stream);
  proxy_anchor_finish<T>(problem.rows(), data<T>(sums), splits, data<T>(value), data<T>(stats), problem.device.stream);
  return {value, stats};
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad, const Tensor& x, const Tensor& labels, const Tensor& p,
                                       const Tensor& stats, const ProxyAnchor& loss, bool normalize,
                                       const std::string& precision) {
  const Problem<T> problem(x, labels, p, normalize, precision);
  const Stream stream = problem.device.stream;
  const Tensor shares = empty(x, {2}, compute_type(x)), any_bad = empty(x, {1}, ScalarType::Int);
  proxy_anchor_shares<T>(problem.rows(), data<T>(grad), data<T>(shares), data<int32_t>(any_bad), stream);
  const auto gradient = [&](const PairSides<T>& sides, const RowsOnDevice<T>& rows, const RowsOnDevice<T>& others,
                            bool proxies_are_rows) {
    return pair_gradient<T>(problem.precision, rows, others, T(1), false, normalize, data<int32_t>(any_bad), nullptr, 0,
                            0, stream, [&](const Stripe& stripe, int64_t splits, T* weight_sums) {
                              proxy_anchor_weights<T>(problem.precision, sides, loss, proxies_are_rows, data<T>(shares),
                                                      data<T>(stats), p.size(0), normalize, stripe, splits, weight_sums,
                                                      stream);
                            });
  };
  return {gradient(swapped(problem.sides), problem.embeddings, problem.proxies, false),
          gradient(problem.sides, problem.proxies, problem.embeddings, true)};
}

std::tuple<Tensor, Tensor> proxy_anchor_fwd(const Tensor& embeddings, const Tensor& labels, const Tensor& proxies,
                                            double margin, double alpha, bool normalize, std::string precision) {
  using torch::stable::contiguous;
  check_proxy_anchor("proxy_anchor_loss", embeddings, labels, proxies);
  const Tensor x = contiguous(embeddings), y = contiguous(labels), p = contiguous(proxies);
  const ProxyAnchor loss{alpha, margin};
  return compute_type(x) == ScalarType::Double ? forward_as<double>(x, y, p, loss, normalize, precision)
                                               : forward_as<float>(x, y, p, loss, normalize, precision);
}

std::tuple<Tensor, Tensor> proxy_anchor_bwd(const Tensor& grad_loss, const Tensor& embeddings, const Tensor& labels,
                                            const Tensor& proxies, const Tensor& proxy_stats, double margin,
                                            double alpha, bool normalize, std::string precision) {
  using torch::stable::contiguous;
  const char* op = "proxy_anchor_bwd";
  check_proxy_anchor(op, embeddings, labels, proxies);
  check_proxy_anchor_state(op, grad_loss, proxy_stats, proxies);
  const Tensor x = contiguous(embeddings), y = contiguous(labels), p = contiguous(proxies),
               stats = contiguous(proxy_stats);
  const ProxyAnchor loss{alpha, margin};
  return compute_type(x) == ScalarType::Double
             ? backward_as<double>(grad_loss, x, y, p, stats, loss, normalize, precision)
             : backward_as<float>(grad_loss, x, y, p, stats, loss, normalize, precision);
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("proxy_anchor_fwd", TORCH_BOX(&dml::proxy_anchor_fwd));
  m.impl("proxy_anchor_bwd", TORCH_BOX(&dml::proxy_anchor_bwd));
}
