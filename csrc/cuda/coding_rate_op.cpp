// Operators cholesky and coding_rate on CUDA tensors.

#include <cmath>
#include <tuple>

#include "common/coding_rate_arguments.h"
#include "common/tile_schedule.h"
#include "cuda/aligned_rows.h"
#include "cuda/cholesky.h"
#include "cuda/coding_rate.h"
#include "cuda/launcher.h"
#include "cuda/pairs.h"
#include "cuda/row_products.h"

namespace dml {
namespace {

using torch::stable::transpose;

template <class T>
constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

// logdet (B,) and L (B, n, n) of A (B, n, n), by cuSOLVER; NaN where a matrix is not positive definite.
template <class T>
std::tuple<Tensor, Tensor> factor_by_solver(const Tensor& a, Stream stream) {
  const auto [factor, codes] = aten::cholesky(a);
  const Tensor l = as_contiguous(factor);  // its own order is by columns
  const Tensor info = as_contiguous(codes);
  Tensor logdet = empty(a, {a.size(0)}, kType<T>);
  logdet_of_factors<T>(data<T>(l), data<int32_t>(info), a.size(0), static_cast<int>(a.size(1)), data<T>(logdet),
                       stream);
  return {logdet, l};
}

// logdet (B,) and, if needed, the inverses of matrices that this library's own kernels factor.
template <class T>
void factor_own(const Tensor& a, const Tensor& logdet, T* inverse, Stream stream) {
  const auto factor = a.size(1) <= kRegisterMatrix ? factor_in_registers<T> : factor_in_shared<T>;
  factor(static_cast<const T*>(a.const_data_ptr()), a.size(0), static_cast<int>(a.size(1)), data<T>(logdet), inverse,
         stream);
}

// The only place that waits for the device.
template <class T>
void check_positive_definite(const Tensor& logdet) {
  const Tensor on_host = torch::stable::to(logdet, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  const T* values = static_cast<const T*>(on_host.const_data_ptr());
  for (int64_t matrix = 0; matrix < on_host.size(0); ++matrix)
    if (std::isnan(values[matrix])) fail_not_positive_definite(matrix);
}

template <class T>
std::tuple<Tensor, Tensor> cholesky_as(const Tensor& a, bool check, bool need_inverse, Stream stream) {
  const int64_t batch = a.size(0), n = a.size(1);
  if (batch == 0 || n == 0)
    return {filled(a, {batch}, kType<T>, 0), empty(a, {need_inverse ? batch : 0, n, n}, kType<T>)};
  if (n > kSharedMatrix<T>) {
    const auto [logdet, l] = factor_by_solver<T>(a, stream);
    if (check) check_positive_definite<T>(logdet);
    return {logdet, need_inverse ? as_contiguous(aten::cholesky_inverse(l)) : empty(a, {0, n, n}, kType<T>)};
  }
  const Tensor logdet = empty(a, {batch}, kType<T>), inverse = empty(a, {need_inverse ? batch : 0, n, n}, kType<T>);
  factor_own<T>(a, logdet, need_inverse ? data<T>(inverse) : nullptr, stream);
  if (check) check_positive_definite<T>(logdet);
  return {logdet, inverse};
}

std::tuple<Tensor, Tensor> cholesky_fwd(const operators::cholesky_fwd& a) {
  const OnDevice device(a.A);
  const Tensor matrices = as_contiguous(a.A);
  return in_compute_type(matrices,
                         [&]<class T>() { return cholesky_as<T>(matrices, a.check, a.need_inverse, device.stream); });
}

template <class T>
Tensor cholesky_bwd_as(const Tensor& grad, const Tensor& inverse, Stream stream) {
  Tensor out = empty(inverse, {inverse.size(0), inverse.size(1), inverse.size(2)}, kType<T>);
  scale_matrices<T>(static_cast<const T*>(grad.const_data_ptr()), static_cast<const T*>(inverse.const_data_ptr()),
                    inverse.size(0), inverse.size(1) * inverse.size(2), data<T>(out), stream);
  return out;
}

Tensor cholesky_bwd(const operators::cholesky_bwd& a) {
  const OnDevice device(a.inverse);
  const Tensor grad = as_contiguous(a.grad_logdet), x = as_contiguous(a.inverse);
  return in_compute_type(x, [&]<class T>() { return cholesky_bwd_as<T>(grad, x, device.stream); });
}

// What a rate is computed from: the caller's rows, the factors that scale them, and where its gradient goes.
template <class T>
struct RateProblem {
  Tensor z, scale, grad, rate;
  const RateOptions& o;
  Stream stream;

  RateProblem(const Tensor& z, const RateOptions& o, Stream stream)
      : z(z),
        scale(empty(z, {z.size(0)}, kType<T>)),
        grad(empty(z, {o.need_grad ? z.size(0) : 0, z.size(1)}, z.scalar_type())),
        rate(empty(z, {}, compute_type(z))),
        o(o),
        stream(stream) {}
  int64_t rows() const { return z.size(0); }
  int64_t width() const { return z.size(1); }
  // (M, D) of T: the gradient itself where that has this dtype.
  Tensor gradient_scratch() const {
    return z.scalar_type() == kType<T> && o.need_grad ? grad : empty(z, {o.need_grad ? rows() : 0, width()}, kType<T>);
  }
};

// out = left (m, k) times the transpose of right (n, k), in parts that are added up later. PyTorch's own product of
// float32 is one of TF32 where the user allows that for his model, and the bounds of the condition number do not hold.
template <class T>
void multiply_by_rows(const Tensor& left, const Tensor& right, int64_t splits, const Tensor& out, Stream stream) {
  if constexpr (sizeof(T) == 8)
    aten::multiply(left, transpose(right, 0, 1), out);
  else
    multiply_rows(data<T>(aligned_rows(left, stream)), left.size(0), data<T>(aligned_rows(right, stream)),
                  right.size(0), row_stride(left), splits, data<T>(out), stream);
}

// I + a X X^T (1, side, side) of x (side, k).
template <class T>
Tensor gram_matrix(const Tensor& x, double a, Stream stream) {
  const int64_t side = x.size(0), tiles = (side + kTile - 1) / kTile;
  const int64_t splits = sizeof(T) == 8 ? 1 : column_splits(tiles * tiles, x.size(1) / kTile);
  const Tensor parts = empty(x, {splits, side, side}, kType<T>), gram = empty(x, {1, side, side}, kType<T>);
  multiply_by_rows<T>(x, x, splits, torch::stable::select(parts, 0, 0), stream);
  add_identity<T>(data<T>(parts), splits, side, a, data<T>(gram), stream);
  return gram;
}

// ½ logdet(I + a Z Z^T) by the smaller Gram matrix.
template <class T>
void total_rate(const RateProblem<T>& p) {
  const int64_t n = p.rows(), d = p.width(), side = std::min(n, d);
  const double a = p.o.gain * rate_scale(n, d, p.o.eps_squared, p.o.official);
  const Tensor f = empty(p.z, {n, d}, kType<T>), ft = transpose(f, 0, 1);
  scale_rows<T>(stored(p.z), n, d, p.o.normalize, data<T>(p.scale), data<T>(f), p.stream);
  const Tensor gram = gram_matrix<T>(n <= d ? f : as_contiguous(ft), a, p.stream);

  Tensor logdet = empty(p.z, {1}, kType<T>), y = p.gradient_scratch();
  if (side <= kSharedMatrix<T> && p.o.normalize && condition_bound(n, d, p.o, static_cast<double>(n)) <= kInvertible) {
    const Tensor inverse = empty(p.z, {side, side}, kType<T>);
    factor_own<T>(gram, logdet, p.o.need_grad ? data<T>(inverse) : nullptr, p.stream);
    if (p.o.need_grad)
      n <= d ? multiply_by_rows<T>(inverse, as_contiguous(ft), 1, y, p.stream)
             : multiply_by_rows<T>(f, inverse, 1, y, p.stream);  // which is symmetric
  } else {
    const auto [value, factor] = factor_by_solver<T>(gram, p.stream);
    logdet = value;
    const Tensor l = torch::stable::select(factor, 0, 0);
    if (p.o.need_grad)
      y = as_contiguous(n <= d ? aten::cholesky_solve(f, l) : transpose(aten::cholesky_solve(ft, l), 0, 1));
  }
  sum_terms<T>(data<T>(logdet), 1, 0.5, stored(p.rate), p.stream);
  if (!p.o.need_grad) return;
  finish_rate_gradient<T>(RateGradient<T>{stored(p.z), stored(p.grad), data<T>(y), data<T>(p.scale), data<T>(logdet), n,
                                          d, a, p.o.normalize},
                          p.stream);
}

// sum_c n_c/(2n) logdet(I + a_c Z_c Z_c^T).
template <class T>
void rate_of_classes(const RateProblem<T>& p, const Tensor& labels) {
  const int64_t n = p.rows(), d = p.width();
  const auto [sorted, order] = stable_sort(as_contiguous(labels));
  scale_rows<T>(stored(p.z), n, d, p.o.normalize, data<T>(p.scale), nullptr, p.stream);
  const bool large = std::min(n, d) > kClassSide;
  const Tensor y = p.gradient_scratch(), tiles = empty(p.z, {large ? n : 0, d}, kType<T>);
  const Tensor terms = empty(p.z, {class_blocks(n)}, ScalarType::Double);
  class_rates<T>(
      ClassRates<T>{stored(p.z), stored(p.grad), data<int64_t>(sorted), data<int64_t>(order), data<T>(p.scale), n, d,
                    p.o.eps_squared, p.o.gain, p.o.gain * rate_scale(n, d, p.o.eps_squared, false), p.o.normalize,
                    p.o.need_grad, data<T>(y), data<T>(tiles), data<double>(terms)},
      p.stream);
  sum_terms<double>(data<double>(terms), terms.size(0), 0.5 / static_cast<double>(n), stored(p.rate), p.stream);
}

template <class T>
std::tuple<Tensor, Tensor> rate_as(const Tensor& z, const std::optional<Tensor>& labels, const RateOptions& o,
                                   Stream stream) {
  const RateProblem<T> problem(z, o, stream);
  labels ? rate_of_classes(problem, *labels) : total_rate(problem);
  return {problem.rate, problem.grad};
}

std::tuple<Tensor, Tensor> coding_rate_fwd(const operators::coding_rate_fwd& a) {
  const RateOptions o = rate_options(a);
  const int64_t n = a.z.size(0), d = a.z.size(1);
  if (n == 0 || d == 0)
    return {filled(a.z, {}, compute_type(a.z), 0), empty(a.z, {a.need_grad ? n : 0, d}, a.z.scalar_type())};
  const OnDevice device(a.z);
  const Tensor x = as_contiguous(a.z);
  // Without normalising nothing bounds the condition number that the host knows of.
  const bool wide = compute_type(x) == ScalarType::Double || !a.normalize ||
                    condition_bound(n, d, o, static_cast<double>(n)) > kFloatCondition;
  return wide ? rate_as<double>(x, a.labels, o, device.stream) : rate_as<float>(x, a.labels, o, device.stream);
}

Tensor coding_rate_bwd(const operators::coding_rate_bwd& a) {
  const OnDevice device(a.rate_grad);
  const Tensor x = as_contiguous(a.rate_grad);
  Tensor out = empty(x, {x.size(0), x.size(1)}, x.scalar_type());
  scale_rate_gradient(stored(a.grad_rate), stored(x), x.size(0) * x.size(1), stored(out), device.stream);
  return out;
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("cholesky_fwd", dml::boxed<&dml::cholesky_fwd>);
  m.impl("cholesky_bwd", dml::boxed<&dml::cholesky_bwd>);
  m.impl("coding_rate_fwd", dml::boxed<&dml::coding_rate_fwd>);
  m.impl("coding_rate_bwd", dml::boxed<&dml::coding_rate_bwd>);
}
