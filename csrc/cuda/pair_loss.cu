#include "cuda/plain_tile.cuh"
#include "cuda/slot_tile.cuh"

namespace dml {
namespace {

// A block takes the pairs of a row tile with a share of the column tiles; symmetric, each unordered pair of tiles once.
template <Product P, class Term>
DML_KERNEL(kThreads, 1)
statistics_kernel(PairProblem<P> p, PairLoss<typename ProductTypes<P>::Value> loss,
                  RowPartials<typename ProductTypes<P>::Value> out, unsigned char* active) {
  using T = typename ProductTypes<P>::Value;
  DML_SHARED(shared);
  const TileWalk walk((p.b.count + kTile - 1) / kTile, out.symmetric);
  PairBlock<P> block(p, shared, walk.row_tile);
  const PairValues<P> values{block, loss.values};
  const BlockSums<Term, P> sums(shared + kPairShared<P>, loss);
  unsigned char* const ahead = shared + kPairShared<P> + BlockSums<Term, P>::kBytes;
  // Of negatives while tiles are plain: the sums stay in the registers, and are put away before those of another tile.
  // Three products, and float64, leave no registers for them.
  constexpr bool kStay = P != Product::tf32x3 && P != Product::simt;
  // Of three products the forward unrolls the moment alone: others would spill on sm_100 and sm_120.
  constexpr bool kUnroll = kUnrolled<Term, P> && (P != Product::tf32x3 || Summand<Term>::kMoment);
  RowSums<Term, T> rows(T(0));
  int plain_pairs = 0;  // of each row, that a thread has seen
  const auto put_away = [&](int which) {
    sums.add(which, rows);
    rows = RowSums<Term, T>(T(0));
    plain_pairs = 0;
  };
  const auto put_away_plain = [&] {
    if (plain_pairs == 0) return;
    rows.of_plain(loss.neg.shift, plain_pairs);
    put_away(1);
  };
  const auto look = [&](int tile) { return tile_contents(p, walk.row_tile, tile); };
  walk.template begin_with<kLooksAhead<P>>(ahead, look);
#pragma unroll 1
  for (int step = walk.begin; step < walk.end; ++step) {
    const int col_tile = walk.col_tile(step);
    const unsigned char contents = walk.template known<kLooksAhead<P>>(step, ahead, look);
    bool plain = (contents & kPlain) != 0 && loss.is_plain();
    unsigned char flags = 0;
    if (loss.meets(contents)) {
      const bool upper = out.symmetric && col_tile == walk.row_tile;
      if (values.compute(col_tile, plain, (contents & kUnit) != 0, upper, false)) flags |= kNearPairs;
      bool any = false;
      const auto add = [&](auto side) {
        if (sizeof(T) == 4 && out.symmetric)
          side.add_both(out.values + (side.positive ? 0 : out.values_of_side * out.rows), out.rows);
        else
          side.add_rows();
        any |= side.any;
      };
      const bool unrolled = kUnroll && plain && loss.is_short();
      if constexpr (kUnroll) {
        if (unrolled) {
          if (!kStay) rows = RowSums<Term, T>(T(0));
          const PlainTile<P, Term> tile{block, loss.neg};
          if (loss.values.value == PairValue::distance) tile.take_roots();
          T* const to = out.values + out.values_of_side * out.rows;
          any = out.symmetric ? tile.template add<true>(rows, to, out.rows)
                              : tile.template add<false>(rows, to, out.rows);
          plain_pairs += kColSlots;
          if (!kStay) put_away_plain();
        }
      }
#pragma unroll 1
      for (int first = unrolled ? kColSlots : 0; first < kColSlots; first += TileSlots<P>::kColumns) {
        if (TileSlots<P>::kColumns < kColSlots || plain) TileSlots<P>{shared}.put_tile(block.tile, first);
        if (plain) {
          if (!kStay) rows = RowSums<Term, T>(T(0));
          plain_pairs += TileSlots<P>::kColumns;
          add(SideOfTile<Term, P, true>(block, loss, false, first, rows));
          if (!kStay) put_away_plain();
          continue;
        }
        put_away_plain();
#pragma unroll 1
        for (int which = 0; which < 2; ++which) {
          const bool positive = which == 0;
          if (!loss.meets(contents & (positive ? kPositives : kNegatives))) continue;
          rows = RowSums<Term, T>(loss.first_shift(positive));
          add(SideOfTile<Term, P, false>(block, loss, positive, first, rows));
          put_away(which);
        }
      }
      flags = __syncthreads_or(any) != 0 ? flags | kActive : 0;  // of near pairs nobody asks where none is active
    }
    if (threadIdx.x != 0) continue;
    const auto mark = [&](int64_t at) { active[at] = flags | (out.beside ? active[at] : 0); };
    mark(static_cast<int64_t>(walk.row_tile) * walk.tiles + col_tile);
    if (out.symmetric && col_tile != walk.row_tile) mark(static_cast<int64_t>(col_tile) * walk.tiles + walk.row_tile);
  }
  put_away_plain();
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
      scores.add(at[0], problem.running ? static_cast<double>(at[(4 + has_moment) * step]) : shift,
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
        launch(statistics_kernel<P, Term>, grid, kThreads, kPairShared<P> + BlockSums<Term, P>::kBytes + kThreads,
               stream, make_problem<P>(sides), PairLoss<T>(of_sides, of_sides.running, bounds, sides.a.count), out,
               active);
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
