// In the library with sanitizers only: writes one number beyond those that it was given, which they must catch.

#include "cuda/launch.cuh"

namespace dml {
namespace {

DML_KERNEL(32) overrun(float* values, int64_t count) {
  for (int64_t k = threadIdx.x; k <= count; k += kWarp) values[k] = 1;
}

}  // namespace
}  // namespace dml

extern "C" __attribute__((visibility("default"))) void dmlkernels_cuda_host_overrun(float* values, int64_t count) {
  dml::launch(dml::overrun, dim3(1), 32, 0, nullptr, values, count);
}
