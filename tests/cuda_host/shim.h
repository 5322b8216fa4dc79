#pragma once
// CUDA's execution model on the host: a fiber per thread, blocks one after another. The blocks of a launch, and between
// two synchronisations the fibers of a block, run in a seeded random order, so that a race gives different results
// under different seeds. Shared memory is NaN at the start of each block. A barrier that some threads do not reach is
// an error that names who waits where.

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <source_location>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_host {

using Site = std::source_location;

struct Indices {
  dim3 thread, block, block_size, grid_size;
};
const Indices& indices();

unsigned char* shared_memory();

// What a kernel is launched with; `arguments` points to each of its parameters.
struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared;
  const void* const* arguments;
  const size_t* sizes;
  size_t count;
};

// Runs all blocks of a launch; throws std::runtime_error for what a device would refuse, hang on or corrupt.
void run(const Launch& launch, const std::function<void()>& kernel);

// Is asked first, where one is set (tests/ptx): whether it has carried out the launch, so that no fiber has to.
using Launcher = bool (*)(const Launch&);

void block_barrier(const Site& site);

// Waits for every lane of the mask to deposit `size` bytes at the same place in the program; what lane k brought is at
// deposits + k * kDeposit until its next exchange.
constexpr size_t kDeposit = 128;
const unsigned char* warp_exchange(unsigned mask, const void* value, size_t size, const Site& site);
[[noreturn]] void fail_in_kernel(const char* what, const Site& site);

int lane();

template <class T>
T deposit_of(const unsigned char* deposits, int from) {
  T value;
  memcpy(&value, deposits + static_cast<size_t>(from) * kDeposit, sizeof(T));
  return value;
}

template <class T>
T shuffle(unsigned mask, T value, int from, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kDeposit);
  const unsigned char* deposits = warp_exchange(mask, &value, sizeof(T), site);
  if ((mask >> from & 1u) == 0) fail_in_kernel("a shuffle reads a lane outside its mask", site);
  return deposit_of<T>(deposits, from);
}

// Copies of cp.async: done when the thread waits for them, never before; until then the target is NaN.
void copy_async(void* to, const void* from, size_t size, size_t valid, const Site& site = Site::current());
void copy_async_commit();
void copy_async_wait(int groups_in_flight);

}  // namespace cuda_host

#define threadIdx (cuda_host::indices().thread)
#define blockIdx (cuda_host::indices().block)
#define blockDim (cuda_host::indices().block_size)
#define gridDim (cuda_host::indices().grid_size)

#define DML_SITE const cuda_host::Site& site = cuda_host::Site::current()

inline void __syncthreads(DML_SITE) { cuda_host::block_barrier(site); }
int __syncthreads_or(int predicate, DML_SITE);
int __syncthreads_count(int predicate, DML_SITE);
inline void __syncwarp(unsigned mask = 0xffffffffu, DML_SITE) { cuda_host::warp_exchange(mask, nullptr, 0, site); }

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, DML_SITE) {
  const int base = cuda_host::lane() / width * width;
  return cuda_host::shuffle(mask, value, base + (from & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, DML_SITE) {
  const int lane = cuda_host::lane(), from = lane ^ bits;
  return cuda_host::shuffle(mask, value, from / width > lane / width ? lane : from, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32, DML_SITE) {
  const int lane = cuda_host::lane();
  return cuda_host::shuffle(mask, value, lane % width + delta < width ? lane + delta : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32, DML_SITE) {
  const int lane = cuda_host::lane();
  return cuda_host::shuffle(mask, value, lane % width >= delta ? lane - delta : lane, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, DML_SITE) {
  const unsigned char* deposits = cuda_host::warp_exchange(mask, &predicate, sizeof(int), site);
  unsigned votes = 0;
  for (int k = 0; k < 32; ++k)
    if ((mask >> k & 1u) != 0 && cuda_host::deposit_of<int>(deposits, k) != 0) votes |= 1u << k;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, DML_SITE) { return __ballot_sync(mask, predicate, site) != 0; }
inline int __all_sync(unsigned mask, int predicate, DML_SITE) { return __ballot_sync(mask, predicate, site) == mask; }

// One fiber runs at a time, so that what is atomic on a device is a plain read and write here.
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = old + value;
  return old;
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  if (value > old) *at = value;
  return old;
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  if (value < old) *at = value;
  return old;
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = old | value;
  return old;
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}

inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
// A number as it is rounded: the compiler can make no fma of what comes before and after.
template <class T>
inline T rounded(T x) {
  asm("" : "+x"(x));
  return x;
}
inline float __fadd_rn(float a, float b) { return rounded(a) + rounded(b); }
inline float __fmul_rn(float a, float b) { return rounded(a * b); }
inline double __dadd_rn(double a, double b) { return rounded(a) + rounded(b); }
inline double __dmul_rn(double a, double b) { return rounded(a * b); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
