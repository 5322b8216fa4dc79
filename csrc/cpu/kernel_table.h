#pragma once
// How a launcher finds the kernels of the instruction set that runs: each unit fills a table of plain functions. Kernel
// units include this header, so it holds no inline function that the linker could share between instruction sets.

#include <stdint.h>

namespace dml {

enum class Isa { plain, avx2, avx512 };

// Norm of the rows that pad a tile: farther than any pair, so that no test lets them in, and finite.
template <class T>
constexpr T kFar = sizeof(T) == 4 ? static_cast<T>(1e38) : static_cast<T>(1e300);

// Rows ready for tile products, in the order of the launcher (sorted by class for the pair losses).
template <class T>
struct RowsView {
  int64_t n, padded, d, stride;  // padded: n rounded up to whole panels; stride: of a row in `rows`
  const T* panels;               // (padded / W, d, W)
  const T* rows;                 // (padded, stride), zero beyond d; only for gradients
  const T* norms;                // (padded) squared norms of the rows as packed
  const int32_t* classes;        // (padded) dense class, -1 beyond n
  const int32_t* ids;            // (padded) dense id, or null
  const int32_t* index;          // (padded) row of the caller's tensor
};

}  // namespace dml
