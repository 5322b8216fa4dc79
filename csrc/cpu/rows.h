#pragma once
// Rows of the caller's tensors made ready for tile products, and gradients of such rows turned back into tensors.

#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "common/pair_arguments.h"
#include "cpu/kernel_table.h"

namespace dml {

// Zeroed memory, aligned to a cache line; large pieces come from the system page by page as they are first touched.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t n) : memory_(std::calloc(static_cast<size_t>(n) * sizeof(T) + kAlign, 1)) {
    if (memory_ == nullptr) throw std::bad_alloc();
    data_ = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.get()) + kAlign - 1) / kAlign * kAlign);
  }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr size_t kAlign = 64;
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  T* data_ = nullptr;
};

// Panels feed the products of a forward, row-major rows the sums of a gradient.
enum class Layout { panels, rows, both };

// Sorted by class, which leaves few tiles with positives, or as in the caller's tensor.
enum class RowOrder { by_class, given };

enum class RowState : unsigned char { kept, ignored, non_finite };

// Kept rows in the order of the tiles. `inverse` is 1/norm of each packed row, 0 for a zero row, 1 without normalising.
template <class T>
struct Rows {
  std::vector<RowState> state;  // by the caller's row
  bool any_non_finite = false;
  Buffer<T> panels, rows, norms, inverse;
  Buffer<int32_t> classes, ids, index;
  RowsView<T> view{};
};

// What a pair operation works on: rows without those that ignore_index or a non-finite norm takes out.
template <class T>
struct PairRows {
  bool self;
  Rows<T> queries, own_gallery;
  const Rows<T>& gallery() const { return self ? queries : own_gallery; }
};

template <class T>
PairRows<T> prepare_pairs(const PairArguments& arguments, Layout layout, RowOrder order = RowOrder::by_class);

// All rows of one matrix in their own order.
template <class T>
Rows<T> prepare_rows(const Tensor& x, bool normalize, Layout layout);

// Rows of a finite norm of one matrix in the order of their labels; `state` tells the others.
template <class T>
Rows<T> prepare_class_rows(const Tensor& x, const Tensor& labels, bool normalize, Layout layout);

// Rows of a finite norm of one matrix in their own order; `state` tells the others. With rows_per_class, up to kTile, a
// tile holds whole classes of that many consecutive rows, and then rows of zeros, whose index is -1.
template <class T>
Rows<T> prepare_finite_rows(const Tensor& x, bool normalize, Layout layout, int64_t rows_per_class = 0);

// One row of a floating tensor, converted from or to its dtype.
template <class T>
void read_row(const Tensor& x, int64_t row, T* to, int64_t first, int64_t count);
template <class T>
void write_row(const T* from, const Tensor& x, int64_t row, int64_t first, int64_t count);

// Gradient of x (rows of the caller's tensor) from sums over pairs: p = weights f + sign * sums, then the backward of
// the normalisation. `parts` partial sums are added in order. Ignored rows get 0, non-finite ones NaN.
template <class T>
Tensor finish_gradient(const Tensor& x, const Rows<T>& rows, const Buffer<T>& sums, const Buffer<T>& weights,
                       int64_t parts, T sign, bool normalize);

// Gradient of x where every pair is NaN: NaN for the rows that take part, 0 for those that ignore_index takes out.
template <class T>
Tensor nan_gradient(const Tensor& x, const Rows<T>& rows);

// A tensor of the caller's dtype filled with one value.
Tensor filled(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type, double value);

}  // namespace dml
