#pragma once
// Copies from global to shared memory that go on while the block computes (cp.async, sm_80 and later).

#include "cuda/launch.cuh"

namespace dml {

#if defined(DML_CUDA_HOST)

DML_DEVICE void copy16_async(void* to, const void* from, bool valid) {
  cuda_host::copy_async(to, from, 16, valid ? 16 : 0);
}
DML_DEVICE void copy_commit() { cuda_host::copy_async_commit(); }
template <int GroupsInFlight>
DML_DEVICE void copy_wait() {
  cuda_host::copy_async_wait(GroupsInFlight);
}

#else

// 16 aligned bytes, or 16 zeros.
DML_DEVICE void copy16_async(void* to, const void* from, bool valid) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
DML_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most so many of this thread's groups are under way; other threads see the data after a barrier.
template <int GroupsInFlight>
DML_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GroupsInFlight) : "memory");
}

#endif

}  // namespace dml
