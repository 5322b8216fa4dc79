#include <tuple>

#include "common/triplet_arguments.h"
#include "cuda/pair_launcher.h"
#include "cuda/triplet.h"

namespace dml {
namespace {

// Largest of the arrays by pairs of a stripe, of which there are four at most.
#if defined(DML_CUDA_HOST)
constexpr int64_t kTripletBytes = 1;  // one tile of anchors, so that tests of few rows see several stripes
#else
constexpr int64_t kTripletBytes = int64_t{32} << 20;
#endif

// Both sides, and the gallery in the order of its labels.
template <class T>
struct TripletPairs {
  PairsOnDevice<T> pairs;
  Tensor sorted_labels, order, distances;
  TripletProblem problem;
  int64_t anchors, gallery, padded, stripe_rows;
  Stream stream;

  TripletPairs(const PairArguments& a, const TripletOptions& o, const std::string& precision, bool check,
               const Tensor& active, Stream stream)
      : pairs(a, precision, stream), anchors(a.queries()), gallery(a.gallery()), stream(stream) {
    if (check) check_all_finite(a.op, pairs);
    const auto sorted = stable_sort(a.self() ? a.labels : *a.ref_labels);
    sorted_labels = sorted[0];
    order = sorted[1];
    padded = (gallery + kTile - 1) / kTile * kTile;
    const int64_t fit = kTripletBytes / (std::max<int64_t>(padded, 1) * static_cast<int64_t>(sizeof(T))) / kTile;
    stripe_rows = std::min(anchors, std::max<int64_t>(fit, 1) * kTile);
    distances = empty(a.embeddings, {stripe_rows, padded}, compute_type(a.embeddings));
    problem = TripletProblem{o.margin, o.soft, a.normalize, padded / kTile,
                             o.semihard ? nullptr : data<unsigned char>(active)};
  }

  // Calls back with the distances of each stripe of anchors.
  template <class Visit>
  void for_each(bool only_active, const Visit& visit) const {
    for (int64_t first = 0; first < anchors; first += stripe_rows) {
      const auto &a = pairs.sides.a, &b = pairs.sides.b;
      const TripletStripe<T> stripe{first,
                                    std::min(stripe_rows, anchors - first),
                                    padded,
                                    gallery,
                                    data<T>(distances),
                                    a.facts.labels,
                                    data<int64_t>(sorted_labels),
                                    data<int64_t>(order),
                                    pairs.queries.states(),
                                    pairs.gallery().flag(),
                                    a.facts.norm,
                                    b.facts.norm};
      triplet_distances<T>(pairs.precision, pairs.sides, problem, stripe, only_active && problem.active != nullptr,
                           stream);
      visit(stripe);
    }
  }
};

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward_as(const PairArguments& a, const TripletOptions& o,
                                                      const std::string& precision, bool check) {
  const OnDevice device(a.embeddings);
  const int64_t m = a.queries();
  const Tensor active = zeros(a.embeddings, {o.tiles(m), o.tiles(a.gallery())}, ScalarType::Byte);
  const Tensor loss_sum = empty(a.embeddings, {m}, compute_type(a.embeddings));
  const Tensor nonzero = empty(a.embeddings, {m}, ScalarType::Long), count = empty(a.embeddings, {m}, ScalarType::Long);
  const TripletPairs<T> on_device(a, o, precision, check, active, device.stream);
  on_device.for_each(false, [&](const TripletStripe<T>& stripe) {
    triplet_sums<T>(on_device.pairs.precision, on_device.pairs.sides, on_device.problem, stripe, o.semihard,
                    TripletRows<T>{data<T>(loss_sum), data<int64_t>(nonzero), data<int64_t>(count)}, device.stream);
  });
  return {loss_sum, nonzero, count, active};
}

// What the pairs add to the gradient of one side.
template <class T>
struct Sums {
  Tensor rows, weights;  // (rows, D), (rows,)

  Sums(const Tensor& x, ScalarType type)
      : rows(zeros(x, {x.size(0), x.size(1)}, type)), weights(zeros(x, {x.size(0)}, type)) {}
};

template <class T>
std::tuple<Tensor, Tensor> backward_as(const PairArguments& a, const TripletOptions& o, const Tensor& grad,
                                       const Tensor& active, const std::string& precision_name, bool need_grad_ref) {
  const OnDevice device(a.embeddings);
  const Stream stream = device.stream;
  const TripletPairs<T> on_device(a, o, precision_name, false, active, stream);
  const TripletProblem& problem = on_device.problem;
  const PairsOnDevice<T>& pairs = on_device.pairs;
  const RowsOnDevice<T>&queries = pairs.queries, &gallery = pairs.gallery();
  const Precision precision = pairs.precision;
  const ScalarType value = compute_type(a.embeddings);
  // A pair has one weight for each of its ends, and its positives have large ones that cancel: where the two are
  // rounded apart, bfloat16 would show. The triplets, not the products, take the time.
  const Precision weighted = precision == Precision::bfloat16 ? Precision::tf32 : precision;
  const int64_t d = a.embeddings.size(1), n = on_device.gallery, padded = on_device.padded;
  const int64_t col_tiles = problem.col_tiles;
  const int64_t rows_padded = (on_device.stripe_rows + kTile - 1) / kTile * kTile;
  const bool columns = a.self() || need_grad_ref;

  Sums<T> of_queries(a.embeddings, value);
  std::optional<Sums<T>> own_gallery;
  if (need_grad_ref) own_gallery.emplace(*a.ref_emb, value);
  Sums<T>& of_gallery = own_gallery ? *own_gallery : of_queries;
  const Tensor weights = empty(a.embeddings, {on_device.stripe_rows, padded}, value);
  const Tensor by_rows = empty(a.embeddings, {on_device.stripe_rows, padded}, value);
  const Tensor by_columns = empty(a.embeddings, {columns ? n : 0, rows_padded}, value);
  const Tensor others = empty(a.embeddings, {d, padded}, value), own = empty(a.embeddings, {d, rows_padded}, value);
  const Tensor product = empty(a.embeddings, {std::max(on_device.stripe_rows, columns ? n : 0), d}, value);
  transpose_rows(precision, weighted, gallery.x.const_data_ptr(), gallery.states(), n, d, padded,
                 others.mutable_data_ptr(), stream);
  on_device.for_each(true, [&](const TripletStripe<T>& s) {
    triplet_weights<T>(precision, pairs.sides, problem, s, o.semihard, data<T>(grad), data<T>(weights), stream);
    const Stripe rows{s.first,
                      s.count,
                      padded,
                      weighted,
                      by_rows.mutable_data_ptr(),
                      ActiveTiles{problem.active, col_tiles, 1, false}};
    triplet_round_rows<T>(problem, s, data<T>(weights), data<T>(gallery.inverse), rows, data<T>(of_queries.weights),
                          stream);
    weighted_rows<T>(rows, others.const_data_ptr(), d, 1, data<T>(product), stream);
    triplet_add<T>(data<T>(product), s.count * d, data<T>(of_queries.rows) + s.first * d, stream);
    if (!columns) return;
    const int64_t bytes = precision == Precision::float64                                       ? 8
                          : precision == Precision::bfloat16 || precision == Precision::float16 ? 2
                                                                                                : 4;
    const int64_t here = (s.count + kTile - 1) / kTile * kTile;
    transpose_rows(precision, weighted, static_cast<const char*>(queries.x.const_data_ptr()) + s.first * d * bytes,
                   queries.states() + s.first, s.count, d, here, own.mutable_data_ptr(), stream);
    const unsigned char* const tiles =
        problem.active == nullptr ? nullptr : problem.active + s.first / kTile * col_tiles;
    const Stripe turned{0, n, here, weighted, by_columns.mutable_data_ptr(), ActiveTiles{tiles, 1, col_tiles, false}};
    triplet_round_columns<T>(problem, s, data<T>(weights), data<T>(queries.inverse), turned,
                             data<T>(of_gallery.weights), stream);
    weighted_rows<T>(turned, own.const_data_ptr(), d, 1, data<T>(product), stream);
    triplet_add<T>(data<T>(product), n * d, data<T>(of_gallery.rows), stream);
  });

  const auto finish = [&](const RowsOnDevice<T>& rows, const Sums<T>& sums) {
    const int64_t count = rows.x.size(0);
    const Tensor out = empty(rows.x, {count, d}, rows.x.scalar_type());
    finish_gradient<T>(
        precision,
        FinishGradient<T>{rows.x.const_data_ptr(), rows.states(), gallery.flag(), data<T>(rows.inverse),
                          data<T>(sums.rows), data<T>(sums.weights), nullptr, 0, count, d, count, 1, 1, T(-1),
                          std::numeric_limits<T>::quiet_NaN(), a.normalize, out.mutable_data_ptr()},
        stream);
    return out;
  };
  return {finish(queries, of_queries),
          need_grad_ref ? finish(gallery, of_gallery) : empty(a.embeddings, {0, d}, a.embeddings.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> triplet_fwd(const operators::triplet_fwd& t) {
  const PairArguments a(t);
  return in_compute_type(a.embeddings,
                         [&]<class T>() { return forward_as<T>(a, TripletOptions(t), t.precision, t.check_finite); });
}

std::tuple<Tensor, Tensor> triplet_bwd(const operators::triplet_bwd& t) {
  const PairArguments a(t);
  const Tensor grad = as_contiguous(t.grad_loss_sum), active = as_contiguous(t.tile_active);
  return in_compute_type(a.embeddings, [&]<class T>() {
    return backward_as<T>(a, TripletOptions(t), grad, active, t.precision, t.need_grad_ref);
  });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY, m) {
  m.impl("triplet_fwd", dml::boxed<&dml::triplet_fwd>);
  m.impl("triplet_bwd", dml::boxed<&dml::triplet_bwd>);
}
