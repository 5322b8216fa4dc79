#pragma once
// Which of the kernel units runs on this processor. No torch header: shared by _C and libdmlkernels_cpu.so.

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernel_table.h"

namespace dml {

inline const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "plain"; }

// The best instruction set that was compiled and that processor and operating system support.
inline Isa best_isa() {
#if defined(DML_HAVE_AVX2) || defined(DML_HAVE_AVX512)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(DML_HAVE_AVX512)
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
#endif
  if (avx2) return Isa::avx2;
#endif
  return Isa::plain;
}

// best_isa(), lowered to DMLKERNELS_CPU_ISA=plain|avx2|avx512 where that is set. Throws std::invalid_argument for
// another value and for one that cannot run here: a request is never changed in silence.
inline Isa requested_isa() {
  const Isa best = best_isa();
  const char* value = std::getenv("DMLKERNELS_CPU_ISA");
  if (value == nullptr || *value == '\0') return best;
  for (const Isa isa : {Isa::plain, Isa::avx2, Isa::avx512}) {
    if (std::string(value) != isa_name(isa)) continue;
    if (isa <= best) return isa;
    throw std::invalid_argument("DMLKERNELS_CPU_ISA=" + std::string(value) +
                                ": this build on this processor supports at most " + isa_name(best));
  }
  throw std::invalid_argument("DMLKERNELS_CPU_ISA must be plain, avx2 or avx512, got \"" + std::string(value) + "\"");
}

// The choice for the whole process; the environment is read on the first call only. It is not made while the library
// is loading, where an exception would end the process: _C.cpu_capability() reports a bad request before any operator.
inline Isa cpu_isa() {
  static const Isa isa = requested_isa();
  return isa;
}

}  // namespace dml
