#pragma once
// What the launchers of csrc/cuda share: the namespace and the dispatch key that they register for, the stream, scratch
// memory, and access to tensors. Kernels do not include this: torch's headers are slow to compile.

#include <array>
#include <optional>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/aten.h"
#include "common/check.h"
#include "cuda/stored.h"

#if defined(DML_CUDA_HOST)
#define DML_OPERATORS dmlkernels_cuda_host
#define DML_DEVICE_KEY CPU
#else
#define DML_OPERATORS dmlkernels
#define DML_DEVICE_KEY CUDA
#endif

namespace dml {

using aten::index_select, aten::stable_sort;

// The device of a tensor for as long as this lives, and the stream that torch uses on it.
class OnDevice {
 public:
#if defined(DML_CUDA_HOST)
  explicit OnDevice(const Tensor&) {}
#else
  explicit OnDevice(const Tensor& x) : guard_(x.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  }
#endif
  void* stream = nullptr;

 private:
#if !defined(DML_CUDA_HOST)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

using Shape = std::vector<int64_t>;

using aten::empty;
inline Tensor zeros(const Tensor& like, const Shape& shape, ScalarType type) {
  return torch::stable::new_zeros(like, shape, type);
}
inline Tensor filled(const Tensor& like, const Shape& shape, ScalarType type, double value) {
  return torch::stable::fill_(empty(like, shape, type), value);
}

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}
template <class T>
T* data(const std::optional<Tensor>& x) {
  return x ? data<T>(*x) : nullptr;
}

// The first number of a tensor of them; waits for the device.
inline int32_t read_int(const Tensor& x) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  Tensor here = torch::stable::empty(Shape{x.size(0)}, ScalarType::Int, std::nullopt, cpu);
  torch::stable::copy_(here, x);
  return *static_cast<const int32_t*>(here.const_data_ptr());
}

inline Stored stored(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  return Stored{x.mutable_data_ptr(), type == ScalarType::Double     ? StoredType::float64
                                      : type == ScalarType::Float    ? StoredType::float32
                                      : type == ScalarType::BFloat16 ? StoredType::bfloat16
                                                                     : StoredType::float16};
}

}  // namespace dml
