#include "cuda/row_products.h"

#include "cuda/tile.cuh"

namespace dml {
namespace {

constexpr Product kProduct = Product::tf32x3;

DML_KERNEL(kThreads, kBlocks<kProduct>)
row_products_kernel(Operand<float> a, Operand<float> b, unsigned splits, float* out) {
  using Tile = PairTile<kProduct>;
  DML_SHARED(shared);
  const unsigned split = blockIdx.x % splits;
  const int row0 = static_cast<int>(blockIdx.x / splits) * kTile, col0 = static_cast<int>(block_col()) * kTile;
  const int width = static_cast<int>(a.width), parts = static_cast<int>(splits);
  const int chunks = (width + Tile::kChunk - 1) / Tile::kChunk;
  const int share = (chunks + parts - 1) / parts * Tile::kChunk, first = share * static_cast<int>(split);
  Tile tile;
  tile.multiply(a, row0, b, col0, DenseChunks<float>{first, first + share < width ? first + share : width}, shared);
  float* const part = out + split * a.count * b.count;
#pragma unroll
  for (int r = 0; r < kRowSlots; ++r)
#pragma unroll
    for (int c = 0; c < kColSlots; ++c) {
      const int64_t row = row0 + Tile::row(r), col = col0 + Tile::col(c);
      if (row < a.count && col < b.count) part[row * b.count + col] = tile.at(r, c);
    }
}

}  // namespace

void multiply_rows(const float* left, int64_t m, const float* right, int64_t n, int64_t width, int64_t splits,
                   float* out, Stream stream) {
  const unsigned parts = static_cast<unsigned>(splits);
  launch(row_products_kernel, block_matrix(blocks_for(m, kTile) * parts, blocks_for(n, kTile)), kThreads, kTileShared,
         stream, Operand<float>{left, width, m, nullptr}, Operand<float>{right, width, n, nullptr}, parts, out);
}

}  // namespace dml
