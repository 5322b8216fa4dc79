#include "cuda/pairs.cuh"

namespace dml {
namespace {

// In the order of common/pairwise.h: over the lanes that hold the partial sums of a row.
template <class T>
DML_DEVICE T add_lane_halves(T sum) {
#pragma unroll
  for (int half = kPartialSums / 2; half > 0; half /= 2) sum += __shfl_xor_sync(kAllLanes, sum, half);
  return sum;
}

constexpr int kFactThreads = 1024, kFactRows = kFactThreads / kPartialSums;
constexpr int kSummaries = 6;  // numbers of a TileSummary

template <class T>
DML_DEVICE T lowest_of_warp(T value) {
#pragma unroll
  for (int bits = 1; bits < kWarp; bits *= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, bits);
    value = other < value ? other : value;
  }
  return value;
}

// Over the 128 rows of a tile, one to a thread; every thread of the block calls this, with room for them in shared.
DML_DEVICE void summarize(Range labels, Range ids, bool counts, bool unit, int64_t* shared, TileSummary* to) {
  constexpr int64_t kNone = INT64_MAX;
  constexpr int kTileWarps = kTile / kWarp;
  // The last of a range is the lowest of the complement.
  const int64_t own[kSummaries] = {counts ? labels.first : kNone,
                                   counts ? ~labels.last : kNone,
                                   counts ? ids.first : kNone,
                                   counts ? ~ids.last : kNone,
                                   counts,
                                   counts && unit};
#pragma unroll
  for (int k = 0; k < kSummaries; ++k) {
    const int64_t lowest = lowest_of_warp(own[k]);
    if (warp_index() < kTileWarps && lane_index() == 0) shared[k * kTileWarps + warp_index()] = lowest;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  int64_t lowest[kSummaries];
  for (int k = 0; k < kSummaries; ++k) {
    lowest[k] = shared[k * kTileWarps];
    for (int w = 1; w < kTileWarps; ++w)
      lowest[k] = shared[k * kTileWarps + w] < lowest[k] ? shared[k * kTileWarps + w] : lowest[k];
  }
  *to = TileSummary{Range{lowest[0], ~lowest[1]}, Range{lowest[2], ~lowest[3]}, lowest[4] != 0, lowest[5] != 0};
}

// A block reads the rows of a tile, 16 threads each.
template <class E, class T>
DML_KERNEL(kFactThreads)
facts_kernel(RowsToRead<T> p, bool rounded) {
  DML_SHARED(shared);
  const E* const x = static_cast<const E*>(p.x);
  const int lane = static_cast<int>(threadIdx.x) % kPartialSums;
  const T shortest = T(kShortest);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile;
  for (int64_t row = first + threadIdx.x / kPartialSums; row < first + kTile; row += kFactRows) {
    T exact = T(0), squares = T(0), scaled = T(0);
    for (int64_t k = lane; row < p.count && k < p.width; k += kPartialSums) {
      T v = static_cast<T>(x[row * p.width + k]);
      exact = add_square(exact, v);
      scaled = add_square(scaled, product(v, T(1) / shortest));
      if constexpr (sizeof(T) == 4)
        if (rounded) v = __uint_as_float(round_to_tf32(v));
      squares = add_square(squares, v);
    }
    exact = add_lane_halves(exact);
    squares = add_lane_halves(squares);
    scaled = add_lane_halves(scaled);
    if (lane != 0 || row >= p.count) continue;
    const T length = sqrt(exact);
    const T r = !p.normalize ? T(1) : scaled > T(0) ? T(1) / max(length, shortest) : T(0);
    p.inverse[row] = r;
    p.norm[row] = !p.normalize || rounded ? squares * r * r : length / length;
    if (p.normalize && length < shortest) p.norm[row] = scaled;
    if (p.state == nullptr) continue;
    RowState found = RowState::kept;
    // Squared distances of rows that are not normalised must not overflow.
    const T largest = sizeof(T) == 4 ? T(p.normalize ? 3.4e38 : 1.25e37) : T(p.normalize ? 1.7e308 : 1.25e299);
    if (p.has_ignore_index && p.labels[row] == p.ignore_index) {
      found = RowState::ignored;
    } else if (!(exact <= largest)) {
      found = RowState::non_finite;
      atomicOr(p.any_non_finite, 1);
    }
    p.state[row] = found;
    if (found == RowState::kept) continue;
    p.norm[row] = not_a_number<T>();
    p.inverse[row] = T(0);  // a weight of 0 stays one
  }
  if (p.tiles == nullptr) return;
  __syncthreads();
  const int64_t own = first + threadIdx.x;
  const bool counts = threadIdx.x < kTile && own < p.count && p.state[own] == RowState::kept;
  const int64_t label = counts ? p.labels[own] : 0, id = counts && p.ids != nullptr ? p.ids[own] : 0;
  summarize(Range{label, label}, Range{id, id}, counts, counts && p.norm[own] == T(1),
            reinterpret_cast<int64_t*>(shared), p.tiles + blockIdx.x);
}

template <class E>
DML_KERNEL(kThreads)
pad_kernel(const E* x, int64_t count, int64_t width, int64_t stride, E* out) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, row = at / stride, k = at % stride;
  if (row < count) out[at] = k < width ? x[row * width + k] : E(0);
}

DML_KERNEL(kThreads)
check_labels_kernel(const int64_t* labels, int64_t count, int64_t classes, RowState* state, int32_t* any_non_finite) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count || (labels[i] >= 0 && labels[i] < classes)) return;
  state[i] = RowState::non_finite;
  atomicOr(any_non_finite, 1);
}

}  // namespace

template <class T>
void row_facts(Precision precision, const RowsToRead<T>& rows, Stream stream) {
  with_element<T>(precision, [&](auto element) {
    launch(facts_kernel<decltype(element), T>, dim3(blocks_for(rows.count, kTile)), kFactThreads,
           kSummaries * kTile / kWarp * sizeof(int64_t), stream, rows, precision == Precision::tf32);
  });
}

void pad_rows(const void* x, int64_t count, int64_t width, int64_t stride, int64_t element_bytes, void* out,
              Stream stream) {
  const auto call = [&](auto element) {
    using E = decltype(element);
    launch(pad_kernel<E>, dim3(blocks_for(count * stride, kThreads)), kThreads, 0, stream, static_cast<const E*>(x),
           count, width, stride, static_cast<E*>(out));
  };
  if (element_bytes == 2) return call(uint16_t());
  if (element_bytes == 4) return call(uint32_t());
  call(uint64_t());
}

void check_class_labels(const int64_t* labels, int64_t count, int64_t classes, RowState* state, int32_t* any_non_finite,
                        Stream stream) {
  launch(check_labels_kernel, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, labels, count, classes, state,
         any_non_finite);
}

template void row_facts<float>(Precision, const RowsToRead<float>&, Stream);
template void row_facts<double>(Precision, const RowsToRead<double>&, Stream);

}  // namespace dml
