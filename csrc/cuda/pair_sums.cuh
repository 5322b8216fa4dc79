#pragma once
// Sums of pairs over the threads, warps and tiles of a block: of its rows, and of the columns that they meet.

#include "cuda/pair_loss.cuh"

namespace dml {

// Where the statistics of rows go: values[(k * splits + split) * rows + row], or added to one copy if symmetric.
template <class T>
struct RowPartials {
  T* values;
  int64_t rows, splits, values_of_side;
  bool symmetric, has_moment;
  bool of_pos, of_neg;  // which sides are written
  bool beside;          // tiles that are active already stay so
};

// What a thread adds up of one side of each of its rows.
template <class Term, class T>
struct RowSums {
  static constexpr int kSums = Summand<Term>::kSums, kValues = kSums + 3;
  T sum[kSums][kRowSlots], shift[kRowSlots];
  int count[kRowSlots], members[kRowSlots];

  DML_DEVICE explicit RowSums(T start) {
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) sum[k][r] = T(0);
      shift[r] = start;
      count[r] = members[r] = 0;
    }
  }
  // Of plain tiles, which all rows have the same of.
  DML_DEVICE void of_plain(T of_scores, int pairs) {
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) shift[r] = of_scores, members[r] = pairs;
  }
};

// The sums of one side of a row: its sums, how many pairs take part, how many there are, and what its scores are less.
template <class Term, class T>
struct RowTotal {
  static constexpr int kSums = Summand<Term>::kSums, kValues = kSums + 3;
  T value[kValues];

  DML_DEVICE RowTotal() = default;
  DML_DEVICE RowTotal(const RowSums<Term, T>& rows, int r) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) value[k] = rows.sum[k][r];
    value[kSums] = static_cast<T>(rows.count[r]);
    value[kSums + 1] = static_cast<T>(rows.members[r]);
    value[kSums + 2] = rows.shift[r];
  }
  DML_DEVICE void merge(const RowTotal& other, bool of_running) {
    const bool running = Summand<Term>::kScored && of_running;
    const T shift = value[kSums + 2], top = running ? max(shift, other.value[kSums + 2]) : shift;
    const T own = running ? exp(shift - top) : T(1), theirs = running ? exp(other.value[kSums + 2] - top) : T(1);
#pragma unroll
    for (int k = 0; k < kSums + 2; ++k) {
      const bool relative = Summand<Term>::kScored && k < kSums && k != 1;
      value[k] = relative ? value[k] * own + other.value[k] * theirs : value[k] + other.value[k];
    }
    value[kSums + 2] = top;
  }
  DML_DEVICE void merge_lanes(int bit, bool running) {
    RowTotal other;
#pragma unroll
    for (int k = 0; k < kValues; ++k) other.value[k] = __shfl_xor_sync(kAllLanes, value[k], bit);
    merge(other, running);
  }
};

// The sums of both sides of a block's rows, in shared memory.
template <class Term, Product P>
struct BlockSums {
  using T = typename ProductTypes<P>::Value;
  using Total = RowTotal<Term, T>;
  static constexpr int kBytes = 2 * Total::kValues * kTile * sizeof(T);
  T (*values)[Total::kValues][kTile];
  bool running;

  DML_DEVICE BlockSums(unsigned char* shared, const PairLoss<T>& loss)
      : values(reinterpret_cast<T (*)[Total::kValues][kTile]>(shared)), running(loss.running) {
    for (int at = static_cast<int>(threadIdx.x); at < 2 * kTile; at += kThreads) {
      const int which = at / kTile;
      put(which, at % kTile, Total(RowSums<Term, T>(loss.first_shift(which == 0)), 0));
    }
  }
  DML_DEVICE Total get(int which, int row) const {
    Total total;
#pragma unroll
    for (int k = 0; k < Total::kValues; ++k) total.value[k] = values[which][k][row];
    return total;
  }
  DML_DEVICE void put(int which, int row, const Total& total) const {
#pragma unroll
    for (int k = 0; k < Total::kValues; ++k) values[which][k][row] = total.value[k];
  }
  // Every thread calls this; the warps that share rows add theirs one after another.
  DML_DEVICE void add(int which, const RowSums<Term, T>& rows) const {
    // Of a thread's eight rows, a quarter of the lanes has two each in the end.
    Total own[2];
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      Total total(rows, r);
      total.merge_lanes(1, running);
      total.merge_lanes(2, running);
      if (lane_index() % 4 == r / 2) own[r % 2] = total;
    }
#pragma unroll 1
    for (int w = 0; w < kTile / kWarpCols; ++w) {
      __syncthreads();
      if (warp_index() % (kTile / kWarpCols) != w) continue;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int row = PairTile<P>::row(lane_index() % 4 * 2 + k);
        Total sum = get(which, row);
        sum.merge(own[k], running);
        put(which, row, sum);
      }
    }
  }
  // Of one side, as pair_sums has them; after a barrier.
  DML_DEVICE void write(int which, const RowPartials<T>& out, int64_t row0) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= kTile || row0 + thread >= out.rows) return;
    const auto store = [&](int k, T value) {
      const int64_t at = which * out.values_of_side + k, row = row0 + thread;
      if (out.symmetric)
        atomicAdd(&out.values[at * out.rows + row], value);
      else
        out.values[(at * out.splits + blockIdx.y) * out.rows + row] = value;
    };
    const Total total = get(which, thread);
    constexpr int kSums = Total::kSums;
    store(0, total.value[0]);
    store(1, total.value[1]);
    store(2, total.value[kSums + 1]);
    store(3, Summand<Term>::kScored ? total.value[kSums] : total.value[2]);
    if (out.has_moment) store(4, std::is_same_v<Term, MomentTerm> ? total.value[2] : T(0));
    if (running) store(4 + out.has_moment, total.value[kSums + 2]);
  }
};

// What a thread adds up of one side of a column: of its rows, then of more and more lanes.
template <class Term, class T>
struct ColumnSums {
  static constexpr int kSums = Summand<Term>::kSums;
  static constexpr int kMember = 1 << 16;  // counts: the pairs that take part, and the members in the upper half
  T sum[kSums];
  int counts;

  // A lane keeps one of two columns, which one the bit says, and adds the other half of it.
  DML_DEVICE static ColumnSums merge(const ColumnSums& a, const ColumnSums& b, int bit) {
    const bool upper = (lane_index() & bit) != 0;
    const auto pick = [&](auto one, auto other) {
      return (upper ? other : one) + __shfl_xor_sync(kAllLanes, upper ? one : other, bit);
    };
    ColumnSums merged;
#pragma unroll
    for (int k = 0; k < kSums; ++k) merged.sum[k] = pick(a.sum[k], b.sum[k]);
    merged.counts = pick(a.counts, b.counts);
    return merged;
  }
  DML_DEVICE void add_lanes(int bit) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) sum[k] += __shfl_xor_sync(kAllLanes, sum[k], bit);
    counts += __shfl_xor_sync(kAllLanes, counts, bit);
  }
};

}  // namespace dml
