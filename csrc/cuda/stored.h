#pragma once

namespace dml {

// A contiguous tensor as kernels take it whose dtype is a run-time value, uniform over a launch.
enum class StoredType { float64, float32, bfloat16, float16 };

struct Stored {
  void* data;
  StoredType type;
};

}  // namespace dml
