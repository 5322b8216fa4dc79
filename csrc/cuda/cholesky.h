#pragma once
// Kernels of the log-determinant as its launcher calls them.

#include <stdint.h>

#include "cuda/stream.h"

namespace dml {

// Side of the largest matrix that is factored in registers, and in shared memory: the triangle of tiles fits 99 KiB.
constexpr int kRegisterMatrix = 32;
template <class T>
constexpr int kSharedMatrix = sizeof(T) == 4 ? 208 : 144;

// logdet (batch,) of a (batch, n, n), lower triangles read, NaN where a matrix is not positive definite; with their
// inverses (batch, n, n), or null.
template <class T>
void factor_in_registers(const T* a, int64_t batch, int n, T* logdet, T* inverse, Stream stream);
template <class T>
void factor_in_shared(const T* a, int64_t batch, int n, T* logdet, T* inverse, Stream stream);

// logdet (batch,) from factors (batch, n, n) by cuSOLVER and their infos. A factor that failed becomes NaN, so that
// what is solved by it is NaN too.
template <class T>
void logdet_of_factors(T* factors, const int32_t* info, int64_t batch, int n, T* logdet, Stream stream);

// out = scale matrices (batch, entries), each with its own.
template <class T>
void scale_matrices(const T* scale, const T* matrices, int64_t batch, int64_t entries, T* out, Stream stream);

}  // namespace dml
