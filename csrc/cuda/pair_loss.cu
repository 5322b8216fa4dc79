#include "cuda/pair_loss.cuh"
#include "cuda/tile_slots.cuh"

namespace dml {
namespace {

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

  DML_DEVICE RowSums(const SideOf<T>& side, bool running) {
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) sum[k][r] = T(0);
      shift[r] = running ? T(kNoScore) : side.shift;
      count[r] = members[r] = 0;
    }
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
  DML_DEVICE void merge(const RowTotal& other, bool running) {
    const T shift = value[kSums + 2], top = running ? max(shift, other.value[kSums + 2]) : shift;
    const T own = running ? exp2_of(shift - top) : T(1),
            theirs = running ? exp2_of(other.value[kSums + 2] - top) : T(1);
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
      put(which, at % kTile, Total(RowSums<Term, T>(which == 0 ? loss.pos : loss.neg, running), 0));
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
#pragma unroll 1
    for (int w = 0; w < kTile / kWarpCols; ++w) {
      __syncthreads();
      if (warp_index() % (kTile / kWarpCols) != w) continue;
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        Total total(rows, r);
        total.merge_lanes(1, running);
        total.merge_lanes(2, running);
        if (lane_index() % 4 != 0) continue;
        Total sum = get(which, PairTile<P>::row(r));
        sum.merge(total, running);
        put(which, PairTile<P>::row(r), sum);
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

// The pairs of one side in a tile, whose values are in the slots. Plain: all pairs of the tile are of the side.
template <class Term, Product P, bool Plain>
struct SideOfTile {
  using T = typename ProductTypes<P>::Value;
  using Column = ColumnSums<Term, T>;
  const PairBlock<P>& block;
  const PairLoss<T>& loss;
  bool positive;
  SideOf<T> side;
  TileSlots<P> slots;
  int first;  // column of the first slot
  RowSums<Term, T>& rows;
  T bound[kRowSlots];
  int64_t label[kRowSlots];
  bool any = false;

  DML_DEVICE SideOfTile(const PairBlock<P>& block, const PairLoss<T>& loss, bool positive, int first,
                        RowSums<Term, T>& rows)
      : block(block),
        loss(loss),
        positive(positive),
        side(positive ? loss.pos : loss.neg),
        slots{block.shared},
        first(first),
        rows(rows) {
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      const int64_t row = block.row0 + PairTile<P>::row(r);
      const bool bounded = loss.bounds != nullptr && row < block.p.a.count;
      bound[r] = bounded ? loss.bounds[(positive ? 0 : loss.queries) + row] : Summand<Term>::bound(side);
      label[r] = block.facts.rows.label[PairTile<P>::row(r)];
      if constexpr (Plain) rows.members[r] += TileSlots<P>::kColumns;
    }
  }

  DML_DEVICE bool is_member(T v, int r, int64_t of_column) const {
    return Plain || ((label[r] == of_column) == positive && v == v);
  }
  DML_DEVICE int64_t label_of(int c) const { return block.facts.cols.label[PairTile<P>::col(first + c)]; }
  DML_DEVICE void get(int c, T (&v)[kRowSlots]) const {
    slots.get(c, v);
    if (loss.values.value != PairValue::distance) return;
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) v[r] = root_of(v[r]);
  }

  // Before the sums: the maximum of every row, which they are then relative to.
  DML_DEVICE void raise() {
    if constexpr (Summand<Term>::kScored) {
      T top[kRowSlots];
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) top[r] = rows.shift[r];
#pragma unroll 1
      for (int c = 0; c < TileSlots<P>::kColumns; ++c) {
        T v[kRowSlots];
        get(c, v);
        const int64_t of_column = label_of(c);
#pragma unroll
        for (int r = 0; r < kRowSlots; ++r) {
          const bool counts = is_member(v[r], r, of_column) && Summand<Term>::takes_part(side, v[r], bound[r]);
          top[r] = max(top[r], counts ? Summand<Term>::score(side, v[r]) : T(kNoScore));
        }
      }
#pragma unroll
      for (int r = 0; r < kRowSlots; ++r) {
        const T shrink = exp2_of(rows.shift[r] - top[r]);
        rows.shift[r] = top[r];
#pragma unroll
        for (int k = 0; k < RowSums<Term, T>::kSums; ++k)
          if (k != 1) rows.sum[k][r] *= shrink;
      }
    }
  }

  template <bool Mirrored>
  DML_DEVICE Column column(int c) {
    Column sums{};
    if constexpr (Plain) sums.counts = kRowSlots * Column::kMember;
    const int64_t of_column = Plain ? 0 : label_of(c);
    T v[kRowSlots];
    get(c, v);
#pragma unroll
    for (int r = 0; r < kRowSlots; ++r) {
      T added[Column::kSums];
      const bool member = is_member(v[r], r, of_column);
      const bool active = Summand<Term>::add(side, v[r], bound[r], rows.shift[r], added) && member;
      if constexpr (!Plain) {
        rows.members[r] += member;
        sums.counts += member ? Column::kMember : 0;
      }
      rows.count[r] += active;
      sums.counts += active;
#pragma unroll
      for (int k = 0; k < Column::kSums; ++k) {
        const T here = active ? added[k] : T(0);
        rows.sum[k][r] += here;
        if constexpr (Mirrored) sums.sum[k] += here;
      }
    }
    any |= sums.counts % Column::kMember != 0;
    return sums;
  }

  DML_DEVICE void add_rows() {
    if (loss.running) raise();
#pragma unroll 1
    for (int c = 0; c < TileSlots<P>::kColumns; ++c) column<false>(c);
  }

  // The tile stands for its mirror image too: the columns of a warp, one a lane, are added to the rows that they
  // mirror.
  DML_DEVICE void add_both(T* to, int64_t stride) {
    const int lane = lane_index();
    Column own{};
#pragma unroll 1
    for (int c = 0; c < kColSlots / 2; ++c) {
      Column sums = Column::merge(column<true>(c), column<true>(c + kColSlots / 2), 16);
      sums.add_lanes(4);
      sums.add_lanes(8);
      if (lane / 4 % 4 == c) own = sums;
    }
    const int64_t row = block.col0 + PairTile<P>::first_col() + lane / 16 * (kColSlots / 2) + lane / 4 % 4;
    if (row >= block.p.b.count) return;
    const int count = own.counts % Column::kMember, members = own.counts / Column::kMember;
    atomicAdd(to + 2 * stride + row, static_cast<T>(members));
    if (count == 0) return;
    atomicAdd(to + row, own.sum[0]);
    atomicAdd(to + stride + row, own.sum[1]);
    atomicAdd(to + 3 * stride + row, Summand<Term>::kScored ? static_cast<T>(count) : own.sum[2]);
    if constexpr (std::is_same_v<Term, MomentTerm>) atomicAdd(to + 4 * stride + row, own.sum[2]);
  }
};

// A block takes the pairs of a row tile with a share of the column tiles; symmetric, each unordered pair of tiles once.
template <class Term, Product P>
DML_KERNEL(kThreads, 1)
statistics_kernel(PairProblem<P> p, PairLoss<typename ProductTypes<P>::Value> loss,
                  RowPartials<typename ProductTypes<P>::Value> out, unsigned char* active) {
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  const int64_t col_tiles = (p.b.count + kTile - 1) / kTile;
  const TileWalk walk(col_tiles, out.symmetric);
  PairBlock<P> block(p, shared, walk.row_tile);
  const PairValues<P> values{block, loss.values};
  const BlockSums<Term, P> sums(shared + kPairShared<P>, loss);
  RowSums<Term, T> of_plain(loss.neg, loss.running);
#pragma unroll 1
  for (int64_t step = walk.begin; step < walk.end; ++step) {
    const int64_t col_tile = walk.col_tile(step);
    const TileContents contents = tile_contents(p, walk.row_tile, col_tile);
    const bool plain = contents.plain && !loss.values.apart;
    unsigned char flags = 0;
    if (loss.meets(contents)) {
      if (values.compute(col_tile, plain, out.symmetric && col_tile == walk.row_tile, false)) flags |= kNearPairs;
      bool any = false;
      const auto add = [&](auto side) {
        if (sizeof(T) == 4 && out.symmetric)
          side.add_both(out.values + (side.positive ? 0 : out.values_of_side * out.rows), out.rows);
        else
          side.add_rows();
        any |= side.any;
      };
#pragma unroll 1
      for (int first = 0; first < kColSlots; first += TileSlots<P>::kColumns) {
        TileSlots<P>{shared}.put_tile(block.tile, first);
        if (plain) {
          add(SideOfTile<Term, P, true>(block, loss, false, first, of_plain));
          continue;
        }
#pragma unroll 1
        for (int which = contents.positives && loss.pos.present ? 0 : 1;
             which < (contents.negatives && loss.neg.present ? 2 : 1); ++which) {
          RowSums<Term, T> rows(which == 0 ? loss.pos : loss.neg, loss.running);
          add(SideOfTile<Term, P, false>(block, loss, which == 0, first, rows));
          sums.add(which, rows);
        }
      }
      if (__syncthreads_or(any) != 0) flags |= kActive;
    }
    if (threadIdx.x != 0) continue;
    const auto mark = [&](int64_t at) { active[at] = flags | (out.beside ? active[at] : 0); };
    mark(walk.row_tile * col_tiles + col_tile);
    if (out.symmetric && col_tile != walk.row_tile) mark(col_tile * col_tiles + walk.row_tile);
  }
  sums.add(1, of_plain);
  __syncthreads();
  if (out.of_pos) sums.write(0, out, block.row0);
  if (out.of_neg) sums.write(1, out, block.row0);
}

// One thread a row: the sums of its splits, in their order.
template <class T>
DML_KERNEL(kThreads)
finish_kernel(PairLossProblem problem, PairLossRows<T> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= p.count) return;
  const RowState state = p.state[row];
  const bool bad = state == RowState::non_finite || (state == RowState::kept && *p.gallery_non_finite != 0);
  const int64_t step = p.splits * p.count, to = p.order == nullptr ? row : p.order[row];
  const bool has_moment = problem.has_moment();
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const PairSide& side = k == 0 ? problem.pos : problem.neg;
    const double shift = k == 0 ? problem.pos_shift : problem.neg_shift;
    const T* const first = p.sums + k * pair_sums(problem) * step + row;
    LogSumExp scores;
    double sums[4] = {};
    for (int64_t split = 0; split < p.splits; ++split) {
      const T* const at = first + split * p.count;
      for (int value = 0; value < 4; ++value) sums[value] += at[value * step];
      scores.add(at[0], problem.running ? static_cast<double>(at[(4 + has_moment) * step]) * kLn2 : shift,
                 has_moment ? static_cast<double>(at[4 * step]) : 0);
    }
    const bool moment = side.term == PairTerm::moment;
    const double stat = moment ? scores.mean() : side.term == PairTerm::exp ? scores.log_sum() : sums[0];
    const int64_t at = k * p.count + to;
    p.stats[at] = bad ? not_a_number<T>() : static_cast<T>(stat);
    p.log_sums[at] = bad ? not_a_number<T>() : static_cast<T>(moment ? scores.log_sum() : -INFINITY);
    p.totals[at] = bad ? not_a_number<T>() : static_cast<T>(sums[1]);
    p.members[at] = bad ? T(0) : static_cast<T>(sums[2]);
    p.slopes[at] = bad ? T(0) : static_cast<T>(sums[3]);
  }
}

}  // namespace

template <class T>
void pair_loss_statistics(Precision precision, const PairSides<T>& sides, const PairLossProblem& problem,
                          const T* bounds, bool symmetric, int64_t splits, T* sums, unsigned char* active,
                          Stream stream) {
  const dim3 grid(blocks_for(sides.a.count, kTile), static_cast<unsigned>(splits));
  RowPartials<T> out{sums, sides.a.count, splits, pair_sums(problem), symmetric, problem.has_moment(),
                     true, true,          false};
  with_product<T>(precision, [&](auto product) {
    constexpr Product P = decltype(product)::value;
    const auto run = [&](const PairLossProblem& of_sides) {
      with_term(of_sides.term(), [&](auto term) {
        using Term = decltype(term);
        launch(statistics_kernel<Term, P>, grid, kThreads, kPairShared<P> + BlockSums<Term, P>::kBytes, stream,
               make_problem<P>(sides), PairLoss<T>(of_sides, bounds, sides.a.count), out, active);
      });
    };
    if (!problem.mixed()) return run(problem);
    out.of_neg = false;
    run(problem.only(true));
    out.of_neg = out.beside = true;
    out.of_pos = false;
    run(problem.only(false));
  });
}

template <class T>
void pair_loss_finish(const PairLossProblem& problem, const PairLossRows<T>& rows, Stream stream) {
  launch(finish_kernel<T>, dim3(blocks_for(rows.count, kThreads)), kThreads, 0, stream, problem, rows);
}

#define DML_INSTANTIATE(T)                                                                                      \
  template void pair_loss_statistics<T>(Precision, const PairSides<T>&, const PairLossProblem&, const T*, bool, \
                                        int64_t, T*, unsigned char*, Stream);                                   \
  template void pair_loss_finish<T>(const PairLossProblem&, const PairLossRows<T>&, Stream);
DML_INSTANTIATE(float)
DML_INSTANTIATE(double)
#undef DML_INSTANTIATE

}  // namespace dml
