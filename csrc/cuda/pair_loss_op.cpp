#include "cuda/pair_loss.h"

#include "common/pair_loss_arguments.h"
#include "cuda/pair_launcher.h"

namespace dml {
namespace {

// Below kSymmetricRows, the symmetric schedule has too few tiles for a large device; above, it halves the products.
// Rows that are in the order of their labels have few tiles with pairs of both sides; of fewer than kSortedRows, or of
// a gallery longer than kLongGallery, putting them in order would take longer.
#if defined(DML_CUDA_HOST)
constexpr int64_t kSymmetricRows = kTile + 1, kSortedRows = 2 * kTile;  // so that tests of few rows see both
#else
constexpr int64_t kSymmetricRows = 4096, kSortedRows = 2048;
#endif
constexpr int64_t kLongGallery = 262144;

PairLossProblem make_problem(const PairLossOptions& o, const PairArguments& a) {
  const auto shift = [&](const PairSide& side) { return score_shift(side, o.value, a.normalize, a.gallery()); };
  const ScoreShift pos = shift(o.pos), neg = shift(o.neg);
  // What kernels subtract is known exactly.
  const auto rounded = [](double of) { return static_cast<double>(static_cast<float>(of * kLog2E)) / kLog2E; };
  return PairLossProblem{o.value,       o.pos,   o.neg,        rounded(pos.shift),         rounded(neg.shift),
                         o.weight_grad, o.apart, o.neg_totals, pos.running || neg.running, a.normalize};
}

// Without negatives, tiles of rows in order meet few others at any size.
bool in_order(const PairLossOptions& o, const PairArguments& a) {
  return !o.neg.present() || (a.queries() >= kSortedRows && a.gallery() <= kLongGallery);
}

// A label outside the classes makes every statistic and gradient NaN: nobody waits for the device to say so.
template <class T>
void check_classes(std::optional<int64_t> classes, const PairArguments& a, const PairsOnDevice<T>& pairs,
                   Stream stream) {
  if (!classes) return;
  const auto check = [&](const Tensor& labels, const RowsOnDevice<T>& rows) {
    check_class_labels(data<int64_t>(labels), labels.size(0), *classes, rows.states(), pairs.gallery().flag(), stream);
  };
  check(a.labels, pairs.queries);
  if (a.ref_labels) check(*a.ref_labels, *pairs.own_gallery);
}

// The rows in the order of their labels, if sorted.
struct OrderedPairs {
  std::optional<Tensor> order, ref_order;  // the caller's row of each; ref_order is the queries' in self mode
  PairArguments a;
  std::optional<Tensor> bounds;

  OrderedPairs(const PairArguments& arguments, const std::optional<Tensor>& of_queries, bool sorted) : a(arguments) {
    bounds = of_queries;
    if (!sorted) return;
    const auto put_in_order = [](Tensor& x, Tensor& labels, std::optional<Tensor>& ids) {
      const auto [values, order] = stable_sort(labels);
      x = index_select(x, 0, order);
      labels = values;
      if (ids) ids = index_select(*ids, 0, order);
      return order;
    };
    order = put_in_order(a.embeddings, a.labels, a.ids);
    ref_order = a.self() ? order : put_in_order(*a.ref_emb, *a.ref_labels, a.ref_ids);
    if (bounds) bounds = of_query(*bounds);
  }
  // (2, M) in this order.
  Tensor of_query(const Tensor& x) const { return order ? index_select(x, 1, *order) : x; }
};

template <class T>
Statistics forward_as(const operators::pair_loss_fwd& t) {
  const OnDevice device(t.embeddings);
  const PairArguments given(t);
  const PairLossOptions o(t);
  const PairLossProblem problem = make_problem(o, given);
  const OrderedPairs ordered(given, as_contiguous(t.bounds), in_order(o, given));
  const PairArguments& a = ordered.a;
  const int64_t m = a.queries(), n = a.gallery();
  const ScalarType type = compute_type(a.embeddings);
  const PairsOnDevice<T> pairs(a, t.precision, device.stream);
  if (t.check_finite) check_all_finite(a.op, pairs);
  check_classes(t.classes, a, pairs, device.stream);
  const int64_t row_tiles = tiles_of(m), col_tiles = tiles_of(n);
  // Rows of a mirrored tile are added by atomics, in no fixed order; running maxima cannot be; and both ends of a pair
  // must add the same. float64 is there to check the others.
  const bool symmetric =
      sizeof(T) == 4 && a.self() && !t.deterministic && !problem.running && !ordered.bounds && m >= kSymmetricRows;
  const int64_t splits = column_splits(row_tiles, symmetric ? col_tiles / 2 : col_tiles);
  const int64_t copies = symmetric ? 1 : splits;
  const Tensor sums = (symmetric ? zeros : empty)(a.embeddings, {2, pair_sums(problem), copies, m}, type);
  const Tensor active = empty(a.embeddings, {row_tiles, col_tiles}, ScalarType::Byte);
  const auto by_row = [&] { return empty(a.embeddings, {2, m}, type); };
  const Tensor stats = by_row(), log_sums = by_row(), totals = by_row(), members = by_row(), slopes = by_row();
  pair_loss_statistics<T>(pairs.precision, pairs.sides, problem, data<T>(ordered.bounds), symmetric, splits,
                          data<T>(sums), data<unsigned char>(active), device.stream);
  pair_loss_finish<T>(problem,
                      PairLossRows<T>{data<T>(sums), copies, m, data<int64_t>(ordered.order), pairs.queries.states(),
                                      pairs.gallery().flag(), data<T>(stats), data<T>(log_sums), data<T>(totals),
                                      data<T>(members), data<T>(slopes)},
                      device.stream);
  return {stats, log_sums, totals, members, slopes, active};
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const operators::pair_loss_bwd& t) {
  const OnDevice device(t.embeddings);
  const PairArguments given(t);
  const PairLossOptions o(t);
  const PairLossProblem problem = make_problem(o, given);
  const OrderedPairs ordered(given, as_contiguous(t.bounds), in_order(o, given));
  const PairArguments& a = ordered.a;
  const PairLossState state(t);
  const PairsOnDevice<T> pairs(a, t.precision, device.stream);
  check_classes(t.classes, a, pairs, device.stream);
  const Tensor grad_stats = ordered.of_query(state.grad_stats), grad_log_sums = ordered.of_query(state.grad_log_sums),
               grad_sums = ordered.of_query(state.grad_sums), stats = ordered.of_query(state.stats),
               log_sums = ordered.of_query(state.log_sums);
  const int64_t col_tiles = state.active.size(1), padded = tiles_of(a.queries()) * kTile;
  const Tensor factors = empty(a.embeddings, {2, kPairFactors, padded}, compute_type(a.embeddings));
  pair_loss_factors<T>(problem, a.queries(), padded,
                       PairLossGradients<T>{data<T>(grad_stats), data<T>(grad_log_sums), data<T>(grad_sums),
                                            data<T>(stats), data<T>(log_sums)},
                       data<T>(factors), device.stream);
  const bool pulls = problem.value != PairValue::similarity;
  const auto gradient = [&](const PairSides<T>& sides, const RowsOnDevice<T>& rows, const RowsOnDevice<T>& others,
                            PairEnds ends, int64_t row_stride, int64_t col_stride, const std::optional<Tensor>& order) {
    const ActiveTiles active{data<unsigned char>(state.active), row_stride, col_stride, ends.row && ends.col};
    const Tensor grad = empty(rows.x, {rows.x.size(0), rows.x.size(1)}, rows.x.scalar_type());
    write_pair_gradient<T>(
        pairs.precision, rows, others, T(pulls ? -1 : 1), pulls, a.normalize, pairs.gallery().flag(), active,
        data<int64_t>(order), device.stream, grad, [&](const Stripe& stripe, int64_t splits, T* weight_sums) {
          const auto write = [&](const PairLossProblem& of_sides, bool adds) {
            Stripe to = stripe;
            to.adds = adds;
            pair_loss_weights<T>(pairs.precision, sides, of_sides, ends, data<T>(factors), padded,
                                 data<T>(ordered.bounds), a.queries(), to, splits, weight_sums, device.stream);
          };
          if (!problem.mixed()) return write(problem, false);
          write(problem.only(true), false);
          write(problem.only(false), true);
        });
    return grad;
  };
  const Tensor grad_emb = gradient(pairs.sides, pairs.queries, pairs.gallery(), PairEnds{true, a.self() && o.both_ends},
                                   col_tiles, 1, ordered.order);
  if (!t.need_grad_ref) return {grad_emb, empty(a.embeddings, {0, a.embeddings.size(1)}, a.embeddings.scalar_type())};
  if (!o.both_ends)
    return {grad_emb, zeros(a.embeddings, {a.gallery(), a.embeddings.size(1)}, a.embeddings.scalar_type())};
  const Tensor grad_ref = gradient(swapped(pairs.sides), *pairs.own_gallery, pairs.queries, PairEnds{false, true}, 1,
                                   col_tiles, ordered.ref_order);
  return {grad_emb, grad_ref};
}

Statistics pair_loss_fwd(const operators::pair_loss_fwd& t) {
  return in_compute_type(t.embeddings, [&]<class T>() { return forward_as<T>(t); });
}

std::tuple<Tensor, Tensor> pair_loss_bwd(const operators::pair_loss_bwd& t) {
  return in_compute_type(t.embeddings, [&]<class T>() { return backward_as<T>(t); });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("pair_loss_fwd", dml::boxed<&dml::pair_loss_fwd>);
  m.impl("pair_loss_bwd", dml::boxed<&dml::pair_loss_bwd>);
}
