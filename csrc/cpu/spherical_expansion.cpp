#include "common/spherical_expansion.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "common/operators.h"
#include "cpu/dispatch.h"
#include "cpu/rows.h"
#include "cpu/rows_kernels.h"

namespace dml {
namespace {

// The frame of one sample: z = projection + radius * v_1, v_1..v_n orthonormal and orthogonal to the proxy.
template <class T>
struct Frame {
  int64_t d;
  int n;
  std::vector<T> z, proxy, basis, centers;  // basis: (n, d); centers: (n + 1, n)
  T z_norm, along, radius;
  bool valid;
  const RowsKernels<T>& kernel = kernels<RowsKernels<T>>();

  Frame(int64_t d, int n)
      : d(d),
        n(n),
        z(static_cast<size_t>(d)),
        proxy(static_cast<size_t>(d)),
        basis(static_cast<size_t>(n * d)),
        centers(static_cast<size_t>((n + 1) * n)) {
    for (int i = 0; i <= n; ++i)
      for (int j = 0; j < n; ++j) centers[i * n + j] = static_cast<T>(simplex_center(n, i, j));
  }
  T* v(int j) { return basis.data() + j * d; }
  T center(int k, int j) const { return centers[k * n + j]; }

  T normalize(T* row) const {
    const T norm = std::sqrt(kernel.sum_squares(row, d));
    // A norm that overflows would make the row zero.
    const T nan = std::numeric_limits<T>::quiet_NaN();
    kernel.scale(row, d, std::isfinite(norm) ? T(1) / std::max(norm, static_cast<T>(1e-12)) : nan);
    return norm;
  }
  void build(const Tensor& zs, const Tensor& proxies, const Tensor& noise, int64_t i) {
    read_row(zs, i, z.data(), 0, d);
    read_row(proxies, i, proxy.data(), 0, d);
    z_norm = normalize(z.data());
    normalize(proxy.data());
    along = kernel.dot(z.data(), proxy.data(), d);
    std::copy(z.begin(), z.end(), v(0));
    kernel.add_scaled(v(0), proxy.data(), d, -along);
    radius = std::sqrt(kernel.sum_squares(v(0), d));
    valid = !(radius < static_cast<T>(kNoResidual));
    if (!valid) return;
    kernel.scale(v(0), d, 1 / radius);
    for (int j = 1; j < n; ++j) {
      read_row(noise, i, v(j), (j - 1) * d, d);
      // One pass leaves 1e-5 of the others in float32 when the frame fills the space; two leave rounding.
      for (int pass = 0; pass < 2; ++pass) {
        kernel.add_scaled(v(j), proxy.data(), d, -kernel.dot(v(j), proxy.data(), d));
        for (int other = 0; other < j; ++other) kernel.add_scaled(v(j), v(other), d, -kernel.dot(v(j), v(other), d));
        normalize(v(j));
      }
    }
  }
};

// (k, n-1, D) as the (k, (n-1) D) matrix whose rows are read in pieces.
Tensor flat(const Tensor& noise) {
  return torch::stable::reshape(as_contiguous(noise),
                                std::vector<int64_t>{noise.size(0), noise.size(1) * noise.size(2)});
}

template <class T>
std::tuple<Tensor, Tensor> forward_as(const Tensor& z, const Tensor& proxies, const Tensor& noise, int n) {
  const int64_t k = z.size(0), d = z.size(1);
  Tensor out = aten::empty(z, {k * n, d}, z.scalar_type());
  Tensor valid = aten::empty(z, {k}, ScalarType::Bool);
  bool* flags = static_cast<bool*>(valid.mutable_data_ptr());
  torch::stable::parallel_for(0, k, 8, [&](int64_t begin, int64_t end) {
    Frame<T> frame(d, n);
    std::vector<T> row(static_cast<size_t>(d));
    for (int64_t i = begin; i < end; ++i) {
      frame.build(z, proxies, noise, i);
      flags[i] = frame.valid;
      for (int s = 1; s <= n; ++s) {
        std::fill(row.begin(), row.end(), T(0));
        if (frame.valid) {
          frame.kernel.add_scaled(row.data(), frame.proxy.data(), d, frame.along);
          for (int j = 0; j < n; ++j)
            frame.kernel.add_scaled(row.data(), frame.v(j), d, frame.radius * frame.center(s, j));
        } else {
          row = frame.z;
        }
        write_row(row.data(), out, i * n + s - 1, 0, d);
      }
    }
  });
  return {out, valid};
}

// dL/dz = sum_s [p (p.g) - (1/n) (g - p (p.g)) + v_1 (q_s.g)], q_s = sum_{j >= 2} B_sj v_j; the frame is constant.
template <class T>
Tensor backward_as(const Tensor& grad, const Tensor& z, const Tensor& proxies, const Tensor& noise, int n) {
  const int64_t k = z.size(0), d = z.size(1);
  Tensor out = aten::empty(z, {k, d}, z.scalar_type());
  torch::stable::parallel_for(0, k, 8, [&](int64_t begin, int64_t end) {
    Frame<T> frame(d, n);
    std::vector<T> sum(static_cast<size_t>(d)), g(static_cast<size_t>(d));
    for (int64_t i = begin; i < end; ++i) {
      frame.build(z, proxies, noise, i);
      std::fill(sum.begin(), sum.end(), T(0));
      for (int s = 1; s <= n; ++s) {
        read_row(grad, i * n + s - 1, g.data(), 0, d);
        if (!frame.valid) {
          frame.kernel.add_scaled(sum.data(), g.data(), d, T(1));
          continue;
        }
        const T along = frame.kernel.dot(frame.proxy.data(), g.data(), d), share = T(1) / static_cast<T>(n);
        T across = 0;
        for (int j = 1; j < n; ++j) across += frame.center(s, j) * frame.kernel.dot(frame.v(j), g.data(), d);
        frame.kernel.add_scaled(sum.data(), frame.proxy.data(), d, along * (1 + share));
        frame.kernel.add_scaled(sum.data(), g.data(), d, -share);
        frame.kernel.add_scaled(sum.data(), frame.v(0), d, across);
      }
      frame.kernel.add_scaled(sum.data(), frame.z.data(), d, -frame.kernel.dot(sum.data(), frame.z.data(), d));
      frame.kernel.scale(sum.data(), d, frame.z_norm > static_cast<T>(1e-12) ? 1 / frame.z_norm : T(0));
      write_row(sum.data(), out, i, 0, d);
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> spherical_expansion_fwd(const operators::spherical_expansion_fwd& a) {
  return in_compute_type(a.z, [&]<class T>() {
    return forward_as<T>(as_contiguous(a.z), as_contiguous(a.proxies), flat(a.noise), static_cast<int>(a.n));
  });
}

Tensor spherical_expansion_bwd(const operators::spherical_expansion_bwd& a) {
  return in_compute_type(a.z, [&]<class T>() {
    return backward_as<T>(as_contiguous(a.grad), as_contiguous(a.z), as_contiguous(a.proxies), flat(a.noise),
                          static_cast<int>(a.n));
  });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("spherical_expansion_fwd", dml::boxed<&dml::spherical_expansion_fwd, dml::Read::numbers>);
  m.impl("spherical_expansion_bwd", dml::boxed<&dml::spherical_expansion_bwd, dml::Read::numbers>);
}
