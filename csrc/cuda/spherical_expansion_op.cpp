// Operator spherical_expansion on CUDA tensors.

#include <tuple>

#include "common/spherical_expansion_arguments.h"
#include "cuda/launcher.h"
#include "cuda/spherical_expansion.h"

namespace dml {
namespace {

using torch::stable::contiguous;

// The arguments as the kernels take them, and what keeps them alive.
struct Samples {
  Tensor z, proxies, noise, frames;
  int n;

  Samples(const Tensor& z, const Tensor& proxies, const Tensor& noise, int64_t n)
      : z(contiguous(z)), proxies(contiguous(proxies)), noise(contiguous(noise)), n(static_cast<int>(n)) {
    const int64_t width = z.size(1);
    const bool wide = is_double();
    const bool in_shared = wide ? frame_in_shared<double>(width, this->n) : frame_in_shared<float>(width, this->n);
    frames = empty(z, {in_shared ? 0 : z.size(0), this->n + kExtraRows, width}, compute_type(z));
  }
  bool is_double() const { return compute_type(z) == ScalarType::Double; }
  Expansion expansion() const {
    void* const scratch = frames.size(0) > 0 ? frames.mutable_data_ptr() : nullptr;
    return Expansion{stored(z), stored(proxies), stored(noise), z.size(0), z.size(1), n, scratch};
  }
};

std::tuple<Tensor, Tensor> spherical_expansion_fwd(const Tensor& z, const Tensor& proxies, const Tensor& noise,
                                                   int64_t n) {
  check_spherical_expansion("spherical_expansion", z, proxies, noise, n);
  const OnDevice device(z);
  const Samples samples(z, proxies, noise, n);
  const Tensor out = empty(z, {z.size(0) * n, z.size(1)}, z.scalar_type());
  const Tensor valid = empty(z, {z.size(0)}, ScalarType::Bool);
  const auto kernel = samples.is_double() ? expand<double> : expand<float>;
  kernel(samples.expansion(), stored(out), data<bool>(valid), device.stream);
  return {out, valid};
}

Tensor spherical_expansion_bwd(const Tensor& grad, const Tensor& z, const Tensor& proxies, const Tensor& noise,
                               int64_t n) {
  check_spherical_expansion_bwd("spherical_expansion_bwd", grad, z, proxies, noise, n);
  const OnDevice device(z);
  const Samples samples(z, proxies, noise, n);
  const Tensor g = contiguous(grad), out = empty(z, {z.size(0), z.size(1)}, z.scalar_type());
  const auto kernel = samples.is_double() ? expand_backward<double> : expand_backward<float>;
  kernel(samples.expansion(), stored(g), stored(out), device.stream);
  return out;
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("spherical_expansion_fwd", TORCH_BOX(&dml::spherical_expansion_fwd));
  m.impl("spherical_expansion_bwd", TORCH_BOX(&dml::spherical_expansion_bwd));
}
