#pragma once
// Sums over the lanes of a warp and the warps of a block, always in the same order.

#include "cuda/launch.cuh"

namespace dml {

DML_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
DML_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// Over `Lanes` neighbouring lanes that are `Step` apart; every lane gets the sum.
template <int Lanes = kWarp, int Step = 1, class T>
DML_DEVICE T warp_sum(T value) {
#pragma unroll
  for (int bits = Step; bits < Lanes * Step; bits *= 2) value += __shfl_xor_sync(kAllLanes, value, bits);
  return value;
}

// Over a block of `Warps` warps; `scratch` holds a T for each of them. Every thread gets the sum.
template <int Warps, class T>
DML_DEVICE T block_sum(T value, T* scratch) {
  value = warp_sum(value);
  __syncthreads();  // the scratch of the last sum has been read
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  T sum = T(0);
#pragma unroll
  for (int w = 0; w < Warps; ++w) sum += scratch[w];
  return sum;
}

}  // namespace dml
