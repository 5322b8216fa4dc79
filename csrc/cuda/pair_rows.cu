#include <algorithm>

#include "cuda/pair_engine.cuh"

namespace dml {
namespace {

constexpr int kRowsPerBlock = kThreads / kWarp;  // a warp reads a row

// In the order of common/pairwise.h: over the lanes that hold the partial sums of a row.
template <class T>
DML_DEVICE T add_lane_halves(T sum) {
#pragma unroll
  for (int half = kPartialSums / 2; half > 0; half /= 2) sum += __shfl_xor_sync(kAllLanes, sum, half);
  return sum;
}

template <class E, class T>
DML_KERNEL(kThreads)
facts_kernel(const E* x, int64_t count, int64_t width, const int64_t* labels, bool has_ignore_index,
             int64_t ignore_index, bool normalize, bool rounded, T* inverse, T* norm, RowState* state,
             int32_t* any_non_finite) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kPartialSums) + threadIdx.x / kPartialSums;
  const int lane = static_cast<int>(threadIdx.x) % kPartialSums;
  const T shortest = T(kShortest);
  T exact = T(0), squares = T(0), scaled = T(0);
  for (int64_t k = lane; row < count && k < width; k += kPartialSums) {
    T v = static_cast<T>(x[row * width + k]);
    exact = add_square(exact, v);
    scaled = add_square(scaled, product(v, T(1) / shortest));
    if constexpr (sizeof(T) == 4)
      if (rounded) v = __uint_as_float(round_to_tf32(v));
    squares = add_square(squares, v);
  }
  exact = add_lane_halves(exact);
  squares = add_lane_halves(squares);
  scaled = add_lane_halves(scaled);
  if (lane != 0 || row >= count) return;
  const T length = sqrt(exact);
  const T r = !normalize ? T(1) : scaled > T(0) ? T(1) / max(length, shortest) : T(0);
  inverse[row] = r;
  norm[row] = !normalize || rounded ? squares * r * r : length / length;
  if (normalize && length < shortest) norm[row] = scaled;
  if (state == nullptr) return;
  RowState found = RowState::kept;
  // Squared distances of rows that are not normalised must not overflow.
  const T largest = sizeof(T) == 4 ? T(normalize ? 3.4e38 : 1.25e37) : T(normalize ? 1.7e308 : 1.25e299);
  if (has_ignore_index && labels[row] == ignore_index) {
    found = RowState::ignored;
  } else if (!(exact <= largest)) {
    found = RowState::non_finite;
    atomicOr(any_non_finite, 1);
  }
  state[row] = found;
  if (found == RowState::kept) return;
  norm[row] = not_a_number<T>();
  inverse[row] = T(0);  // a weight of 0 stays one
}

DML_KERNEL(kThreads)
check_labels_kernel(const int64_t* labels, int64_t count, int64_t classes, RowState* state, int32_t* any_non_finite) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count || (labels[i] >= 0 && labels[i] < classes)) return;
  state[i] = RowState::non_finite;
  atomicOr(any_non_finite, 1);
}

// 32 x 32 elements through shared memory, one column of padding against bank conflicts.
template <class E, class W>
DML_KERNEL(kThreads)
transpose_kernel(const E* x, const RowState* state, int64_t count, int64_t width, int64_t padded, W* out) {
  DML_SHARED(shared);
  W(*const tile)[kWarp + 1] = reinterpret_cast<W(*)[kWarp + 1]>(shared);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kWarp, col0 = block_col() * kWarp;
  for (int r = warp_index(); r < kWarp; r += kWarps) {
    const int64_t row = row0 + r, col = col0 + lane_index();
    const bool there = row < count && col < width && (state == nullptr || state[row] == RowState::kept);
    tile[r][lane_index()] = there ? static_cast<W>(x[row * width + col]) : static_cast<W>(0.0f);
  }
  __syncthreads();
  for (int c = warp_index(); c < kWarp; c += kWarps)
    if (col0 + c < width) out[(col0 + c) * padded + row0 + lane_index()] = tile[lane_index()][c];
}

// The chunks of the active tiles of one row tile, each tile with all terms of its weights.
template <class E>
struct ActiveChunks {
  static constexpr int64_t kStep = kChunkBytes / static_cast<int64_t>(sizeof(E));
  int64_t k, term, terms, padded;
  const unsigned char* active;
  int64_t stride;

  DML_DEVICE bool valid() const { return k < padded; }
  DML_DEVICE int64_t left() const { return term * padded + k; }
  DML_DEVICE int64_t right() const { return k; }
  DML_DEVICE void skip() {
    while (active != nullptr && k < padded && !active[k / kTile * stride]) k += kTile;
  }
  DML_DEVICE void advance() {
    k += kStep;
    if (k % kTile != 0) return;
    term += 1;
    if (term < terms) {
      k -= kTile;
    } else {
      term = 0;
      skip();
    }
  }
};

template <Product P>
DML_KERNEL(kThreads, kBlocks<P>)
product_kernel(Stripe stripe, const typename ProductTypes<P>::Element* x_transposed, int64_t width,
               typename ProductTypes<P>::Value* sums) {
  using E = typename ProductTypes<P>::Element;
  DML_SHARED(shared);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile, col0 = block_col() * kTile;
  const int64_t terms = weight_terms(stripe.precision), length = terms * stripe.padded;
  const Operand<E> a{static_cast<const E*>(stripe.weights), length, length, stripe.count, nullptr, true};
  const Operand<E> b{x_transposed, stripe.padded, stripe.padded, width, nullptr, true};
  const unsigned char* const active =
      stripe.active == nullptr ? nullptr
                               : stripe.active + (stripe.first / kTile + blockIdx.x) * stripe.active_row_stride;
  ActiveChunks<E> chunks{0, 0, terms, stripe.padded, active, stripe.active_col_stride};
  chunks.skip();
  PairTile<P> tile;
  tile.multiply(a, row0, b, col0, chunks, shared);
#pragma unroll
  for (int r = 0; r < kRowSlots; ++r)
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) {
      const int64_t row = row0 + PairTile<P>::row(r), col = col0 + PairTile<P>::col(c);
      if (row < stripe.count && col < width) sums[row * width + col] = tile.at(r, c);
    }
}

template <class E, class T>
DML_KERNEL(kThreads)
finish_kernel(FinishGradient<T> p) {
  const int64_t local = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warp_index(), row = p.first + local;
  if (local >= p.count) return;
  const E* const x = static_cast<const E*>(p.x) + row * p.width;
  const T* const sums = p.sums + local * p.width;
  E* const out = static_cast<E*>(p.out) + row * p.width;
  const RowState state = p.state == nullptr ? RowState::kept : p.state[row];
  const bool all_bad = p.others_non_finite != nullptr && *p.others_non_finite != 0;
  if (state != RowState::kept || all_bad) {
    const T value = state == RowState::ignored ? T(0) : all_bad ? not_a_number<T>() : p.non_finite_value;
    for (int64_t k = lane_index(); k < p.width; k += kWarp) out[k] = static_cast<E>(value);
    return;
  }
  T total = T(0);
  for (int64_t s = 0; p.weight_sums != nullptr && s < p.splits; ++s) total += p.weight_sums[s * p.rows + row];
  const T inverse = p.inverse[row];
  const auto entry = [&](int64_t k) { return fma(total, static_cast<T>(x[k]) * inverse, p.sign * sums[k]); };
  // A row that was not divided by its norm gets no gradient.
  const T outer = inverse < T(1) / T(kShortest) ? inverse : T(0);
  T radial = T(0);
  if (p.normalize) {
    for (int64_t k = lane_index(); k < p.width; k += kWarp)
      radial = fma(entry(k), static_cast<T>(x[k]) * inverse, radial);
    radial = warp_sum(radial);
  }
  for (int64_t k = lane_index(); k < p.width; k += kWarp) {
    const T tangential = entry(k) - radial * (static_cast<T>(x[k]) * inverse);
    out[k] = static_cast<E>(p.normalize ? tangential * outer : tangential);
  }
}

}  // namespace

template <class T>
void row_facts(Precision precision, const void* x, int64_t count, int64_t width, const int64_t* labels,
               bool has_ignore_index, int64_t ignore_index, bool normalize, T* inverse, T* norm, RowState* state,
               int32_t* any_non_finite, Stream stream) {
  with_element<T>(precision, [&](auto element) {
    using E = decltype(element);
    launch(facts_kernel<E, T>, dim3(blocks_for(count, kThreads / kPartialSums)), kThreads, 0, stream,
           static_cast<const E*>(x), count, width, labels, has_ignore_index, ignore_index, normalize,
           precision == Precision::tf32, inverse, norm, state, any_non_finite);
  });
}

void check_class_labels(const int64_t* labels, int64_t count, int64_t classes, RowState* state, int32_t* any_non_finite,
                        Stream stream) {
  launch(check_labels_kernel, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, labels, count, classes, state,
         any_non_finite);
}

void transpose_rows(Precision precision, const void* x, const RowState* state, int64_t count, int64_t width,
                    int64_t padded, void* out, Stream stream) {
  const auto call = [&](auto element, auto weight) {
    using E = decltype(element);
    using W = decltype(weight);
    launch(transpose_kernel<E, W>, block_matrix(blocks_for(padded, kWarp), blocks_for(width, kWarp)), kThreads,
           kWarp * (kWarp + 1) * sizeof(W), stream, static_cast<const E*>(x), state, count, width, padded,
           static_cast<W*>(out));
  };
  if (precision == Precision::float64) return call(double(), double());
  if (precision == Precision::bfloat16) return call(BFloat16(), BFloat16());
  with_element<float>(precision, [&](auto element) { call(element, float()); });
}

template <class T>
void weighted_rows(const Stripe& stripe, const void* x_transposed, int64_t width, T* sums, Stream stream) {
  const auto call = [&](auto product) {
    constexpr Product P = decltype(product)::value;
    launch(product_kernel<P>, block_matrix(blocks_for(stripe.count, kTile), blocks_for(width, kTile)), kThreads,
           kTileShared, stream, stripe, static_cast<const typename ProductTypes<P>::Element*>(x_transposed), width,
           sums);
  };
  if constexpr (sizeof(T) == 8) {
    call(ProductIs<Product::simt>());
  } else {
    switch (stripe.precision) {
      case Precision::float16:
        return call(ProductIs<Product::tf32x2>());
      case Precision::tf32:
        return call(ProductIs<Product::tf32>());
      case Precision::bfloat16:
        return call(ProductIs<Product::bf16>());
      default:
        return call(ProductIs<Product::tf32x3>());
    }
  }
}

template <class T>
void finish_gradient(Precision precision, const FinishGradient<T>& p, Stream stream) {
  const dim3 grid(blocks_for(p.count, kRowsPerBlock));
  with_element<T>(precision,
                  [&](auto element) { launch(finish_kernel<decltype(element), T>, grid, kThreads, 0, stream, p); });
}

#define DML_INSTANTIATE(T)                                                                                          \
  template void row_facts<T>(Precision, const void*, int64_t, int64_t, const int64_t*, bool, int64_t, bool, T*, T*, \
                             RowState*, int32_t*, Stream);                                                          \
  template void weighted_rows<T>(const Stripe&, const void*, int64_t, T*, Stream);                                  \
  template void finish_gradient<T>(Precision, const FinishGradient<T>&, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

int64_t column_splits(int64_t row_tiles, int64_t col_tiles) {
  // Two waves of blocks for the largest device; fewer columns than four tiles a block would not pay for its start.
  const int64_t wanted = row_tiles > 0 ? (2 * 132 + row_tiles - 1) / row_tiles : 1;
  return std::clamp<int64_t>(std::min(wanted, (col_tiles + 3) / 4), 1, 64);
}

}  // namespace dml
