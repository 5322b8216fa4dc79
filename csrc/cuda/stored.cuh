#pragma once
// Elements of tensors whose dtype is a run-time value: for kernels that spend their time elsewhere, a switch that all
// threads take the same way is cheaper than four copies of the kernel.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/launch.cuh"
#include "cuda/stored.h"

namespace dml {

template <class T>
DML_DEVICE T read(const Stored& x, int64_t i) {
  switch (x.type) {
    case StoredType::float64:
      return static_cast<T>(static_cast<const double*>(x.data)[i]);
    case StoredType::float32:
      return static_cast<T>(static_cast<const float*>(x.data)[i]);
    case StoredType::bfloat16:
      return static_cast<T>(static_cast<float>(static_cast<const c10::BFloat16*>(x.data)[i]));
    default:
      return static_cast<T>(static_cast<float>(static_cast<const c10::Half*>(x.data)[i]));
  }
}

template <class T>
DML_DEVICE void write(const Stored& x, int64_t i, T value) {
  switch (x.type) {
    case StoredType::float64:
      static_cast<double*>(x.data)[i] = static_cast<double>(value);
      return;
    case StoredType::float32:
      static_cast<float*>(x.data)[i] = static_cast<float>(value);
      return;
    case StoredType::bfloat16:
      static_cast<c10::BFloat16*>(x.data)[i] = c10::BFloat16(static_cast<float>(value));
      return;
    default:
      static_cast<c10::Half*>(x.data)[i] = c10::Half(static_cast<float>(value));
      return;
  }
}

}  // namespace dml
