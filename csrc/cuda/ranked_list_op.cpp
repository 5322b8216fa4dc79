#include <tuple>

#include "common/ranked_list_operator.h"
#include "cuda/nearest_positive_launcher.h"
#include "cuda/pair_launcher.h"
#include "cuda/ranked_list.h"

namespace dml {
namespace {

// Below this, the symmetric schedule has too few tiles for a large device; above, it halves the products.
#if defined(DML_CUDA_HOST)
constexpr int64_t kSymmetricRows = kTile + 1;  // so that tests of few rows see both
#else
constexpr int64_t kSymmetricRows = 4096;
#endif

RankedListProblem make_problem(const RankedListOptions& o, bool normalize, int64_t gallery) {
  return RankedListProblem{make_ranked_set(true, o.alpha - o.margin, o.pos_temperature, o.weight_grad),
                           make_ranked_set(false, o.alpha, o.neg_temperature, o.weight_grad),
                           o.pos_weight,
                           o.neg_weight,
                           o.epsilon(),
                           o.easy(),
                           o.apart(),
                           needs_running_maximum(o, normalize, gallery),
                           normalize};
}

// With the chosen positives of the queries; in self mode those of the columns are the same.
template <class T>
PairSides<T> with_easy(const PairsOnDevice<T>& pairs, const Tensor& easy_index, bool self) {
  PairSides<T> sides = pairs.sides;
  if (easy_index.size(0) == 0) return sides;
  sides.a.facts.easy = data<int64_t>(easy_index);
  if (self) sides.b.facts.easy = sides.a.facts.easy;
  return sides;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_as(const PairArguments& a, const RankedListOptions& o,
                                                              const std::string& precision, bool deterministic,
                                                              bool check) {
  const OnDevice device(a.embeddings);
  const int64_t m = a.queries(), n = a.gallery();
  const ScalarType type = compute_type(a.embeddings);
  const PairsOnDevice<T> pairs(a, precision, device.stream);
  if (check) check_all_finite(a.op, pairs);
  const RankedListProblem problem = make_problem(o, a.normalize, n);
  const int64_t row_tiles = (m + kTile - 1) / kTile, col_tiles = (n + kTile - 1) / kTile;
  // Rows of a mirrored tile are added by atomics, in no fixed order; and running maxima cannot be.
  const bool symmetric = a.self() && !deterministic && !problem.running && m >= kSymmetricRows;
  const int64_t splits = column_splits(row_tiles, symmetric ? col_tiles / 2 : col_tiles);
  const int64_t copies = symmetric ? 1 : splits, blocks = row_tiles * splits;

  Tensor easy_index = empty(a.embeddings, {o.easy() ? m : 0}, ScalarType::Long);
  if (o.easy()) choose_positives<T>(a, pairs, false, nullptr, data<int64_t>(easy_index), device.stream);
  const Tensor sums = (symmetric ? zeros : empty)(a.embeddings, {kRankedSums, copies, m}, type);
  const Tensor block_totals = empty(a.embeddings, {blocks, kRankedTotals}, type);
  const Tensor active = empty(a.embeddings, {row_tiles, col_tiles}, ScalarType::Byte);
  const Tensor loss = empty(a.embeddings, {m}, type), row_stats = empty(a.embeddings, {kRowStats, m}, type);
  const Tensor totals = empty(a.embeddings, {kRankedTotals}, type);
  ranked_list_statistics<T>(pairs.precision, with_easy(pairs, easy_index, a.self()), problem, a.self(), symmetric,
                            splits, data<T>(sums), data<unsigned char>(active), data<T>(block_totals), device.stream);
  ranked_list_finish<T>(
      problem,
      RankedListRows<T>{data<T>(sums), copies, m, data<T>(block_totals), blocks, pairs.queries.states(),
                        pairs.gallery().flags(), data<T>(loss), data<T>(row_stats), data<T>(totals)},
      device.stream);
  return {loss, row_stats, totals, easy_index, active};
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const PairArguments& a, const RankedListOptions& o, const Tensor& grad_loss,
                                       const Tensor& row_stats, const Tensor& easy_index, const Tensor& active,
                                       const std::string& precision, bool need_grad_ref) {
  const OnDevice device(a.embeddings);
  const int64_t m = a.queries(), col_tiles = active.size(1);
  const PairsOnDevice<T> pairs(a, precision, device.stream);
  const RankedListProblem problem = make_problem(o, a.normalize, a.gallery());
  const PairSides<T> sides = with_easy(pairs, easy_index, a.self());
  const Tensor factors = empty(a.embeddings, {kRankedFactors, m}, compute_type(a.embeddings));
  ranked_list_factors<T>(problem, m, data<T>(grad_loss), data<T>(row_stats), data<T>(factors), device.stream);
  const bool full = o.grad == "full";
  const auto gradient = [&](const PairSides<T>& s, const RowsOnDevice<T>& rows, const RowsOnDevice<T>& others,
                            RankedListEnds ends, int64_t row_stride, int64_t col_stride) {
    return pair_gradient<T>(pairs.precision, rows, others, T(-1), true, a.normalize, pairs.gallery().flag(),
                            data<unsigned char>(active), row_stride, col_stride, device.stream,
                            [&](const Stripe& stripe, int64_t splits, T* weight_sums) {
                              ranked_list_weights<T>(pairs.precision, s, problem, ends, data<T>(factors), m, stripe,
                                                     splits, weight_sums, device.stream);
                            });
  };
  const Tensor grad_emb =
      gradient(sides, pairs.queries, pairs.gallery(), RankedListEnds{true, full && a.self()}, col_tiles, 1);
  if (!need_grad_ref) return {grad_emb, empty(a.embeddings, {0, a.embeddings.size(1)}, a.embeddings.scalar_type())};
  // Gallery rows get what the queries send them; with grad="query" that is nothing.
  return {grad_emb,
          gradient(swapped(sides), *pairs.own_gallery, pairs.queries, RankedListEnds{false, full}, 1, col_tiles)};
}

struct RankedListOnCuda {
  template <class T>
  static auto forward(const PairArguments& a, const RankedListOptions& o, const std::string& precision,
                      bool deterministic, bool check) {
    return forward_as<T>(a, o, precision, deterministic, check);
  }
  template <class T>
  static auto backward(const PairArguments& a, const RankedListOptions& o, const Tensor& grad_loss,
                       const Tensor& row_stats, const Tensor& easy_index, const Tensor& active,
                       const std::string& precision, bool need_grad_ref) {
    return backward_as<T>(a, o, grad_loss, row_stats, easy_index, active, precision, need_grad_ref);
  }
};

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("ranked_list_fwd", TORCH_BOX(&dml::ranked_list_fwd<dml::RankedListOnCuda>));
  m.impl("ranked_list_bwd", TORCH_BOX(&dml::ranked_list_bwd<dml::RankedListOnCuda>));
}
