#pragma once
// Cases for the driver: each launches kernels of its own and returns the numbers they gave, or throws.

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.cuh"

namespace cuda_host {

using Numbers = std::vector<float>;
// A case with a fault has a right twin, which shows that the fault is what is caught.
using Case = Numbers (*)(bool right);
bool add_case(const char* name, Case run);

inline void expect(bool good, const std::string& what) {
  if (!good) throw std::runtime_error(what);
}

}  // namespace cuda_host

#define DML_CASE(name)                                            \
  cuda_host::Numbers name(bool right);                            \
  const bool name##_is_a_case = cuda_host::add_case(#name, name); \
  cuda_host::Numbers name([[maybe_unused]] bool right)
