#pragma once
// Products of all rows of one matrix with all rows of another, accurate to float32 whatever torch is told to do with
// its own products.

#include <stdint.h>

#include "cuda/stream.h"

namespace dml {

// out (splits, m, n): parts of left (m, width) times the transpose of right (n, width), to be added up.
void multiply_rows(const float* left, int64_t m, const float* right, int64_t n, int64_t width, int64_t splits,
                   float* out, Stream stream);

}  // namespace dml
