// Synthetic embeddings on the circle of latitude of a sample around its proxy, and their gradient.

#include "cuda/spherical_expansion.h"

#include "common/spherical_expansion.h"
#include "cuda/number.cuh"
#include "cuda/reduce.cuh"
#include "cuda/stored.cuh"

namespace dml {
namespace {

// A warp to a sample: Gram-Schmidt waits for one dot product after the other, and a warp adds up without a barrier.
// Up to 4 of them to a block, as many as there are frames that fit.
constexpr int kMostWarps = 4;
constexpr size_t kCommonShared = 48 * 1024;  // what needs no opt-in and leaves room for a second block

// The frame of a sample, rows of `width` numbers: the unit proxy, v_1 .. v_n, and one for sums. A lane reads and writes
// the places lane, lane + 32, ... of every row only, so that the rows need no barrier.
template <class T>
struct Frame {
  const Expansion& p;
  T* rows;
  int64_t sample;
  T z_scale, along, radius;  // z_scale z = along proxy + radius v_1
  bool valid;

  template <class Body>
  DML_DEVICE void each(const Body& body) const {
    for (int64_t d = lane_index(); d < p.width; d += kWarp) body(d);
  }
  DML_DEVICE T* row(int k) const { return rows + k * p.width; }
  DML_DEVICE T* proxy() const { return row(0); }
  DML_DEVICE T* v(int j) const { return row(j); }  // j from 1
  DML_DEVICE T* sums() const { return row(p.n + 1); }
  DML_DEVICE T z(int64_t d) const { return z_scale * read<T>(p.z, sample * p.width + d); }

  DML_DEVICE T dot(const T* a, const T* b) const {
    T sum = T(0);
    each([&](int64_t d) { sum = fma(a[d], b[d], sum); });
    return warp_sum(sum);
  }
  // What makes a row of this squared norm a unit row, and a row whose norm overflows NaN, not zero.
  static DML_DEVICE T unit_scale(T squared) {
    const T norm = sqrt(squared), floor = T(1e-12);
    return is_finite(norm) ? T(1) / (norm > floor ? norm : floor) : not_a_number<T>();
  }
  DML_DEVICE void scale(T* a, T factor) const {
    each([&](int64_t d) { a[d] *= factor; });
  }
  DML_DEVICE void remove(T* a, const T* unit) const {
    const T share = dot(a, unit);
    each([&](int64_t d) { a[d] = fma(T(0) - share, unit[d], a[d]); });
  }
  DML_DEVICE T load(const Stored& from, int64_t at, T* to) const {
    T squared = T(0);
    each([&](int64_t d) {
      to[d] = read<T>(from, at + d);
      squared = fma(to[d], to[d], squared);
    });
    return warp_sum(squared);
  }

  DML_DEVICE void build() {
    const int64_t at = sample * p.width;
    scale(proxy(), unit_scale(load(p.proxies, at, proxy())));
    z_scale = unit_scale(load(p.z, at, v(1)));
    scale(v(1), z_scale);
    along = dot(v(1), proxy());
    remove(v(1), proxy());
    radius = sqrt(dot(v(1), v(1)));
    valid = !(radius < static_cast<T>(kNoResidual));
    if (!valid) return;
    scale(v(1), T(1) / radius);
    for (int j = 2; j <= p.n; ++j) {
      load(p.noise, (sample * (p.n - 1) + j - 2) * p.width, v(j));
      // One pass leaves 1e-5 of the others in float32 when the frame fills the space; two leave rounding.
      for (int pass = 0; pass < 2; ++pass) {
        for (int other = 0; other < j; ++other) remove(v(j), row(other));
        scale(v(j), unit_scale(dot(v(j), v(j))));
      }
    }
  }
};

// Entry j of centre s: own(j) where s = j, below(j) where s > j, both counted from 0, 0 where s < j.
template <class T>
struct Centers {
  T* entries;
  int n;
  DML_DEVICE void fill() const {
    for (int j = static_cast<int>(threadIdx.x); j < n; j += static_cast<int>(blockDim.x)) {
      entries[j] = static_cast<T>(simplex_center(n, j, j));
      entries[n + j] = static_cast<T>(simplex_center(n, j + 1, j));
    }
    __syncthreads();
  }
  DML_DEVICE T own(int j) const { return entries[j]; }
  DML_DEVICE T below(int j) const { return entries[n + j]; }
};

// z_s = along p + radius (sum_{j < s} below_j v_{j+1} + own_s v_{s+1}), s = 1 .. n: one running sum gives all of them.
template <class T>
DML_DEVICE void write_synthetics(const Frame<T>& f, const Centers<T>& centers, const Stored& out) {
  const int n = f.p.n;
  f.each([&](int64_t d) {
    const int64_t at = f.sample * n * f.p.width + d;
    T sum = f.valid ? f.along * f.proxy()[d] : f.z(d);
    for (int s = 1; s <= n; ++s) {
      if (f.valid) sum = fma(f.radius * centers.below(s - 1), f.v(s)[d], sum);
      const bool last = !f.valid || s == n;
      write(out, at + (s - 1) * f.p.width, last ? sum : fma(f.radius * centers.own(s), f.v(s + 1)[d], sum));
    }
  });
}

// dL/df = sum_s [p (p.g_s) - (1/n) (g_s - p (p.g_s)) + v_1 (q_s.g_s)], q_s = sum_{j >= 2} B_sj v_j, and then the
// normalisation of z. sum_s q_s.g_s = sum_j v_j.(own_j g_j + below_j sum_{s > j} g_s): one sweep from the last g.
template <class T>
DML_DEVICE void write_gradient(const Frame<T>& f, const Centers<T>& centers, const Stored& grad, const Stored& grad_z) {
  const int n = f.p.n;
  T along = T(0), across = T(0);
  f.each([&](int64_t d) {
    T sum = T(0);
    for (int s = n; s >= 1; --s) {
      const T g = read<T>(grad, (f.sample * n + s - 1) * f.p.width + d);
      if (f.valid && s < n) across = fma(f.v(s + 1)[d], fma(centers.below(s), sum, centers.own(s) * g), across);
      sum += g;
    }
    f.sums()[d] = sum;
    along = fma(f.proxy()[d], sum, along);
  });
  along = warp_sum(along), across = warp_sum(across);
  const T share = T(1) / static_cast<T>(n);
  T radial = T(0);
  f.each([&](int64_t d) {
    T& sum = f.sums()[d];
    if (f.valid) sum = fma(across, f.v(1)[d], fma(along * (T(1) + share), f.proxy()[d], T(0) - share * sum));
    radial = fma(sum, f.z(d), radial);
  });
  radial = warp_sum(radial);
  // Rows up to 1e-12 count as zero rows: no gradient.
  const T scale = f.z_scale < T(1e12) ? f.z_scale : T(0);
  f.each([&](int64_t d) { write(grad_z, f.sample * f.p.width + d, scale * fma(T(0) - radial, f.z(d), f.sums()[d])); });
}

// Calls body(frame, centers) for the sample of each warp; the frame is in shared memory or in p.frames.
template <class T, class Body>
DML_DEVICE void with_frame(const Expansion& p, unsigned char* shared, const Body& body) {
  const Centers<T> centers{reinterpret_cast<T*>(shared), p.n};
  centers.fill();
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_index();
  if (sample >= p.samples) return;
  const int64_t size = (p.n + kExtraRows) * p.width;
  T* const rows =
      p.frames != nullptr ? static_cast<T*>(p.frames) + sample * size : centers.entries + 2 * p.n + warp_index() * size;
  Frame<T> frame{p, rows, sample, T(0), T(0), T(0), false};
  frame.build();
  body(frame, centers);
}

template <class T>
DML_KERNEL(kMostWarps* kWarp)
expand_kernel(Expansion p, Stored out, bool* valid) {
  DML_SHARED(shared);
  with_frame<T>(p, shared, [&](const Frame<T>& frame, const Centers<T>& centers) {
    if (lane_index() == 0) valid[frame.sample] = frame.valid;
    write_synthetics(frame, centers, out);
  });
}

template <class T>
DML_KERNEL(kMostWarps* kWarp)
backward_kernel(Expansion p, Stored grad, Stored grad_z) {
  DML_SHARED(shared);
  with_frame<T>(p, shared, [&](const Frame<T>& frame, const Centers<T>& centers) {
    write_gradient(frame, centers, grad, grad_z);
  });
}

template <class T>
size_t centers_bytes(int n) {
  return 2 * static_cast<size_t>(n) * sizeof(T);
}
template <class T>
size_t frame_bytes(int64_t width, int n) {
  return static_cast<size_t>((n + kExtraRows) * width) * sizeof(T);
}

template <class T, class... P, class... A>
void run(void (*kernel)(Expansion, P...), const Expansion& p, Stream stream, const A&... arguments) {
  const size_t frame = p.frames != nullptr ? 0 : frame_bytes<T>(p.width, p.n), centers = centers_bytes<T>(p.n);
  int warps = kMostWarps;
  while (warps > 1 && centers + static_cast<size_t>(warps) * frame > kCommonShared) warps /= 2;
  launch(kernel, blocks_for(p.samples, warps), warps * kWarp, centers + static_cast<size_t>(warps) * frame, stream, p,
         arguments...);
}

}  // namespace

template <class T>
bool frame_in_shared(int64_t width, int n) {
  return centers_bytes<T>(n) + frame_bytes<T>(width, n) <= kMaxShared;
}

template <class T>
void expand(const Expansion& p, Stored out, bool* valid, Stream stream) {
  run<T>(expand_kernel<T>, p, stream, out, valid);
}

template <class T>
void expand_backward(const Expansion& p, Stored grad, Stored grad_z, Stream stream) {
  run<T>(backward_kernel<T>, p, stream, grad, grad_z);
}

#define DML_INSTANTIATE(T)                                          \
  template bool frame_in_shared<T>(int64_t, int);                   \
  template void expand<T>(const Expansion&, Stored, bool*, Stream); \
  template void expand_backward<T>(const Expansion&, Stored, Stored, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
