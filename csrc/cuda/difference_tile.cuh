#pragma once
// Squared distances of all pairs of a tile in difference form, for tiles with near-duplicates.

#include "cuda/tile.cuh"

namespace dml {

template <class T>
struct alignas(kPieceBytes) Piece {
  static constexpr int kCount = kPieceBytes / sizeof(T);
  T at[kCount];
};

// N neighbours, which begin at 16 bytes.
template <int N, class T>
DML_DEVICE void load_neighbours(const T* from, T (&to)[N]) {
#pragma unroll
  for (int k = 0; k < N; k += Piece<T>::kCount) {
    const Piece<T> piece = *reinterpret_cast<const Piece<T>*>(from + k);
#pragma unroll
    for (int e = 0; e < Piece<T>::kCount; ++e) to[k + e] = piece.at[e];
  }
}

// One chunk of the rows of a side, divided by their norms, as the stages of a product lie.
template <Side S, class E, class T>
DML_DEVICE void stage_scaled(const Operand<E>& side, int first, const T* inverse, int k, unsigned char* to) {
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < kTile * kPieces; at += kThreads) {
    const int r = at / kPieces, piece = at % kPieces;
    const E* const row = side.row(first + r);
    Piece<T> scaled;
#pragma unroll
    for (int e = 0; e < Piece<T>::kCount; ++e) {
      const int column = k + piece * Piece<T>::kCount + e;
      scaled.at[e] = column < side.width ? product(static_cast<T>(row[column]), inverse[r]) : T(0);
    }
    *reinterpret_cast<Piece<T>*>(to + piece_at<S>(r, piece)) = scaled;
  }
}

// tile.at(r, c) = sum_k (f_rk - g_ck)^2. All threads of the block call this with kStageBytes of shared memory.
template <Product P, class E, class T>
DML_DEVICE void subtract_rows(PairTile<P>& tile, const Operand<E>& a, int row0, const T* a_inverse, const Operand<E>& b,
                              int col0, const T* b_inverse, unsigned char* shared) {
  unsigned char* const right = shared + kSideBytes;
  tile.clear();
  __syncthreads();  // the shared memory is free, and the norms are there
#pragma unroll 1
  for (int k = 0; k < a.width; k += kPieces * Piece<T>::kCount) {
    stage_scaled<Side::left>(a, row0, a_inverse, k, shared);
    stage_scaled<Side::right>(b, col0, b_inverse, k, right);
    __syncthreads();
    // One feature at a time: registers are short, and its reads meet every bank once.
#pragma unroll 1
    for (int e = 0; e < kPieces * Piece<T>::kCount; ++e) {
      // The rows of a thread have their pieces at one place, and so have its columns.
      const int piece = e / Piece<T>::kCount, within = e % Piece<T>::kCount;
      const unsigned char* const row = shared + piece_at<Side::left>(PairTile<P>::row(0), piece) + within * sizeof(T);
      const unsigned char* const col = right + piece_at<Side::right>(PairTile<P>::col(0), piece) + within * sizeof(T);
      T x[kRowSlots];
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) x[r] = *reinterpret_cast<const T*>(row + r * kRowStep * kChunkBytes);
#pragma unroll
      for (int c = 0; c < kColSlots; ++c) {
        const T y = *reinterpret_cast<const T*>(col + c * kChunkBytes);
#pragma unroll
        for (int r = 0; r < kRowSlots; ++r) {
          const T difference = x[r] - y;
          tile.at(r, c) = fma(difference, difference, tile.at(r, c));
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace dml
