#pragma once
// Kernels on rows: packing, the end of a gradient, and lists of pairs.

#include "cpu/kernel_table.h"

namespace dml {

template <class T>
struct RowsKernels {
  int panel_width;
  T (*sum_squares)(const T* row, int64_t d);
  // Transposes the W rows (stride apart) of one panel.
  void (*pack_panel)(const T* rows, int64_t stride, int64_t d, T* panel);
  void (*scale)(T* row, int64_t d, T factor);
  // out += a * x
  void (*add_scaled)(T* out, const T* x, int64_t n, T a);
  T (*dot)(const T* x, const T* y, int64_t d);
  T (*squared_difference)(const T* x, const T* y, int64_t d);

  template <Isa isa>
  static RowsKernels make();
};

}  // namespace dml
