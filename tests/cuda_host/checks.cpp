// What the shim gives, against what CUDA's and PTX's manuals say. A check returns nothing and throws what is wrong.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "cuda/async.cuh"
#include "cuda/mma.cuh"
#include "cuda/number.cuh"
#include "cuda/pairs.cuh"
#include "cuda/reduce.cuh"
#include "cuda_host/driver.h"

namespace dml {
namespace {

using cuda_host::expect;

DML_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

void expect_equal(const std::vector<int>& got, const std::vector<int>& wanted, const std::string& what) {
  for (size_t k = 0; k < wanted.size(); ++k)
    expect(got[k] == wanted[k], what + " of thread " + std::to_string(k) + ": got " + std::to_string(got[k]) +
                                    ", wanted " + std::to_string(wanted[k]));
}

template <class Wanted>
std::vector<int> table(int count, const Wanted& wanted) {
  std::vector<int> values(count);
  for (int k = 0; k < count; ++k) values[k] = wanted(k);
  return values;
}

template <class... P, class... A>
std::vector<int> run(void (*kernel)(int*, P...), int threads, size_t shared, A... arguments) {
  std::vector<int> out(threads, -1);
  launch(kernel, dim3(1), threads, shared, nullptr, out.data(), arguments...);
  return out;
}

enum Shuffle { by_index, by_xor, up, down };

DML_KERNEL(64) shuffle_kernel(int* out, int kind, int argument, int width) {
  const int mine = 100 + thread();
  out[thread()] = kind == by_index ? __shfl_sync(kAllLanes, mine, argument, width)
                  : kind == by_xor ? __shfl_xor_sync(kAllLanes, mine, argument, width)
                  : kind == up     ? __shfl_up_sync(kAllLanes, mine, argument, width)
                                   : __shfl_down_sync(kAllLanes, mine, argument, width);
}

DML_CASE(shuffles) {
  for (int width = 2; width <= kWarp; width *= 2) {
    for (int n = 0; n < kWarp; ++n) {
      const auto check = [&](int kind, const char* name, auto from) {
        expect_equal(run(shuffle_kernel, 64, 0, kind, n, width),
                     table(64, [&](int k) { return 100 + k / kWarp * kWarp + from(k % kWarp); }),
                     std::string(name) + " by " + std::to_string(n) + " in " + std::to_string(width));
      };
      check(by_index, "shuffle", [&](int lane) { return lane / width * width + n % width; });
      // An exchange reaches earlier groups, never later ones.
      check(by_xor, "xor", [&](int lane) { return (lane ^ n) / width > lane / width ? lane : lane ^ n; });
      check(up, "up", [&](int lane) { return lane % width >= n ? lane - n : lane; });
      check(down, "down", [&](int lane) { return lane % width + n < width ? lane + n : lane; });
    }
  }
  expect_equal(run(shuffle_kernel, 64, 0, by_index, -1, 8), table(64, [](int k) { return 100 + k / 8 * 8 + 7; }), "-1");
  return {};
}

DML_KERNEL(32) wide_shuffle_kernel(int* out) {
  const double value = thread() + 0.25;
  const long long word = 0x100000000ll * thread();
  out[thread()] = __shfl_xor_sync(kAllLanes, value, 5) == (thread() ^ 5) + 0.25 &&
                  __shfl_xor_sync(kAllLanes, word, 5) == 0x100000000ll * (thread() ^ 5);
}

DML_CASE(shuffles_of_eight_bytes) {
  expect_equal(run(wide_shuffle_kernel, 32, 0), std::vector<int>(32, 1), "eight bytes");
  return {};
}

// Lanes that took part in operations of their own are in step with the others again in the next one of all.
DML_KERNEL(32) partial_kernel(int* out) {
  const int lane = lane_index();
  int value = 1;
  if (lane < 8) {
    for (int bits = 1; bits < 8; bits *= 2) value += __shfl_xor_sync(0xffu, value, bits);
  } else if (lane < 20) {
    value = __shfl_sync(0xfff00u, lane, 11);
  }
  const int neighbour = __shfl_xor_sync(kAllLanes, value, 16);
  out[lane] = 1000 * value + neighbour;
}

DML_CASE(partial_masks) {
  const auto value = [](int lane) { return lane < 8 ? 8 : lane < 20 ? 11 : 1; };
  expect_equal(run(partial_kernel, 32, 0), table(32, [&](int k) { return 1000 * value(k) + value(k ^ 16); }), "value");
  return {};
}

DML_KERNEL(64) vote_kernel(int* out, int modulus) {
  const int yes = thread() % modulus == 0;
  const unsigned votes = __ballot_sync(kAllLanes, yes);
  const bool some = __any_sync(kAllLanes, yes) != 0, every = __all_sync(kAllLanes, yes) != 0;
  out[thread()] = __popc(votes) * 100 + (__ffs(static_cast<int>(votes)) * 4) + some * 2 + every;
}

DML_CASE(votes) {
  for (int modulus : {1, 3, 40, 64}) {
    const auto wanted = [&](int k) {
      int count = 0, first = 0;
      for (int lane = 0; lane < kWarp; ++lane)
        if ((k / kWarp * kWarp + lane) % modulus == 0) {
          if (++count == 1) first = lane + 1;
        }
      return count * 100 + first * 4 + (count > 0) * 2 + (count == kWarp);
    };
    expect_equal(run(vote_kernel, 64, 0, modulus), table(64, wanted), "votes of every " + std::to_string(modulus));
  }
  return {};
}

DML_KERNEL(96) block_vote_kernel(int* out, int first) {
  const int count = __syncthreads_count(thread() >= first);
  __syncthreads();
  const int any = __syncthreads_or(thread() >= first);
  out[thread()] = count * 2 + (any != 0);
}

DML_CASE(block_votes) {
  for (int first : {0, 1, 50, 95, 96})
    expect_equal(run(block_vote_kernel, 96, 0, first), std::vector<int>(96, (96 - first) * 2 + (first < 96)), "votes");
  return {};
}

// The last warp has eight lanes.
DML_KERNEL(40) ragged_kernel(int* out) {
  const unsigned here = thread() < kWarp ? kAllLanes : 0xffu;
  const int sum = __popc(__ballot_sync(here, 1)) + __shfl_sync(here, thread(), 7);
  __syncthreads();
  out[thread()] = sum;
}

DML_CASE(warps_that_are_not_full) {
  expect_equal(run(ragged_kernel, 40, 0), table(40, [](int k) { return k < 32 ? 32 + 7 : 8 + 39; }), "sum");
  return {};
}

DML_KERNEL(128) sums_kernel(int* out) {
  DML_SHARED(shared);
  const int groups = warp_sum<8>(thread()), apart = warp_sum<4, 8>(thread());
  const int first = block_sum<4>(thread(), reinterpret_cast<int*>(shared));
  const int second = block_sum<4>(2 * thread(), reinterpret_cast<int*>(shared));
  out[thread()] = groups + 1000 * apart + 1000000 * (first == 8128 && second == 16256);
}

DML_CASE(sums) {
  const auto wanted = [](int k) {
    const int warp = k / kWarp * kWarp;
    return 8 * (k / 8 * 8) + 28 + 1000 * (4 * (warp + k % 8) + 48) + 1000000;
  };
  expect_equal(run(sums_kernel, 128, 4 * sizeof(int)), table(128, wanted), "sums");
  return {};
}

DML_KERNEL(64) grid_kernel(int* out, int* visits) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  if (thread() == 0) out[block] = static_cast<int>(blockIdx.x * 100 + blockIdx.y * 10 + blockIdx.z);
  atomicAdd(visits, static_cast<int>(blockDim.x) == 64);
}

DML_CASE(grids) {
  std::vector<int> out(2 * 3 * 4, -1);
  int visits = 0;
  launch(grid_kernel, dim3(2, 3, 4), 64, 0, nullptr, out.data(), &visits);
  expect_equal(out, table(24, [](int k) { return k % 2 * 100 + k / 2 % 3 * 10 + k / 6; }), "block");
  launch(grid_kernel, dim3(5, 0, 2), 64, 0, nullptr, out.data(), &visits);
  expect(visits == 24 * 64, "threads ran " + std::to_string(visits) + " times");
  return {};
}

DML_KERNEL(1) columns_kernel(int* out) { out[blockIdx.x * gridDim.y * gridDim.z + block_col()] += 1; }

// Of any number of columns, in a grid that a device takes and that has few blocks more than them.
DML_CASE(block_matrices) {
  for (const unsigned cols : {1u, 2u, 65535u, 65536u, 131070u, 131071u, 300000u, 67108864u}) {
    const dim3 grid = block_matrix(3, cols);
    const uint64_t places = uint64_t{grid.y} * grid.z;
    expect(grid.x == 3 && grid.y <= 65535 && grid.z <= 65535 && places >= cols && places < cols + grid.z,
           std::to_string(cols) + " columns in " + std::to_string(grid.y) + " x " + std::to_string(grid.z));
  }
  expect(block_matrix(3, 0).y == 0, "no column");
  std::vector<int> visits(2 * 5 * 3, 0);
  launch(columns_kernel, dim3(2, 5, 3), 1, 0, nullptr, visits.data());
  expect_equal(visits, std::vector<int>(30, 1), "visits");
  return {};
}

DML_KERNEL(64) atomics_kernel(int* out, float* total, double* exact) {
  const int k = static_cast<int>(blockIdx.x) * 64 + thread();
  atomicAdd(total, 0.5f);
  atomicAdd(exact, 1);
  atomicMax(&out[0], k);
  atomicMin(&out[1], -k);
  atomicOr(&out[2], 1 << k % 20);
  int seen = out[3], expected;
  do {
    expected = seen;
    seen = atomicCAS(&out[3], expected, expected + 2);
  } while (seen != expected);
}

DML_CASE(atomics) {
  std::vector<int> out(4, 0);
  float total = 0;
  double exact = 0;
  launch(atomics_kernel, dim3(3), 64, 0, nullptr, out.data(), &total, &exact);
  expect_equal(out, {191, -191, (1 << 20) - 1, 384}, "result");
  expect(total == 96 && exact == 192, "sums");
  return {};
}

// Shared memory starts as NaN in each block; a copy brings zeros for what is not valid, and its group is waited for.
DML_KERNEL(32) copies_kernel(int* out, const float* in) {
  DML_SHARED(shared);
  auto* values = reinterpret_cast<float*>(shared);
  bool good = values[thread()] != values[thread()];
  __syncthreads();
  for (int stage = 0; stage < 3; ++stage) {
    if (thread() < 4) copy16_async(values + stage * 16 + thread() * 4, in + stage * 16 + thread() * 4, thread() < 2);
    copy_commit();
  }
  const auto check = [&](int stage) {
    __syncthreads();
    for (int k = 0; k < 16; ++k) good = good && values[stage * 16 + k] == (k < 8 ? in[stage * 16 + k] : 0.0f);
  };
  copy_wait<2>();
  check(0);
  copy_wait<0>();
  check(1);
  check(2);
  out[thread()] = good;
}

DML_CASE(copies) {
  alignas(16) float in[48];
  for (int k = 0; k < 48; ++k) in[k] = static_cast<float>(k + 1);
  for (int turn = 0; turn < 2; ++turn)
    expect_equal(run(copies_kernel, 32, 48 * sizeof(float), in), std::vector<int>(32, 1), "copy");
  return {};
}

// Tensor-core products of one warp: a (16, K) and b (8, K) lie row by row in 32 bytes each.
template <Mma kind>
DML_KERNEL(32)
mma_kernel(const unsigned char* a, const unsigned char* b, float* c) {
  DML_SHARED(shared);
  for (int k = thread(); k < 16 * 32; k += kWarp) shared[k] = a[k];
  for (int k = thread(); k < 8 * 32; k += kWarp) shared[16 * 32 + k] = b[k];
  __syncthreads();
  const int lane = lane_index();
  uint32_t left[4], both[4];
  load_matrices(left, shared + lane % 16 * 32 + lane / 16 * 16);
  // The third and fourth matrix are not used; their addresses must be readable.
  load_matrices(both, shared + 16 * 32 + lane % 8 * 32 + lane / 8 % 2 * 16);
  const uint32_t right[2] = {both[0], both[1]};
  const int row = lane / 4, column = lane % 4 * 2;
  float product[4];
  for (int k = 0; k < 4; ++k) product[k] = c[(row + k / 2 * 8) * 8 + column + k % 2];
  mma<kind>(product, left, right);
  for (int k = 0; k < 4; ++k) c[(row + k / 2 * 8) * 8 + column + k % 2] = product[k];
}

template <Mma kind, class E>
void check_mma(const char* name) {
  constexpr int kK = 32 / sizeof(E);
  E a[16][kK], b[8][kK];
  float c[16][8];
  // Small whole numbers, so that every product is exact.
  for (int r = 0; r < 16; ++r)
    for (int k = 0; k < kK; ++k) a[r][k] = static_cast<E>(static_cast<float>((r * 7 + k * 5) % 23 - 11));
  for (int r = 0; r < 8; ++r)
    for (int k = 0; k < kK; ++k) b[r][k] = static_cast<E>(static_cast<float>((r * 3 + k * 11) % 19 - 9) / 4);
  for (int r = 0; r < 16; ++r)
    for (int n = 0; n < 8; ++n) c[r][n] = static_cast<float>(r - n);
  launch(mma_kernel<kind>, dim3(1), 32, (16 + 8) * 32, nullptr, reinterpret_cast<const unsigned char*>(a),
         reinterpret_cast<const unsigned char*>(b), &c[0][0]);
  for (int r = 0; r < 16; ++r)
    for (int n = 0; n < 8; ++n) {
      float wanted = static_cast<float>(r - n);
      for (int k = 0; k < kK; ++k) wanted += static_cast<float>(a[r][k]) * static_cast<float>(b[n][k]);
      expect(c[r][n] == wanted, std::string(name) + " at " + std::to_string(r) + ", " + std::to_string(n) + ": got " +
                                    std::to_string(c[r][n]) + ", wanted " + std::to_string(wanted));
    }
}

DML_CASE(tensor_core_products) {
  check_mma<Mma::tf32, float>("tf32");
  check_mma<Mma::bf16, c10::BFloat16>("bf16");
  check_mma<Mma::fp16, c10::Half>("fp16");
  return {};
}

// Products of 2^-24 beside an accumulator of 1, and of 2^-23.
template <Mma kind, class E>
void check_cut_off(const char* name) {
  constexpr int kK = 32 / sizeof(E);
  E a[16][kK] = {}, b[8][kK] = {};
  float c[16][8];
  for (int r = 0; r < 16; ++r) {
    for (int k = 0; k < kK; ++k) a[r][k] = static_cast<E>(r == 0 ? 0x1p-12f : -0x1p-12f);
  }
  for (int n = 0; n < 8; ++n)
    for (int k = 0; k < kK; ++k) b[n][k] = static_cast<E>(n == 0 ? 0x1p-11f : 0x1p-12f);
  for (int r = 0; r < 16; ++r)
    for (int n = 0; n < 8; ++n) c[r][n] = 1;
  launch(mma_kernel<kind>, dim3(1), 32, (16 + 8) * 32, nullptr, reinterpret_cast<const unsigned char*>(a),
         reinterpret_cast<const unsigned char*>(b), &c[0][0]);
  const std::string what = std::string(name) + " cut off";
  expect(c[0][1] == 1 && c[1][1] == 1, what + ": half a bit of the accumulator is lost, on either side of it");
  expect(c[0][0] == 1 + kK * 0x1p-23f && c[1][0] == 1 - kK * 0x1p-23f, what + ": whole bits are kept");
}

DML_CASE(tensor_cores_cut_off) {
  check_cut_off<Mma::tf32, float>("tf32");
  check_cut_off<Mma::bf16, c10::BFloat16>("bf16");
  check_cut_off<Mma::fp16, c10::Half>("fp16");
  return {};
}

// The walk of all blocks of a grid over the tiles: each pair of tiles once; of a symmetric one each unordered pair.
DML_KERNEL(1) walk_kernel(int* visits, int col_tiles, bool symmetric) {
  const TileWalk walk(col_tiles, symmetric);
  for (int64_t step = walk.begin; step < walk.end; ++step)
    atomicAdd(&visits[walk.row_tile * col_tiles + walk.col_tile(step)], 1);
}

std::vector<int> visits_of_walk(int row_tiles, int col_tiles, int splits, bool symmetric) {
  std::vector<int> visits(row_tiles * col_tiles, 0);
  launch(walk_kernel, dim3(row_tiles, splits), 1, 0, nullptr, visits.data(), col_tiles, symmetric);
  return visits;
}

DML_CASE(walks_over_tiles) {
  for (int tiles = 1; tiles <= 40; ++tiles)
    for (int splits = 1; splits <= 8; ++splits) {
      const std::string what = std::to_string(tiles) + " tiles in " + std::to_string(splits) + " splits";
      expect_equal(visits_of_walk(3, tiles, splits, false), std::vector<int>(3 * tiles, 1), what);
      const std::vector<int> met = visits_of_walk(tiles, tiles, splits, true);
      for (int a = 0; a < tiles; ++a)
        for (int b = 0; b <= a; ++b)
          expect(met[a * tiles + b] + (a == b ? 0 : met[b * tiles + a]) == 1,
                 "symmetric, " + what + ": " + std::to_string(a) + " and " + std::to_string(b));
    }
  return {};
}

// Every 16-bit number is read as the type reads it.
DML_CASE(half_words) {
  const auto same = [](float x, float y) { return x == y || (x != x && y != y); };
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto word = static_cast<uint16_t>(bits);
    const float half = static_cast<float>(__builtin_bit_cast(c10::Half, word));
    const float brain = static_cast<float>(__builtin_bit_cast(c10::BFloat16, word));
    for (int upper = 0; upper < 2; ++upper) {
      const uint32_t both = upper != 0 ? bits << 16 | 0x1234u : bits | 0x43210000u;
      expect(same(half_word(both, upper, false), half), "fp16 " + std::to_string(bits));
      expect(same(half_word(both, upper, true), brain), "bf16 " + std::to_string(bits));
    }
  }
  return {};
}

// TF32 has ten bits of fraction: the nearest, ties away from zero; two such numbers hold a float32 but for its last
// bits.
DML_CASE(tf32_rounding) {
  const auto rounded = [](float x) { return __uint_as_float(round_to_tf32(x)); };
  const float step = 1.0f / 1024;
  expect(rounded(1 + step * 0.4999f) == 1 && rounded(1 + step * 0.5f) == 1 + step, "a tie");
  expect(rounded(-1 - step * 0.5f) == -1 - step, "a negative tie");
  expect(rounded(INFINITY) == INFINITY && rounded(NAN) != rounded(NAN) && rounded(0.0f) == 0, "special numbers");
  for (int k = 1; k < 5000; ++k) {
    const float x = 1.0f / static_cast<float>(k) - 0.01f;
    uint32_t high, low;
    split_tf32(__float_as_uint(x), high, low);
    const float sum = __uint_as_float(high) + __uint_as_float(low);
    expect((high & 0x1fffu) == 0 && (low & 0x1fffu) == 0, "bits that TF32 has not");
    expect(fabsf(sum - x) <= fabsf(x) * 0x1p-22f, "the two parts of " + std::to_string(x));
  }
  return {};
}

}  // namespace
}  // namespace dml
