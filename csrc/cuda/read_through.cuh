#pragma once
// Reads of what is needed once: it passes through the cache, from which it should push nothing that is needed again.

#include "cuda/launch.cuh"

namespace dml {

// V: a number of 2, 4 or 8 bytes, or 16 aligned bytes.
template <class V>
DML_DEVICE V read_through(const V* from) {
#if defined(DML_CUDA_HOST)
  return *from;
#else
  const auto read = [&]<class Bits>(Bits bits) {
    static_assert(sizeof(Bits) == sizeof(V));
    bits = __ldcs(reinterpret_cast<const Bits*>(from));
    return reinterpret_cast<const V&>(bits);
  };
  if constexpr (sizeof(V) == 2)
    return read(uint16_t());
  else if constexpr (sizeof(V) == 4)
    return read(float());
  else if constexpr (sizeof(V) == 8)
    return read(double());
  else
    return read(float4());
#endif
}

}  // namespace dml
