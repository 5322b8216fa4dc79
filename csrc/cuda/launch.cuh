#pragma once
// The only way to launch a kernel and to get shared memory, on a device and on the host (tests/cuda_host), where a
// thread of a block is a fiber.

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "cuda/stream.h"

#if defined(DML_CUDA_HOST)
#include "cuda_host/shim.h"
#else
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#endif

#define DML_DEVICE __device__ __forceinline__
// Threads of a block, and how many blocks a multiprocessor shall hold at least where that is worth a limit of
// registers.
#define DML_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)

namespace dml {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
// What every supported device gives a block: 8.6, 8.9 and 12.0 have no more.
constexpr size_t kMaxShared = 99 * 1024;

#if defined(DML_CUDA_HOST)

#define DML_SHARED(name) unsigned char* const name = cuda_host::shared_memory()

template <class... P>
void launch(void (*kernel)(P...), dim3 grid, int block, size_t shared, Stream, std::type_identity_t<P>... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const void* const all[] = {&arguments...};
  constexpr size_t kSizes[] = {sizeof(P)...};
  cuda_host::run({reinterpret_cast<const void*>(kernel), grid, dim3(static_cast<unsigned>(block)), shared, all, kSizes,
                  sizeof...(P)},
                 [&] { kernel(arguments...); });
}

#else

#define DML_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// The runtime keeps an error for whoever asks next, which would be torch after a kernel of its own.
inline void check_launch(cudaError_t status, const void* kernel) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  const char* name = "a kernel";
  cudaFuncGetName(&name, kernel);
  throw std::runtime_error(std::string("CUDA cannot launch ") + name + ": " + cudaGetErrorString(status));
}

template <class... P>
void launch(void (*kernel)(P...), dim3 grid, int block, size_t shared, Stream stream,
            std::type_identity_t<P>... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto* const address = reinterpret_cast<const void*>(kernel);
  // The limit is the kernel's, and other threads launch it too: it is always the same.
  if (shared > 48 * 1024)
    check_launch(cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxShared), address);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  check_launch(cudaLaunchKernelEx(&config, kernel, arguments...), address);
}

#endif

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// Rows and columns of blocks, any number of either: y ends at 65,535, and columns go on along z. That may leave a few
// blocks beyond the last column.
inline dim3 block_matrix(unsigned rows, unsigned cols) {
  constexpr unsigned kMost = 65535;
  const unsigned depth = cols <= kMost ? 1 : (cols - 1) / kMost + 1;
  return dim3(rows, (cols + depth - 1) / depth, depth);
}
DML_DEVICE int64_t block_col() { return static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y; }

}  // namespace dml
