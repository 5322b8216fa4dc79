#include "common/coding_rate_arguments.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "common/aten.h"
#include "cpu/coding_rate_kernels.h"
#include "cpu/dispatch.h"
#include "cpu/rows.h"
#include "cpu/rows_kernels.h"

namespace dml {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

template <class T>
constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <class T>
double log_determinant(const T* l, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::log(static_cast<double>(l[i * n + i]));
  return 2 * sum;
}

// A vector's worth of small matrices, interleaved; unused lanes hold the identity.
template <class T>
struct Lanes {
  const CholeskyKernels<T>& kernel = kernels<CholeskyKernels<T>>();
  int n = 0;
  Buffer<T> a, inverse, scratch;
  std::vector<double> logdet;

  explicit Lanes(int largest) : logdet(static_cast<size_t>(kernel.lanes)) {
    const int64_t size = static_cast<int64_t>(largest) * largest * kernel.lanes;
    a = Buffer<T>(size);
    inverse = Buffer<T>(size);
    scratch = Buffer<T>(size);
  }
  void reset(int size) {
    n = size;
    for (int64_t k = 0; k < static_cast<int64_t>(n) * n * kernel.lanes; ++k) a[k] = 0;
    for (int i = 0; i < n; ++i)
      for (int lane = 0; lane < kernel.lanes; ++lane) at(i, i, lane) = 1;
  }
  T& at(int i, int j, int lane) const { return a[(static_cast<int64_t>(i) * n + j) * kernel.lanes + lane]; }
  T inverse_at(int i, int j, int lane) const {
    return inverse[(static_cast<int64_t>(i) * n + j) * kernel.lanes + lane];
  }
  void factor(bool with_inverse) {
    kernel.factor(a.data(), n, logdet.data(), with_inverse ? inverse.data() : nullptr, scratch.data());
  }
};

template <class T>
std::tuple<Tensor, Tensor> small_matrices(const Tensor& a, bool check, bool need_inverse) {
  const int64_t batch = a.size(0);
  const int n = static_cast<int>(a.size(1));
  Tensor logdet = filled(a, {batch}, kType<T>, 0), inverse = filled(a, {need_inverse ? batch : 0, n, n}, kType<T>, 0);
  const T* from_data = static_cast<const T*>(a.const_data_ptr());
  const int64_t lanes = kernels<CholeskyKernels<T>>().lanes, size = static_cast<int64_t>(n) * n;
  torch::stable::parallel_for(0, (batch + lanes - 1) / lanes, 1, [&](int64_t begin, int64_t end) {
    Lanes<T> group(n);
    for (int64_t g = begin; g < end; ++g) {
      group.reset(n);
      const int count = static_cast<int>(std::min(lanes, batch - g * lanes));
      for (int lane = 0; lane < count; ++lane)
        for (int i = 0; i < n; ++i)
          for (int j = 0; j <= i; ++j) group.at(i, j, lane) = from_data[(g * lanes + lane) * size + i * n + j];
      group.factor(need_inverse);
      for (int lane = 0; lane < count; ++lane) {
        const int64_t matrix = g * lanes + lane;
        data<T>(logdet)[matrix] = static_cast<T>(group.logdet[lane]);
        for (int64_t k = 0; need_inverse && k < size; ++k)
          data<T>(inverse)[matrix * size + k] = group.inverse[k * lanes + lane];
      }
    }
  });
  for (int64_t matrix = 0; check && matrix < batch; ++matrix)
    if (!(data<T>(logdet)[matrix] > -std::numeric_limits<T>::infinity())) fail_not_positive_definite(matrix);
  return {logdet, inverse};
}

template <class T>
std::tuple<Tensor, Tensor> large_matrices(const Tensor& a, bool check, bool need_inverse) {
  const int64_t batch = a.size(0), n = a.size(1);
  const auto [factor, info] = aten::cholesky(a);
  // LAPACK may return its factors by columns.
  const Tensor l = as_contiguous(factor);
  Tensor logdet = filled(a, {batch}, kType<T>, 0);
  const int32_t* failed = static_cast<const int32_t*>(info.const_data_ptr());
  bool any_failed = false;
  for (int64_t matrix = 0; matrix < batch; ++matrix) {
    const double value = log_determinant(data<T>(l) + matrix * n * n, n);
    const bool bad = failed[matrix] != 0 || !(value > -std::numeric_limits<double>::infinity());
    if (bad && check) fail_not_positive_definite(matrix);
    data<T>(logdet)[matrix] = static_cast<T>(bad ? kNaN : value);
    any_failed = any_failed || bad;
    // LAPACK's inverse refuses a zero on the diagonal; what comes of this matrix is replaced by NaN below.
    for (int64_t i = 0; bad && i < n; ++i)
      for (int64_t j = 0; j < n; ++j) data<T>(l)[(matrix * n + i) * n + j] = i == j;
  }
  if (!need_inverse) return {logdet, filled(a, {0, n, n}, kType<T>, 0)};
  Tensor inverse = as_contiguous(aten::cholesky_inverse(l));
  for (int64_t matrix = 0; any_failed && matrix < batch; ++matrix)
    if (std::isnan(data<T>(logdet)[matrix]))
      std::fill_n(data<T>(inverse) + matrix * n * n, n * n, static_cast<T>(kNaN));
  return {logdet, inverse};
}

template <class T>
std::tuple<Tensor, Tensor> cholesky_as(const Tensor& a, bool check, bool need_inverse) {
  return a.size(1) <= kSmallMatrix ? small_matrices<T>(a, check, need_inverse)
                                   : large_matrices<T>(a, check, need_inverse);
}

std::tuple<Tensor, Tensor> cholesky_fwd(const operators::cholesky_fwd& a) {
  const Tensor matrices = as_contiguous(a.A);
  return in_compute_type(matrices, [&]<class T>() { return cholesky_as<T>(matrices, a.check, a.need_inverse); });
}

template <class T>
Tensor scale_matrices(const Tensor& grad, const Tensor& inverse) {
  const int64_t size = inverse.size(1) * inverse.size(2);
  Tensor out = torch::stable::empty_like(inverse);
  const T *g = static_cast<const T*>(grad.const_data_ptr()), *x = static_cast<const T*>(inverse.const_data_ptr());
  torch::stable::parallel_for(0, inverse.size(0), 64, [&](int64_t begin, int64_t end) {
    for (int64_t matrix = begin; matrix < end; ++matrix)
      for (int64_t k = matrix * size; k < (matrix + 1) * size; ++k) data<T>(out)[k] = g[matrix] * x[k];
  });
  return out;
}

Tensor cholesky_bwd(const operators::cholesky_bwd& a) {
  const Tensor g = as_contiguous(a.grad_logdet), x = as_contiguous(a.inverse);
  return in_compute_type(x, [&]<class T>() { return scale_matrices<T>(g, x); });
}

// One row of the gradient: G_i, taken through the normalisation, into the caller's row.
template <class T>
void write_gradient(T* g, const Rows<T>& rows, int64_t i, bool normalize, const Tensor& out) {
  const auto& kernel = kernels<RowsKernels<T>>();
  const RowsView<T>& view = rows.view;
  if (normalize) {
    const T* f = view.rows + i * view.stride;
    kernel.add_scaled(g, f, view.d, -kernel.dot(g, f, view.d));
    kernel.scale(g, view.d, rows.inverse[i]);
  }
  write_row(g, out, view.index[i], 0, view.d);
}

// logdet(I + a Z Z^T) of rows begin..end by its smaller Gram matrix, and G = scale (I + a Z Z^T)^-1 Z, by LAPACK.
template <class T>
double large_rate(const Rows<T>& rows, int64_t begin, int64_t end, double a, double scale, const RateOptions& o,
                  const Tensor& like, const Tensor& grad) {
  using torch::stable::transpose;
  const RowsView<T>& view = rows.view;
  const int64_t n = end - begin, d = view.d, side = std::min(n, d);
  Tensor z = aten::empty(like, {n, d}, kType<T>);
  for (int64_t i = 0; i < n; ++i) std::copy_n(view.rows + (begin + i) * view.stride, d, data<T>(z) + i * d);
  const Tensor zt = transpose(z, 0, 1);
  Tensor gram = aten::empty(like, {side, side}, kType<T>);
  n <= d ? aten::multiply(z, zt, gram) : aten::multiply(zt, z, gram);
  double trace = 0;
  for (int64_t k = 0; k < side * side; ++k) data<T>(gram)[k] *= static_cast<T>(a);
  for (int64_t k = 0; k < side; ++k) {
    trace += static_cast<double>(data<T>(gram)[k * side + k]);
    data<T>(gram)[k * side + k] += 1;
  }
  const Tensor l = as_contiguous(std::get<0>(aten::cholesky(gram)));
  if (o.need_grad) {
    Tensor g = aten::empty(like, {n, d}, kType<T>);
    if (1 + trace <= kInvertible) {
      const Tensor inverse = aten::cholesky_inverse(l);
      n <= d ? aten::multiply(inverse, z, g) : aten::multiply(z, inverse, g);
    } else {
      g = as_contiguous(n <= d ? aten::cholesky_solve(z, l) : transpose(aten::cholesky_solve(zt, l), 0, 1));
    }
    torch::stable::parallel_for(0, n, 64, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        kernels<RowsKernels<T>>().scale(data<T>(g) + i * d, d, static_cast<T>(scale));
        write_gradient(data<T>(g) + i * d, rows, begin + i, o.normalize, grad);
      }
    });
  }
  return log_determinant(data<T>(l), side);
}

struct ClassRows {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// A vector's worth of small classes, one to a lane.
template <class T>
void small_rates(const Rows<T>& rows, const ClassRows* classes, int count, const RateOptions& o, Lanes<T>& group,
                 double* logdet, const Tensor& grad) {
  const auto& kernel = kernels<RowsKernels<T>>();
  const RowsView<T>& view = rows.view;
  const auto row = [&](int64_t i) { return view.rows + i * view.stride; };
  int64_t largest = 0;
  for (int lane = 0; lane < count; ++lane) largest = std::max(largest, classes[lane].size());
  group.reset(static_cast<int>(largest));
  for (int lane = 0; lane < count; ++lane) {
    const ClassRows& c = classes[lane];
    const T a = static_cast<T>(o.gain * rate_scale(c.size(), view.d, o.eps_squared, false));
    for (int i = 0; i < c.size(); ++i)
      for (int j = 0; j <= i; ++j) group.at(i, j, lane) += a * kernel.dot(row(c.begin + i), row(c.begin + j), view.d);
  }
  group.factor(o.need_grad);
  std::vector<T> g(static_cast<size_t>(view.d));
  const T scale = static_cast<T>(o.gain * rate_scale(view.n, view.d, o.eps_squared, false));
  for (int lane = 0; lane < count; ++lane) {
    logdet[lane] = group.logdet[lane];
    const ClassRows& c = classes[lane];
    for (int i = 0; o.need_grad && i < c.size(); ++i) {
      std::fill(g.begin(), g.end(), T(0));
      for (int j = 0; j < c.size(); ++j)
        kernel.add_scaled(g.data(), row(c.begin + j), view.d, scale * group.inverse_at(i, j, lane));
      write_gradient(g.data(), rows, c.begin + i, o.normalize, grad);
    }
  }
}

std::vector<ClassRows> class_rows(const int32_t* classes, int64_t n) {
  std::vector<ClassRows> out;
  for (int64_t i = 0; i < n; ++i) {
    if (i == 0 || classes[i] != classes[i - 1]) out.push_back({i, i});
    out.back().end = i + 1;
  }
  // Classes of one size share a vector; the larger ones first.
  std::stable_sort(out.begin(), out.end(), [](const ClassRows& a, const ClassRows& b) { return a.size() > b.size(); });
  return out;
}

// sum_c n_c/(2n) logdet(I + a_c Z_c Z_c^T).
template <class T>
double class_rate(const Rows<T>& rows, const RateOptions& o, const Tensor& like, const Tensor& grad) {
  const RowsView<T>& view = rows.view;
  const std::vector<ClassRows> classes = class_rows(view.classes, view.n);
  std::vector<double> logdet(classes.size());
  const double scale = o.gain * rate_scale(view.n, view.d, o.eps_squared, false);
  size_t first = 0;
  for (; first < classes.size() && classes[first].size() > kSmallMatrix; ++first) {
    const ClassRows& c = classes[first];
    const double a = o.gain * rate_scale(c.size(), view.d, o.eps_squared, false);
    logdet[first] = large_rate(rows, c.begin, c.end, a, scale, o, like, grad);
  }
  const int64_t lanes = kernels<CholeskyKernels<T>>().lanes, small = static_cast<int64_t>(classes.size() - first);
  torch::stable::parallel_for(0, (small + lanes - 1) / lanes, 1, [&](int64_t begin, int64_t end) {
    Lanes<T> group(static_cast<int>(classes[first + begin * lanes].size()));
    for (int64_t g = begin; g < end; ++g) {
      const size_t at = first + g * lanes;
      small_rates(rows, classes.data() + at, static_cast<int>(std::min(lanes, small - g * lanes)), o, group,
                  logdet.data() + at, grad);
    }
  });
  double rate = 0;
  for (size_t c = 0; c < classes.size(); ++c)
    rate += static_cast<double>(classes[c].size()) / static_cast<double>(2 * view.n) * logdet[c];
  return rate;
}

template <class T>
std::tuple<Tensor, Tensor> rate_as(const Tensor& z, const std::optional<Tensor>& labels, const RateOptions& o) {
  const Rows<T> rows = labels ? prepare_class_rows<T>(z, *labels, o.normalize, Layout::rows)
                              : prepare_rows<T>(z, o.normalize, Layout::rows);
  const int64_t n = rows.view.n, d = z.size(1);
  Tensor grad = filled(z, {o.need_grad ? z.size(0) : 0, d}, z.scalar_type(), rows.any_non_finite ? kNaN : 0);
  double rate = 0;
  if (rows.any_non_finite) {
    rate = kNaN;
  } else if (n > 0 && d > 0 && labels) {
    rate = class_rate(rows, o, z, grad);
  } else if (n > 0 && d > 0) {
    const double a = o.gain * rate_scale(n, d, o.eps_squared, o.official);
    rate = 0.5 * large_rate(rows, 0, n, a, a, o, z, grad);
  }
  return {filled(z, {}, compute_type(z), rate), grad};
}

// Sum of the squared norms of the rows, 1 each where they are normalised.
double squared_norms(const Tensor& z, bool normalize) {
  if (normalize) return static_cast<double>(z.size(0));
  double sum = 0;
  std::vector<double> row(static_cast<size_t>(z.size(1)));
  for (int64_t i = 0; i < z.size(0); ++i) {
    read_row(z, i, row.data(), 0, z.size(1));
    sum += kernels<RowsKernels<double>>().sum_squares(row.data(), z.size(1));
  }
  return sum;
}

std::tuple<Tensor, Tensor> coding_rate_fwd(const operators::coding_rate_fwd& a) {
  const RateOptions o = rate_options(a);
  const Tensor x = as_contiguous(a.z);
  const std::optional<Tensor> labels = as_contiguous(a.labels);
  // Rows of one class, not normalised, can outweigh all others: their bound is not that of the whole.
  const bool wide = compute_type(x) == ScalarType::Double || (labels && !a.normalize) ||
                    condition_bound(x.size(0), x.size(1), o, squared_norms(x, a.normalize)) > kFloatCondition;
  return wide ? rate_as<double>(x, labels, o) : rate_as<float>(x, labels, o);
}

Tensor coding_rate_bwd(const operators::coding_rate_bwd& a) {
  const Tensor x = as_contiguous(a.rate_grad);
  const double g = in_compute_type(
      x, [&]<class T>() { return static_cast<double>(*static_cast<const T*>(a.grad_rate.const_data_ptr())); });
  Tensor out = torch::stable::empty_like(x);
  torch::stable::parallel_for(0, x.size(0), 64, [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<size_t>(x.size(1)));
    for (int64_t i = begin; i < end; ++i) {
      read_row(x, i, row.data(), 0, x.size(1));
      for (double& value : row) value *= g;
      write_row(row.data(), out, i, 0, x.size(1));
    }
  });
  return out;
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("cholesky_fwd", dml::boxed<&dml::cholesky_fwd, dml::Read::numbers>);
  m.impl("cholesky_bwd", dml::boxed<&dml::cholesky_bwd, dml::Read::numbers>);
  m.impl("coding_rate_fwd", dml::boxed<&dml::coding_rate_fwd, dml::Read::numbers>);
  m.impl("coding_rate_bwd", dml::boxed<&dml::coding_rate_bwd, dml::Read::numbers>);
}
