#pragma once
// From a launcher to the kernels of this processor, and from a dtype to the number type that computes it.

#include "cpu/isa.h"
#include "cpu/kernel_table.h"

namespace dml {

template <class Table>
const Table& kernels() {
  static const Table table = [] {
#if defined(DML_HAVE_AVX512)
    if (cpu_isa() == Isa::avx512) return Table::template make<Isa::avx512>();
#endif
#if defined(DML_HAVE_AVX2)
    if (cpu_isa() == Isa::avx2) return Table::template make<Isa::avx2>();
#endif
    return Table::template make<Isa::plain>();
  }();
  return table;
}

}  // namespace dml
