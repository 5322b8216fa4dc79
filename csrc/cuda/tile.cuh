#pragma once
// The product of 128 rows with 128 other rows, streamed over their width through shared memory into the registers of a
// block: the one product path of every pair kernel.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/tile_schedule.h"
#include "cuda/async.cuh"
#include "cuda/mma.cuh"
#include "cuda/number.cuh"

namespace dml {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

// How a product is computed: tf32x3 is accurate to float32, and so is tf32x2 where the right side is exact in TF32.
enum class Product { simt, tf32x3, tf32x2, tf32, bf16, fp16 };

template <Product P>
struct ProductTypes {  // the TF32 products
  using Element = float;
  using Value = float;
  static constexpr Mma kind = Mma::tf32;
};
template <>
struct ProductTypes<Product::simt> {
  using Element = double;
  using Value = double;
};
template <>
struct ProductTypes<Product::bf16> {
  using Element = BFloat16;
  using Value = float;
  static constexpr Mma kind = Mma::bf16;
};
template <>
struct ProductTypes<Product::fp16> {
  using Element = Half;
  using Value = float;
  static constexpr Mma kind = Mma::fp16;
};

// Rows of one side of a product: row r is at data + (order ? order[r] : r) * stride.
template <class E>
struct Operand {
  const E* data;
  int64_t stride, width, count;
  const int64_t* order;
  bool aligned;  // every row starts at 16 bytes and fills them: cp.async can copy it

  DML_DEVICE const E* row(int64_t r) const { return data + (order == nullptr ? r : order[r]) * stride; }
};

template <class E>
inline Operand<E> make_operand(const E* data, int64_t count, int64_t width, int64_t stride,
                               const int64_t* order = nullptr) {
  const bool aligned =
      reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * sizeof(E) % 16 == 0 && width * sizeof(E) % 16 == 0;
  return Operand<E>{data, stride, width, count, order, aligned};
}

// 8 warps as 2 x 4, each 64 x 32 pairs: 64 accumulators a thread, and two loads from shared memory per four products.
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kWarpRows = 64, kWarpCols = 32;
constexpr int kRowSlots = 8, kColSlots = 8;  // rows and columns of the tile that a thread has pairs of
// 64 bytes of each row per stage: two steps of an mma, in 80 bytes, so that eight rows meet all 32 banks once.
constexpr int kChunkBytes = 64, kRowBytes = 80;
constexpr int kStageBytes = 2 * kTile * kRowBytes;
constexpr int kStages = 3;  // one in use, two on their way; 60 KB, so that an A100 or H100 holds two blocks or more
constexpr int kTileShared = kStages * kStageBytes;

// Blocks that a multiprocessor must have room for; 0 leaves it to the compiler. In the registers of half a
// multiprocessor, three TF32 products and float64 would spill.
template <Product P>
constexpr int kBlocks = P == Product::tf32x3 || P == Product::simt ? 1 : 0;
// For kernels that do fit into half the registers, which the compiler does not see by itself.
template <Product P>
constexpr int kTwoBlocks = kBlocks<P> == 1 ? 1 : 2;

// All of the width, chunk by chunk: where in the rows of either side.
template <class E>
struct DenseChunks {
  int64_t k, width;
  DML_DEVICE bool valid() const { return k < width; }
  DML_DEVICE int64_t left() const { return k; }
  DML_DEVICE int64_t right() const { return k; }
  DML_DEVICE void advance() { k += kChunkBytes / static_cast<int64_t>(sizeof(E)); }
};

template <Product P>
struct PairTile {
  using E = typename ProductTypes<P>::Element;
  using T = typename ProductTypes<P>::Value;
  static constexpr int kChunk = kChunkBytes / sizeof(E);

  T value[4][4][4];  // 16-row and 8-column fragments; in a fragment (row, column) (0, 0), (0, 1), (8, 0), (8, 1)

  // Row and column in the tile of a thread's slots, and its pair of two slots.
  static DML_DEVICE int row(int slot) {
    return warp_index() / 4 * kWarpRows + slot / 2 * 16 + slot % 2 * 8 + lane_index() / 4;
  }
  static DML_DEVICE int col(int slot) {
    return warp_index() % 4 * kWarpCols + slot / 2 * 8 + lane_index() % 4 * 2 + slot % 2;
  }
  DML_DEVICE T& at(int row_slot, int col_slot) {
    return value[row_slot / 2][col_slot / 2][row_slot % 2 * 2 + col_slot % 2];
  }

  // Dot products of rows row0.. of a with rows col0.. of b over the chunks; a row or a column that is not there is 0.
  // All threads of the block call this with kTileShared bytes.
  template <class Chunks>
  DML_DEVICE void multiply(const Operand<E>& a, int64_t row0, const Operand<E>& b, int64_t col0, Chunks chunks,
                           unsigned char* shared) {
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k) value[m][n][k] = T(0);
    Chunks ahead = chunks;
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) fetch(ahead, a, row0, b, col0, shared + s * kStageBytes);
    for (int stage = 0; chunks.valid(); chunks.advance()) {
      copy_wait<kStages - 2>();
      __syncthreads();  // the stage is complete, and everybody is done with the one before it
      const int free = stage == 0 ? kStages - 1 : stage - 1;
      fetch(ahead, a, row0, b, col0, shared + free * kStageBytes);
      accumulate(shared + stage * kStageBytes, shared + stage * kStageBytes + kTile * kRowBytes);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    copy_wait<0>();
    __syncthreads();
  }

 private:
  template <class Chunks>
  DML_DEVICE void fetch(Chunks& ahead, const Operand<E>& a, int64_t row0, const Operand<E>& b, int64_t col0,
                        unsigned char* stage) {
    if (ahead.valid()) {
      fetch_side(a, row0, ahead.left(), stage);
      fetch_side(b, col0, ahead.right(), stage + kTile * kRowBytes);
      ahead.advance();
    }
    copy_commit();
  }

  DML_DEVICE void fetch_side(const Operand<E>& side, int64_t first, int64_t k, unsigned char* to) {
    constexpr int kPieces = kTile * kChunkBytes / 16, kPieceElements = 16 / sizeof(E);
#pragma unroll
    for (int piece = static_cast<int>(threadIdx.x); piece < kPieces; piece += kThreads) {
      const int r = piece / 4, part = piece % 4;
      const int64_t row = first + r, column = k + part * kPieceElements;
      unsigned char* const target = to + r * kRowBytes + part * 16;
      if (side.aligned) {
        const bool valid = row < side.count && column < side.width;
        copy16_async(target, valid ? side.row(row) + column : side.data, valid);
      } else {
        for (int e = 0; e < kPieceElements; ++e) {
          const bool valid = row < side.count && column + e < side.width;
          reinterpret_cast<E*>(target)[e] = valid ? side.row(row)[column + e] : E(0.0f);
        }
      }
    }
  }

  DML_DEVICE void accumulate(const unsigned char* a, const unsigned char* b) {
    if constexpr (P == Product::simt) {
      const auto entry = [](const unsigned char* side, int r, int k) {
        return reinterpret_cast<const double*>(side + r * kRowBytes)[k];
      };
#pragma unroll 1
      for (int k = 0; k < kChunk; ++k) {
        double right[kColSlots];
#pragma unroll
        for (int c = 0; c < kColSlots; ++c) right[c] = entry(b, col(c), k);
#pragma unroll
        for (int r = 0; r < kRowSlots; ++r) {
          const double left = entry(a, row(r), k);
#pragma unroll
          for (int c = 0; c < kColSlots; ++c) at(r, c) = fma(left, right[c], at(r, c));
        }
      }
    } else {
      const int lane = lane_index();
      const unsigned char* const a_row = a + (warp_index() / 4 * kWarpRows + lane % 16) * kRowBytes + lane / 16 * 16;
      const unsigned char* const b_row =
          b + (warp_index() % 4 * kWarpCols + lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * 16;
      // Of three products the sums of a step are apart, and registers are short.
      constexpr int kStepsAtOnce = P == Product::tf32x3 ? 1 : 2;
#pragma unroll kStepsAtOnce
      for (int step = 0; step < kChunkBytes; step += 32) {
        uint32_t right[4][2];
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
          uint32_t pair[4];
          load_matrices(pair, b_row + n * 8 * kRowBytes + step);
          right[n][0] = pair[0], right[n][1] = pair[1], right[n + 1][0] = pair[2], right[n + 1][1] = pair[3];
        }
        products(a_row + step, right);
      }
    }
  }

  DML_DEVICE void products(const unsigned char* a_row, uint32_t (&right)[4][2]) {
    [[maybe_unused]] uint32_t right_low[4][2];
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if constexpr (P == Product::tf32) right[n][k] = round_to_tf32(__uint_as_float(right[n][k]));
        if constexpr (P == Product::tf32x3) split_tf32(right[n][k], right[n][k], right_low[n][k]);
      }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t left[4];
      [[maybe_unused]] uint32_t left_low[4];
      load_matrices(left, a_row + m * 16 * kRowBytes);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if constexpr (P == Product::tf32) left[k] = round_to_tf32(__uint_as_float(left[k]));
        if constexpr (P == Product::tf32x3 || P == Product::tf32x2) split_tf32(left[k], left[k], left_low[k]);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if constexpr (P == Product::tf32x3 || P == Product::tf32x2) {
          // A tensor core cuts sums off, which over many steps is a drift: those of a step are added up in registers.
          // The small terms come first, and apart, so that (i, j) has the bits of (j, i).
          float sums[4] = {}, small_right[4] = {};
          mma<Mma::tf32>(sums, left_low, right[n]);
          if constexpr (P == Product::tf32x3) mma<Mma::tf32>(small_right, left, right_low[n]);
#pragma unroll
          for (int k = 0; k < 4; ++k) sums[k] += small_right[k];
          mma<Mma::tf32>(sums, left, right[n]);
#pragma unroll
          for (int k = 0; k < 4; ++k) value[m][n][k] += sums[k];
        } else {
          mma<ProductTypes<P>::kind>(value[m][n], left, right[n]);
        }
      }
    }
  }
};

}  // namespace dml
