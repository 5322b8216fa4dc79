#pragma once
// What a header of csrc/common needs to be compiled for the host, for each CPU instruction set, and for the device.

#if defined(__CUDACC__)
#define DML_HD __host__ __device__
#else
#define DML_HD
#endif
#define DML_INLINE DML_HD inline __attribute__((always_inline))

// Units built for different instruction sets must not share an inline function: the linker would keep one copy for all.
#if !defined(DML_ISA)
#define DML_ISA generic
#endif
