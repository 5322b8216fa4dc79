#include <algorithm>

#include "cuda/pair_engine.cuh"

namespace dml {
namespace {

constexpr int kRowsPerBlock = kThreads / kWarp;  // a warp reads a row
constexpr size_t kMostKept = 32 * 1024;          // bytes of sums that a block keeps, so that several blocks have room

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

// The chunks of the active tiles of one row tile.
template <class E>
struct ActiveChunks {
  static constexpr int kStep = kChunkBytes / static_cast<int>(sizeof(E));
  int k, end;
  ActiveTiles active;
  int64_t row_tile;

  DML_DEVICE bool valid() const { return k < end; }
  DML_DEVICE void skip() {
    while (k < end && active.of(row_tile, k / kTile) == 0) k += kTile;
  }
  DML_DEVICE void advance() {
    k += kStep;
    if (k % kTile == 0) skip();
  }
};

template <Product P, int Strips>
DML_KERNEL(kThreads, Strips == 1 ? kBlocks<P> : 1)
product_kernel(Stripe stripe, const typename ProductTypes<P>::Element* x_transposed, int64_t width, int splits,
               typename ProductTypes<P>::Value* sums) {
  using E = typename ProductTypes<P>::Element;
  DML_SHARED(shared);
  const int row_tile = static_cast<int>(blockIdx.x) / splits, split = static_cast<int>(blockIdx.x) % splits;
  const int row0 = row_tile * kTile, col0 = static_cast<int>(block_col()) * Strips * kTile;
  const Operand<E> a{static_cast<const E*>(stripe.weights), stripe.padded, stripe.count, nullptr};
  const Operand<E> b{x_transposed, stripe.padded, width, nullptr};
  const int tiles = static_cast<int>(stripe.padded) / kTile, share = (tiles + splits - 1) / splits,
            first = share * split;
  ActiveChunks<E> chunks{first * kTile, (first + share < tiles ? first + share : tiles) * kTile, stripe.active,
                         stripe.first / kTile + row_tile};
  chunks.skip();
  PairTile<P, Strips> tile;
  tile.multiply(a, row0, b, col0, chunks, shared);
  typename ProductTypes<P>::Value* const own = sums + split * stripe.count * width;
#pragma unroll
  for (int r = 0; r < kRowSlots; ++r)
#pragma unroll
    for (int c = 0; c < tile.kColumns; ++c) {
      const int64_t row = row0 + tile.row(r), col = col0 + tile.col(c);
      if (row < stripe.count && col < width) own[row * width + col] = tile.at(r, c);
    }
}

template <class E, class T>
DML_KERNEL(kThreads)
finish_kernel(FinishGradient<T> p, bool keeps) {
  DML_SHARED(shared);
  const int64_t local = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warp_index(), row = p.first + local;
  if (local >= p.count) return;
  const E* const x = static_cast<const E*>(p.x) + row * p.width;
  E* const out = static_cast<E*>(p.out) + (p.order == nullptr ? row : p.order[row]) * p.width;
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
  const auto entry = [&](int64_t k) {
    T sum = T(0);
    for (int64_t s = 0; s < p.sum_splits; ++s) sum += p.sums[(s * p.count + local) * p.width + k];
    return fma(total, static_cast<T>(x[k]) * inverse, p.sign * sum);
  };
  // A row that was not divided by its norm gets no gradient.
  const T outer = inverse < T(1) / T(kShortest) ? inverse : T(0);
  T radial = T(0);
  // The sums are read once, where a row of them has room.
  T* const kept = keeps ? reinterpret_cast<T*>(shared) + warp_index() * p.width : nullptr;
  if (p.normalize) {
    for (int64_t k = lane_index(); k < p.width; k += kWarp) {
      const T own = entry(k);
      if (keeps) kept[k] = own;
      radial = fma(own, static_cast<T>(x[k]) * inverse, radial);
    }
    radial = warp_sum(radial);
  }
  for (int64_t k = lane_index(); k < p.width; k += kWarp) {
    const T tangential = (keeps ? kept[k] : entry(k)) - radial * (static_cast<T>(x[k]) * inverse);
    out[k] = static_cast<E>(p.normalize ? tangential * outer : tangential);
  }
}

}  // namespace

void transpose_rows(Precision precision, Precision weighted, const void* x, const RowState* state, int64_t count,
                    int64_t width, int64_t padded, void* out, Stream stream) {
  const auto call = [&](auto element, auto weight) {
    using E = decltype(element);
    using W = decltype(weight);
    launch(transpose_kernel<E, W>, block_matrix(blocks_for(padded, kWarp), blocks_for(width, kWarp)), kThreads,
           kWarp * (kWarp + 1) * sizeof(W), stream, static_cast<const E*>(x), state, count, width, padded,
           static_cast<W*>(out));
  };
  switch (precision) {
    case Precision::float64:
      return call(double(), double());
    case Precision::bfloat16:
      return weighted == Precision::bfloat16 ? call(BFloat16(), BFloat16()) : call(BFloat16(), float());
    case Precision::float16:
      return call(Half(), float());
    default:
      return call(float(), float());
  }
}

template <class T>
void weighted_rows(const Stripe& stripe, const void* x_transposed, int64_t width, int64_t splits, T* sums,
                   Stream stream) {
  const auto run = [&](auto product, auto strips) {
    constexpr Product P = decltype(product)::value;
    constexpr int kStrips = decltype(strips)::value;
    const dim3 grid = block_matrix(blocks_for(stripe.count, kTile) * static_cast<unsigned>(splits),
                                   blocks_for(width, kStrips * kTile));
    launch(product_kernel<P, kStrips>, grid, kThreads, kStagesBytes<kStrips>, stream, stripe,
           static_cast<const typename ProductTypes<P>::Element*>(x_transposed), width, static_cast<int>(splits), sums);
  };
  const auto call = [&](auto product) {
    if constexpr (decltype(product)::value == Product::bf16 || decltype(product)::value == Product::tf32)
      if (strips_of(stripe.precision, width) == 2) return run(product, std::integral_constant<int, 2>());
    run(product, std::integral_constant<int, 1>());
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
  const size_t bytes = kRowsPerBlock * static_cast<size_t>(p.width) * sizeof(T);
  const bool keeps = p.normalize && bytes <= kMostKept;
  with_element<T>(precision, [&](auto element) {
    launch(finish_kernel<decltype(element), T>, grid, kThreads, keeps ? bytes : 0, stream, p, keeps);
  });
}

#define DML_INSTANTIATE(T)                                                                  \
  template void weighted_rows<T>(const Stripe&, const void*, int64_t, int64_t, T*, Stream); \
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
