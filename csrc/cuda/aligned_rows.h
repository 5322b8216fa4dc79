#pragma once
// Rows as tiles read them (pairs.h).

#include "cuda/launcher.h"
#include "cuda/pairs.h"

namespace dml {

// Elements of a row of x where tiles read it.
inline int64_t row_stride(const Tensor& x) {
  const int64_t elements = kRowAlignment / x.element_size();
  return (x.size(1) + elements - 1) / elements * elements;
}

// x, or a copy whose rows lie as tiles read them.
inline Tensor aligned_rows(const Tensor& x, Stream stream) {
  const int64_t stride = row_stride(x);
  if (stride == x.size(1) && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kRowAlignment == 0) return x;
  const Tensor padded = empty(x, {x.size(0), stride}, x.scalar_type());
  pad_rows(x.const_data_ptr(), x.size(0), x.size(1), stride, x.element_size(), padded.mutable_data_ptr(), stream);
  return padded;
}

}  // namespace dml
