// Faults of kernels, one each, beside the same kernel without it.

#include "cuda/async.cuh"
#include "cuda/reduce.cuh"
#include "cuda_host/driver.h"

namespace dml {
namespace {

constexpr int kThreads = 64;
using Kernel = void (*)(const float* in, float* out, bool right);

// `in` is 0, 1, 2, ...; both have an element per thread of all blocks.
cuda_host::Numbers results(Kernel kernel, size_t shared, bool right, unsigned blocks = 1) {
  cuda_host::Numbers in(kThreads * blocks), out(kThreads * blocks);
  for (size_t k = 0; k < in.size(); ++k) in[k] = static_cast<float>(k);
  launch(kernel, dim3(blocks), kThreads, shared, nullptr, in.data(), out.data(), right);
  return out;
}

DML_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

// Memory.

DML_KERNEL(kThreads) write_shared(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  auto* values = reinterpret_cast<float*>(shared);
  values[thread() + (right ? 0 : 1)] = in[thread()];
  __syncthreads();
  out[thread()] = values[thread()];
}
DML_CASE(shared_overrun) { return results(write_shared, kThreads * sizeof(float), right); }

DML_KERNEL(kThreads) write_minus_one(const float*, float* out, bool right) {
  DML_SHARED(shared);
  reinterpret_cast<int*>(shared)[thread() + (right ? 0 : 1)] = -1;
  out[thread()] = 1;
}
DML_CASE(shared_overrun_with_minus_one) { return results(write_minus_one, kThreads * sizeof(int), right); }

DML_KERNEL(kThreads) read_shared(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  auto* values = reinterpret_cast<float*>(shared);
  values[thread()] = in[thread()];
  __syncthreads();
  out[thread()] = values[right ? thread() : thread() + 1];
}
DML_CASE(shared_overread) { return results(read_shared, kThreads * sizeof(float), right); }

DML_KERNEL(kThreads) read_unwritten(const float*, float* out, bool right) {
  DML_SHARED(shared);
  auto* values = reinterpret_cast<float*>(shared);
  if (right) values[thread()] = 0;
  out[thread()] = values[thread()];
}
DML_CASE(shared_uninitialised) { return results(read_unwritten, kThreads * sizeof(float), right); }

DML_KERNEL(kThreads) write_global(const float* in, float* out, bool right) {
  out[thread() + (right ? 0 : 1)] = in[thread()];
}
DML_CASE(global_overrun) { return results(write_global, 0, right); }

DML_KERNEL(kThreads) read_global(const float* in, float* out, bool right) {
  out[thread()] = in[right ? thread() : thread() + 1];
}
DML_CASE(global_overread) { return results(read_global, 0, right); }

DML_KERNEL(kThreads) misaligned_pair(const float* in, float* out, bool right) {
  struct alignas(8) Pair {
    float a, b;
  };
  if (thread() == 0) out[0] = reinterpret_cast<const Pair*>(in + (right ? 2 : 1))->b;
}
DML_CASE(misaligned_load) { return results(misaligned_pair, 0, right); }

DML_KERNEL(kThreads) write_one(float* out) { *out = 1; }
cuda_host::Numbers of_one(dim3 grid, int threads) {
  cuda_host::Numbers out(1);
  launch(write_one, grid, threads, 0, nullptr, out.data());
  return out;
}
DML_CASE(too_many_blocks_on_x) { return of_one(dim3(right ? 2 : 0x80000000u), 1); }
DML_CASE(too_many_blocks_on_y) { return of_one(dim3(1, right ? 2 : 65536), 1); }
DML_CASE(too_many_blocks_on_z) { return of_one(dim3(1, 1, right ? 2 : 65536), 1); }
DML_CASE(too_many_threads) { return of_one(dim3(1), right ? 1024 : 1025); }
DML_CASE(too_much_shared) { return results(write_shared, right ? kMaxShared : kMaxShared + 1, true); }

// Synchronisation.

DML_KERNEL(kThreads) reverse(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  auto* values = reinterpret_cast<float*>(shared);
  values[thread()] = in[thread()];
  if (right) __syncthreads();
  out[thread()] = values[kThreads - 1 - thread()];
}
DML_CASE(missing_barrier) { return results(reverse, kThreads * sizeof(float), right); }

DML_KERNEL(kThreads) rotate(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  auto* values = reinterpret_cast<float*>(shared);
  float sum = 0;
  for (int step = 1; step <= 3; ++step) {
    values[thread()] = in[thread()] * static_cast<float>(step);
    __syncthreads();
    sum += values[(thread() + step) % kThreads];
    if (right) __syncthreads();  // before the values of the next step overwrite these
  }
  out[thread()] = sum;
}
DML_CASE(missing_barrier_of_a_loop) { return results(rotate, kThreads * sizeof(float), right); }

DML_KERNEL(kThreads) swap_in_warp(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  auto* values = reinterpret_cast<float*>(shared);
  values[thread()] = in[thread()];
  if (right) __syncwarp();
  out[thread()] = values[thread() ^ 1];
}
DML_CASE(missing_warp_barrier) { return results(swap_in_warp, kThreads * sizeof(float), right); }

DML_KERNEL(kThreads) chain_of_blocks(const float* in, float* out, bool right) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + thread();
  out[k] = in[k] + (right || blockIdx.x == 0 ? 0.0f : out[k - kThreads]);
}
DML_CASE(blocks_in_order) { return results(chain_of_blocks, 0, right, 8); }

DML_KERNEL(kThreads) add_in_any_order(const float* in, float* out, bool right) {
  const float value = 1.0f / (1.0f + in[thread()]);
  if (right)
    out[thread()] = warp_sum(value);
  else
    atomicAdd(out, value);
}
DML_CASE(sum_by_atomics) { return results(add_in_any_order, 0, right); }

DML_KERNEL(kThreads) half_a_barrier(const float* in, float* out, bool right) {
  if (right || thread() < 16) __syncthreads();
  out[thread()] = in[thread()];
}
DML_CASE(divergent_barrier) { return results(half_a_barrier, 0, right); }

DML_KERNEL(kThreads) two_barriers(const float* in, float* out, bool right) {
  if (right || thread() < 24)
    __syncthreads();
  else
    __syncthreads();
  out[thread()] = in[thread()];
}
DML_CASE(barrier_in_both_branches) { return results(two_barriers, 0, right); }

DML_KERNEL(kThreads) early_return(const float* in, float* out, bool right) {
  out[thread()] = in[thread()];
  if (thread() % kWarp >= 20) return;
  out[thread()] = static_cast<float>(__ballot_sync(right ? 0xfffffu : kAllLanes, 1));
}
DML_CASE(warp_vote_after_return) { return results(early_return, 0, right); }

DML_KERNEL(kThreads) shuffle_half(const float* in, float* out, bool right) {
  out[thread()] = in[thread()];
  if (thread() % kWarp < 16) out[thread()] = __shfl_sync(0xffffu, in[thread()], right ? 15 : 16);
}
DML_CASE(shuffle_outside_mask) { return results(shuffle_half, 0, right); }

DML_KERNEL(kThreads) not_in_mask(const float* in, float* out, bool right) {
  out[thread()] = __shfl_xor_sync(right ? kAllLanes : 0x7fffffffu, in[thread()], 1);
}
DML_CASE(lane_not_in_its_mask) { return results(not_in_mask, 0, right); }

// Asynchronous copies: each thread brings four elements.

constexpr size_t kCopied = kThreads * sizeof(float);

DML_DEVICE const float* copy_all(const float* in, unsigned char* shared, int shift) {
  if (thread() < kThreads / 4) copy16_async(shared + (thread() + shift) * 16, in + thread() * 4, true);
  copy_commit();
  return reinterpret_cast<const float*>(shared);
}

DML_KERNEL(kThreads) copy_then_read(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  const float* const values = copy_all(in, shared, 0);
  if (right) copy_wait<0>();
  __syncthreads();
  out[thread()] = values[thread()];
}
DML_CASE(copy_without_wait) { return results(copy_then_read, kCopied, right); }

DML_KERNEL(kThreads) copy_two_stages(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  const float* const values = copy_all(in, shared, 0);
  copy_all(in, shared + kCopied, 0);
  if (right)
    copy_wait<1>();
  else
    copy_wait<2>();
  __syncthreads();
  out[thread()] = values[thread()];
}
DML_CASE(copy_with_too_short_a_wait) { return results(copy_two_stages, 2 * kCopied, right); }

DML_KERNEL(kThreads) copy_wait_read(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  const float* const values = copy_all(in, shared, 0);
  copy_wait<0>();
  if (right) __syncthreads();
  out[thread()] = values[kThreads - 1 - thread()];
}
DML_CASE(copy_without_barrier) { return results(copy_wait_read, kCopied, right); }

DML_KERNEL(kThreads) copy_beyond(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  copy_all(in, shared, right ? 0 : 1);
  out[thread()] = in[thread()];
}
DML_CASE(copy_beyond_shared) { return results(copy_beyond, kCopied, right); }

DML_KERNEL(kThreads) copy_misaligned(const float* in, float* out, bool right) {
  DML_SHARED(shared);
  if (thread() == 0) copy16_async(shared, in + (right ? 4 : 1), true);
  out[thread()] = in[thread()];
}
DML_CASE(misaligned_copy) { return results(copy_misaligned, kCopied, right); }

}  // namespace
}  // namespace dml
