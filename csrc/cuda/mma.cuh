#pragma once
// Tensor-core products of one warp, mma.sync of sm_80 and later: c (16, 8) += a (16, K) b (K, 8), K = 16 for bf16 and
// fp16, 8 for TF32. With g = lane / 4 and t = lane % 4, lane holds c of rows g and g + 8, columns 2t and 2t + 1; a and
// b are what ldmatrix gives of row-major (16, 32 bytes) and (8, 32 bytes). Each wrapper has its twin on the host.

#include <stdint.h>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

namespace dml {

enum class Mma { bf16, fp16, tf32 };

#if defined(DML_CUDA_HOST)

struct MmaOperands {
  uint32_t a[4], b[2];
};

DML_DEVICE float half_word(uint32_t word, int upper, bool is_bf16) {
  const uint32_t bits = upper != 0 ? word >> 16 : word & 0xffffu;
  if (is_bf16) return __uint_as_float(bits << 16);
  const int exponent = static_cast<int>(bits >> 10 & 31u), fraction = static_cast<int>(bits & 1023u);
  const float magnitude = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                          : exponent == 0 ? ::ldexpf(static_cast<float>(fraction), -24)
                                          : ::ldexpf(static_cast<float>(1024 + fraction), exponent - 25);
  return (bits >> 15 & 1u) != 0 ? -magnitude : magnitude;
}

// Entry k of row `row` of a fragment of 8-row matrices, two of them (k halves) per 8 rows.
template <Mma kind>
DML_DEVICE float operand_entry(const uint32_t* words, int k, int step) {
  if constexpr (kind == Mma::tf32) return __uint_as_float(words[k / 4 * step] & 0xffffe000u);
  return half_word(words[k / 8 * step], k % 2, kind == Mma::bf16);
}

// Tensor cores add the exact products of 16 bytes to the accumulator at once, each cut off below the last bit that the
// largest of them has in float32, and so is the sum. Devices keep a bit or two more (Fasi, Higham, Mikaitis, Pranesh,
// "Numerical behavior of NVIDIA tensor cores", 2021): none is less accurate.
template <int kCount>
DML_DEVICE float add_cut_off(float c, const double (&products)[kCount]) {
  double largest = ::fabs(static_cast<double>(c)), sum = c;
  for (const double p : products) {
    largest = ::fabs(p) > largest ? ::fabs(p) : largest;
    sum += p;
  }
  if (!(::fabs(sum) < INFINITY) || largest == 0) return static_cast<float>(sum);
  // The power of two of the largest, and the last bit of a float32 of that size.
  constexpr uint64_t kExponent = 0x7ff0000000000000;
  const double top = __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, largest) & kExponent);
  const double bit = top * 0x1p-23, per_bit = 0x1p23 / top;
  auto bits = static_cast<int64_t>(c * per_bit);
  for (const double p : products) bits += static_cast<int64_t>(p * per_bit);
  const double cut = static_cast<double>(bits) * bit;
  const float nearest = static_cast<float>(cut);
  return ::fabs(static_cast<double>(nearest)) > ::fabs(cut) ? ::nextafterf(nearest, 0.0f) : nearest;
}

template <Mma kind>
DML_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    const cuda_host::Site& site = cuda_host::Site::current()) {
  constexpr int kK = kind == Mma::tf32 ? 8 : 16, kAtOnce = kK / 2;
  MmaOperands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const unsigned char* all = cuda_host::warp_exchange(kAllLanes, &mine, sizeof(mine), site);
  const int g = lane_index() / 4, t = lane_index() % 4;
  const auto words = [all](int lane) {
    return reinterpret_cast<const MmaOperands*>(all + static_cast<size_t>(lane) * cuda_host::kDeposit);
  };
  for (int first = 0; first < kK; first += kAtOnce) {
    double products[4][kAtOnce];
    for (int k = first; k < first + kAtOnce; ++k) {
      const int within = kind == Mma::tf32 ? k % 4 : k % 8 / 2;
      const uint32_t* rows = words(g * 4 + within)->a;
      const double low = operand_entry<kind>(rows, k, 2), high = operand_entry<kind>(rows + 1, k, 2);
      for (int column = 0; column < 2; ++column) {
        const float right = operand_entry<kind>(words((2 * t + column) * 4 + within)->b, k, 1);
        products[column][k - first] = low * right;
        products[2 + column][k - first] = high * right;
      }
    }
    for (int e = 0; e < 4; ++e) c[e] = add_cut_off(c[e], products[e]);
  }
}

// Four 8 x 16-byte matrices; lane l brings the address of row l % 8 of matrix l / 8.
DML_DEVICE void load_matrices(uint32_t (&r)[4], const void* row,
                              const cuda_host::Site& site = cuda_host::Site::current()) {
  const unsigned char* rows = cuda_host::warp_exchange(kAllLanes, &row, sizeof(row), site);
  for (int m = 0; m < 4; ++m) {
    const auto* from = cuda_host::deposit_of<const unsigned char*>(rows, m * 8 + lane_index() / 4);
    memcpy(&r[m], from + lane_index() % 4 * 4, 4);
  }
}

// Nearest TF32, ties away from zero.
DML_DEVICE uint32_t round_to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

#else

template <Mma kind>
DML_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kind == Mma::bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else if constexpr (kind == Mma::fp16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

DML_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

DML_DEVICE uint32_t round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

#endif

// x = high + low with both TF32: three products of such halves are accurate to float32.
DML_DEVICE void split_tf32(uint32_t x, uint32_t& high, uint32_t& low) {
  high = round_to_tf32(__uint_as_float(x));
  low = round_to_tf32(__uint_as_float(x) - __uint_as_float(high));
}

}  // namespace dml
