#pragma once
// Kernels of spherical_expansion as its launcher calls them.

#include <stddef.h>
#include <stdint.h>

#include "cuda/stored.h"
#include "cuda/stream.h"

namespace dml {

constexpr int kExtraRows = 2;  // of a frame: the proxy, and sums

struct Expansion {
  Stored z, proxies, noise;  // (samples, width), (samples, width), (samples, n - 1, width)
  int64_t samples, width;
  int n;
  void* frames;  // (samples, n + kExtraRows, width) of T, or null where the frames fit into shared memory
};

// Whether one frame fits into shared memory.
template <class T>
bool frame_in_shared(int64_t width, int n);

// out (samples * n, width), valid (samples,).
template <class T>
void expand(const Expansion& p, Stored out, bool* valid, Stream stream);

// grad (samples * n, width) -> grad_z (samples, width).
template <class T>
void expand_backward(const Expansion& p, Stored grad, Stored grad_z, Stream stream);

}  // namespace dml
