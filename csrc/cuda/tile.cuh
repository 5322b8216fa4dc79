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

// Rows of one side of a product: row r is the `width` elements at data + (order ? order[r] : r) * width. They begin at
// 16 bytes and fill them (kRowAlignment), so that cp.async can copy them.
template <class E>
struct Operand {
  const E* data;
  int64_t width, count;
  const int64_t* order;

  // An element of a row, of the last one beyond it. Numbers of rows, and widths, are less than 2^31: one instruction
  // multiplies them to 64 bits.
  DML_DEVICE const E* row(int r, int element = 0) const {
    const int last = static_cast<int>(count) - 1, here = r < last ? r : last;
    const auto at = static_cast<uint32_t>(order == nullptr ? here : static_cast<int>(order[here]));
    return data + element + static_cast<uint64_t>(at) * static_cast<uint32_t>(width);
  }
};

// 8 warps as 2 x 4, each 64 x 32 pairs: 64 accumulators a thread, and two loads from shared memory per four products.
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kWarpRows = 64, kWarpCols = 32;
constexpr int kRowSlots = 8, kColSlots = 8;  // rows and columns of the tile that a thread has pairs of
constexpr int kRowStep = 8;                  // from one of its rows to the next; its columns are neighbours
// 64 bytes of each row per stage: two steps of an mma.
constexpr int kChunkBytes = 64, kPieceBytes = 16, kPieces = kChunkBytes / kPieceBytes;
constexpr int kSideBytes = kTile * kChunkBytes;
// Stages of a tile of Strips times 128 columns: one in use, the others on their way; 64 or 72 KB. More columns want
// less of the shared memory for a product: each piece of the rows that a warp loads meets twice as many.
template <int Strips>
constexpr int kStages = Strips == 1 ? 4 : 3;
template <int Strips>
constexpr int kStagesBytes = kStages<Strips> * (1 + Strips) * kSideBytes;
constexpr int kTileShared = kStagesBytes<1>;

// Blocks that a multiprocessor must have room for; 0 leaves it to the compiler. In the registers of half a
// multiprocessor, three TF32 products and float64 would spill.
template <Product P>
constexpr int kBlocks = P == Product::tf32x3 || P == Product::simt ? 1 : 0;
// Of kernels that keep what they chose or drew beside the product: for compute capabilities 8 and 12 they would spill
// as well.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
template <Product P>
constexpr int kChoosingBlocks = 1;
#else
template <Product P>
constexpr int kChoosingBlocks = kBlocks<P>;
#endif

// Strips of a block that has one tile at a time; other products leave no registers for two.
template <Product P>
constexpr int kWideStrips = P == Product::tf32x3 || P == Product::simt ? 1 : 2;

enum class Side { left, right };

// Where piece `piece` of a row of a side lies in a stage. The pieces of a row change places so that the eight rows
// which ldmatrix reads at a time meet all 32 banks once: neighbours on the left, rows 2n, 2n + 1, 2n + 8, 2n + 9 ... on
// the right, whose columns each thread has eight neighbours of.
template <Side S>
DML_DEVICE int piece_at(int row, int piece) {
  const int turn = S == Side::left ? row / 2 % kPieces : row / 8 % kPieces;
  return row * kChunkBytes + (piece ^ turn) * kPieceBytes;
}

// All of the width, chunk by chunk: the first element of the next one.
template <class E>
struct DenseChunks {
  static constexpr int kStep = kChunkBytes / static_cast<int>(sizeof(E));
  int k, width;
  DML_DEVICE bool valid() const { return k < width; }
  DML_DEVICE void advance() { k += kStep; }
};

// A tile of 128 rows and Strips times 128 columns.
template <Product P, int Strips = 1>
struct PairTile {
  using E = typename ProductTypes<P>::Element;
  using T = typename ProductTypes<P>::Value;
  static constexpr int kChunk = kChunkBytes / sizeof(E), kPieceElements = kPieceBytes / sizeof(E);

  static constexpr int kStageBytes = (1 + Strips) * kSideBytes, kColumns = Strips * kColSlots;

  // Of each strip 16-row and 8-column fragments; in a fragment (row, column) (0, 0), (0, 1), (8, 0), (8, 1).
  T value[Strips][4][4][4];

  // Row and column in the tile of a thread's slots, and its pair of two slots.
  static DML_DEVICE int row(int slot) { return warp_index() / 4 * kWarpRows + slot * kRowStep + lane_index() / 4; }
  static DML_DEVICE int first_col() { return warp_index() % 4 * kWarpCols + lane_index() % 4 * kColSlots; }
  static DML_DEVICE int col(int slot) { return slot / kColSlots * kTile + first_col() + slot % kColSlots; }
  DML_DEVICE T& at(int row_slot, int col_slot) {
    const int col = col_slot % kColSlots;
    return value[col_slot / kColSlots][row_slot / 2][col / 2][row_slot % 2 * 2 + col % 2];
  }
  DML_DEVICE T at(int row_slot, int col_slot) const { return const_cast<PairTile*>(this)->at(row_slot, col_slot); }

  // Dot products of rows row0.. of a with rows col0.. of b over the chunks. Beyond the last row of a side it repeats:
  // what is told of those pairs is not a number of the product. All threads of the block call this with
  // kStagesBytes<Strips> bytes.
  template <class Chunks>
  DML_DEVICE void multiply(const Operand<E>& a, int row0, const Operand<E>& b, int col0, Chunks chunks,
                           unsigned char* shared) {
    clear();
    const Source left = source<Side::left>(a, row0);
    Source right[Strips];
#pragma unroll
    for (int s = 0; s < Strips; ++s) right[s] = source<Side::right>(b, col0 + s * kTile);
    const int width = static_cast<int>(a.width);
    Chunks ahead = chunks;
    const auto fetch = [&](unsigned char* stage) {
      if (ahead.valid()) {
        fetch_side(left, ahead.k, width, stage);
#pragma unroll
        for (int s = 0; s < Strips; ++s) fetch_side(right[s], ahead.k, width, stage + (1 + s) * kSideBytes);
        ahead.advance();
      }
      copy_commit();
    };
    constexpr int kLast = kStages<Strips> - 1;
#pragma unroll
    for (int s = 0; s < kLast; ++s) fetch(shared + s * kStageBytes);
#pragma unroll 1
    for (int stage = 0; chunks.valid(); chunks.advance()) {
      copy_wait<kLast - 1>();
      __syncthreads();  // the stage is complete, and everybody is done with the one before it
      fetch(shared + (stage == 0 ? kLast : stage - 1) * kStageBytes);
      accumulate(shared + stage * kStageBytes);
      stage = stage == kLast ? 0 : stage + 1;
    }
    copy_wait<0>();
    __syncthreads();
  }

  DML_DEVICE void clear() {
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) at(r, c) = T(0);
  }

 private:
  static constexpr int kRowsAtOnce = kThreads / kPieces, kCopies = kTile / kRowsAtOnce;

  // What a thread copies of every chunk: a piece of each of two rows of a side.
  struct Source {
    const E* row[kCopies];  // where its piece of the first chunk begins
    int to;                 // in the stage, for the first row
  };
  template <Side S>
  static DML_DEVICE Source source(const Operand<E>& side, int first) {
    const int r = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
    Source source;
    source.to = piece_at<S>(r, piece);
#pragma unroll
    for (int c = 0; c < kCopies; ++c) {
      source.row[c] = side.row(first + r + c * kRowsAtOnce, piece * kPieceElements);
    }
    return source;
  }
  static DML_DEVICE void fetch_side(const Source& source, int k, int width, unsigned char* stage) {
    const bool valid = k + static_cast<int>(threadIdx.x) % kPieces * kPieceElements < width;
#pragma unroll
    for (int c = 0; c < kCopies; ++c)
      copy16_async(stage + source.to + c * kRowsAtOnce * kChunkBytes, source.row[c] + k, valid);
  }

  DML_DEVICE void accumulate(const unsigned char* stage) {
    const unsigned char *const a = stage, *const b = stage + kSideBytes;
    if constexpr (P == Product::simt) {
      const auto entry = [](const unsigned char* side, int at, int k) {
        return reinterpret_cast<const double*>(side + at)[k % kPieceElements];
      };
#pragma unroll 1
      for (int k = 0; k < kChunk; ++k) {
        double right[kColSlots];
#pragma unroll
        for (int c = 0; c < kColSlots; ++c) right[c] = entry(b, piece_at<Side::right>(col(c), k / kPieceElements), k);
#pragma unroll
        for (int r = 0; r < kRowSlots; ++r) {
          const double left = entry(a, piece_at<Side::left>(row(r), k / kPieceElements), k);
#pragma unroll
          for (int c = 0; c < kColSlots; ++c) at(r, c) = fma(left, right[c], at(r, c));
        }
      }
    } else {
      // Lane l brings row l % 16 of a fragment on the left, and its piece l / 16 of a step; on the right, row l % 8 of
      // fragment l / 16 of two, and piece l / 8 % 2. Fragment n has columns 2n and 2n + 1 of each thread.
      const int lane = lane_index(), row8 = lane % 8;
      const int a_row = warp_index() / 4 * kWarpRows + lane % 16;
      const int b_row = warp_index() % 4 * kWarpCols + row8 / 2 * kColSlots + row8 % 2 + lane / 16 * 2;
      // Of three products the sums of a step are apart, and registers are short.
      constexpr int kStepsAtOnce = P == Product::tf32x3 ? 1 : 2;
#pragma unroll kStepsAtOnce
      for (int step = 0; step < kPieces; step += 2) {
        const unsigned char* const a_piece = a + piece_at<Side::left>(a_row, step + lane / 16);
        const unsigned char* const b_piece = b + piece_at<Side::right>(b_row, step + lane / 8 % 2);
        uint32_t right[4 * Strips][2];
#pragma unroll
        for (int n = 0; n < 4 * Strips; n += 2) {
          uint32_t pair[4];
          load_matrices(pair, b_piece + n / 4 * kSideBytes + n % 4 * 2 * kChunkBytes);
          right[n][0] = pair[0], right[n][1] = pair[1], right[n + 1][0] = pair[2], right[n + 1][1] = pair[3];
        }
        products(a_piece, right);
      }
    }
  }

  DML_DEVICE void products(const unsigned char* a_row, uint32_t (&right)[4 * Strips][2]) {
    [[maybe_unused]] uint32_t right_low[4 * Strips][2];
#pragma unroll
    for (int n = 0; n < 4 * Strips; ++n)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if constexpr (P == Product::tf32) right[n][k] = round_to_tf32(__uint_as_float(right[n][k]));
        if constexpr (P == Product::tf32x3) split_tf32(right[n][k], right[n][k], right_low[n][k]);
      }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t left[4];
      [[maybe_unused]] uint32_t left_low[4];
      load_matrices(left, a_row + m * 16 * kChunkBytes);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if constexpr (P == Product::tf32) left[k] = round_to_tf32(__uint_as_float(left[k]));
        if constexpr (P == Product::tf32x3 || P == Product::tf32x2) split_tf32(left[k], left[k], left_low[k]);
      }
#pragma unroll
      for (int n = 0; n < 4 * Strips; ++n) {
        T(&sum)[4] = value[n / 4][m][n % 4];
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
          for (int k = 0; k < 4; ++k) sum[k] += sums[k];
        } else {
          mma<ProductTypes<P>::kind>(sum, left, right[n]);
        }
      }
    }
  }
};

}  // namespace dml
