// Operator spherical_expansion on CUDA tensors.

#include <tuple>

#include "common/operators.h"
#include "cuda/launcher.h"
#include "cuda/spherical_expansion.h"

namespace dml {
namespace {

// The arguments as the kernels take them, and what keeps them alive.
struct Samples {
  Tensor z, proxies, noise, frames;
  int n;

  template <class Taken>
  explicit Samples(const Taken& a)
      : z(as_contiguous(a.z)),
        proxies(as_contiguous(a.proxies)),
        noise(as_contiguous(a.noise)),
        n(static_cast<int>(a.n)) {
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

std::tuple<Tensor, Tensor> spherical_expansion_fwd(const operators::spherical_expansion_fwd& a) {
  const OnDevice device(a.z);
  const Samples samples(a);
  const Tensor out = empty(a.z, {a.z.size(0) * a.n, a.z.size(1)}, a.z.scalar_type());
  const Tensor valid = empty(a.z, {a.z.size(0)}, ScalarType::Bool);
  const auto kernel = samples.is_double() ? expand<double> : expand<float>;
  kernel(samples.expansion(), stored(out), data<bool>(valid), device.stream);
  return {out, valid};
}

Tensor spherical_expansion_bwd(const operators::spherical_expansion_bwd& a) {
  const OnDevice device(a.z);
  const Samples samples(a);
  const Tensor g = as_contiguous(a.grad), out = empty(a.z, {a.z.size(0), a.z.size(1)}, a.z.scalar_type());
  const auto kernel = samples.is_double() ? expand_backward<double> : expand_backward<float>;
  kernel(samples.expansion(), stored(g), stored(out), device.stream);
  return out;
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("spherical_expansion_fwd", dml::boxed<&dml::spherical_expansion_fwd>);
  m.impl("spherical_expansion_bwd", dml::boxed<&dml::spherical_expansion_bwd>);
}
