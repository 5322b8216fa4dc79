#pragma once
// CUDA's runtime as csrc/cuda/launch.cuh calls it: nothing runs, and what it keeps between calls can be looked at.

#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 blockIdx, gridDim;

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

struct Runtime {
  cudaError_t of_attribute = cudaSuccess, of_launch = cudaSuccess, last = cudaSuccess;
  std::vector<int> limits;
  int launches = 0;

  cudaError_t keep(cudaError_t error) { return error == cudaSuccess ? error : last = error; }
};
inline Runtime runtime;

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  runtime.limits.push_back(value);
  return runtime.keep(runtime.of_attribute);
}
template <class... P>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t*, void (*)(P...), P...) {
  ++runtime.launches;
  return runtime.keep(runtime.of_launch);
}
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = runtime.last;
  runtime.last = cudaSuccess;
  return error;
}
inline cudaError_t cudaFuncGetName(const char** name, const void*) {
  *name = "the_kernel";
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "invalid configuration argument";
}
