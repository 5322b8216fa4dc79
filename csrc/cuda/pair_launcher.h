#pragma once
// Rows of the caller's tensors on the device, ready for pair kernels, and the gradients of such rows from weights per
// pair, a stripe of rows at a time.

#include <algorithm>
#include <limits>

#include "common/pair_arguments.h"
#include "common/tile_schedule.h"
#include "cuda/aligned_rows.h"
#include "cuda/pairs.h"

namespace dml {

// precision: the argument of the operator, which float32 rows follow; "bf16" is served by TF32, which is more accurate.
inline Precision precision_of(const Tensor& x, const std::string& precision) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return Precision::float64;
    case ScalarType::BFloat16:
      return Precision::bfloat16;
    case ScalarType::Half:
      return Precision::float16;
    default:
      return precision == "tf32" || precision == "bf16" ? Precision::tf32 : Precision::float32;
  }
}

inline int64_t tiles_of(int64_t rows) { return (rows + kTile - 1) / kTile; }

// One side of the pairs, contiguous, and the facts of its rows.
template <class T>
class RowsOnDevice {
 public:
  Tensor x, aligned, inverse, norm, state, any_non_finite, tiles;

  // labels, ids: of the rows, where they have any. all_count: non-finite rows too, for what may be NaN.
  RowsOnDevice(const Tensor& x, const Tensor* labels, const std::optional<Tensor>& ids,
               std::optional<int64_t> ignore_index, bool normalize, Precision precision, Stream stream,
               bool all_count = false)
      : x(x),
        aligned(aligned_rows(x, stream)),
        inverse(empty(x, {x.size(0)}, compute_type(x))),
        norm(empty(x, {x.size(0)}, compute_type(x))),
        state(empty(x, {all_count ? 0 : x.size(0)}, ScalarType::Byte)),
        any_non_finite(zeros(x, {1}, ScalarType::Int)),
        tiles(empty(x, {labels == nullptr ? 0 : tiles_of(x.size(0)) * static_cast<int64_t>(sizeof(TileSummary))},
                    ScalarType::Byte)),
        labels_(labels == nullptr ? nullptr : data<int64_t>(*labels)),
        ids_(data<int64_t>(ids)),
        all_count_(all_count) {
    row_facts<T>(
        precision,
        RowsToRead<T>{x.const_data_ptr(), x.size(0), x.size(1), labels_, ids_, ignore_index.has_value(), normalize,
                      ignore_index.value_or(0), data<T>(inverse), data<T>(norm), states(), flag(), summaries()},
        stream);
  }
  RowState* states() const { return all_count_ ? nullptr : data<RowState>(state); }
  // Not 0 if a row is not finite, on the device.
  int32_t* flag() const { return data<int32_t>(any_non_finite); }
  TileSummary* summaries() const { return labels_ == nullptr ? nullptr : data<TileSummary>(tiles); }
  SideRows<T> side(int64_t first_id) const {
    return SideRows<T>{aligned.const_data_ptr(), nullptr, x.size(0),
                       RowFacts<T>{data<T>(inverse), data<T>(norm), labels_, ids_, first_id, summaries()}};
  }

 private:
  const int64_t *labels_, *ids_;
  bool all_count_;
};

// Both sides of a pair operation.
template <class T>
struct PairsOnDevice {
  Precision precision;
  RowsOnDevice<T> queries;
  std::optional<RowsOnDevice<T>> own_gallery;
  PairSides<T> sides;

  PairsOnDevice(const PairArguments& a, const std::string& precision_name, Stream stream)
      : precision(precision_of(a.embeddings, precision_name)),
        queries(a.embeddings, &a.labels, a.ids, a.ignore_index, a.normalize, precision, stream) {
    if (a.ref_emb)
      own_gallery.emplace(*a.ref_emb, &*a.ref_labels, a.ref_ids, a.ignore_index, a.normalize, precision, stream);
    const SideRows<T> own = queries.side(0);
    // Without ids, a gallery row of its own shares none with a query: it counts down from -1.
    sides =
        PairSides<T>{own, own_gallery ? own_gallery->side(-1) : own, a.embeddings.size(1), row_stride(a.embeddings)};
  }
  const RowsOnDevice<T>& gallery() const { return own_gallery ? *own_gallery : queries; }
};

// Raises if a row of either side is not finite; the only synchronisation of a pair operation, and asked for.
template <class T>
void check_all_finite(const char* op, const PairsOnDevice<T>& pairs) {
  check_finite(op, read_int(pairs.queries.any_non_finite) != 0 || read_int(pairs.gallery().any_non_finite) != 0);
}

// Workspace of one stripe of weights: the next kernel reads it back, from the cache of an H100 (50 MB). Of a long
// gallery a stripe has up to 1,024 rows all the same, or the product would read the gallery too often.
constexpr int64_t kStripeBytes = int64_t{24} << 20, kLongStripeBytes = int64_t{128} << 20, kStripeRows = 1024;

inline int64_t rows_of_stripe(int64_t rows, int64_t row_bytes) {
  const int64_t cached = std::max<int64_t>(kStripeBytes / row_bytes / kTile, 1) * kTile;
  return std::min(rows, std::max(cached, std::min(kStripeRows, kLongStripeBytes / row_bytes / kTile * kTile)));
}

// Gradient of `rows` (side a of the sides) from weights per pair with `others` (side b): sign * sum_j w_ij x_j, plus
// the sums of the weights times f_i if `pulls`, to `grad`. order: the caller's row of each, or null.
// write_weights(stripe, splits, weight_sums) launches the weights.
template <class T, class WriteWeights>
void write_pair_gradient(Precision precision, const RowsOnDevice<T>& rows, const RowsOnDevice<T>& others, T sign,
                         bool pulls, bool normalize, const int32_t* others_non_finite, const ActiveTiles& active,
                         const int64_t* order, Stream stream, const Tensor& grad, const WriteWeights& write_weights) {
  const int64_t m = rows.x.size(0), n = others.x.size(0), d = rows.x.size(1);
  if (m == 0 || d == 0) return;
  const ScalarType value = compute_type(rows.x);
  const ScalarType element = precision == Precision::bfloat16 ? ScalarType::BFloat16 : value;
  const int64_t bytes = precision == Precision::bfloat16 ? 2 : sizeof(T);
  const int64_t padded = tiles_of(n) * kTile;
  const int64_t stripe_rows = rows_of_stripe(m, std::max<int64_t>(padded, kTile) * bytes);
  const int64_t row_tiles = tiles_of(stripe_rows), col_tiles = padded / kTile;
  const int64_t splits = column_splits(row_tiles, col_tiles),
                sum_splits = column_splits(row_tiles * tiles_of(d), col_tiles);
  const Tensor transposed = empty(rows.x, {d, padded}, element),
               weights = empty(rows.x, {stripe_rows, padded}, element);
  const Tensor sums = empty(rows.x, {sum_splits, stripe_rows, d}, value),
               weight_sums = empty(rows.x, {splits, m}, value);
  transpose_rows(precision, precision, others.x.const_data_ptr(), others.states(), n, d, padded,
                 transposed.mutable_data_ptr(), stream);
  for (int64_t first = 0; first < m; first += stripe_rows) {
    const Stripe stripe{first, std::min(stripe_rows, m - first), padded, precision, weights.mutable_data_ptr(), active};
    write_weights(stripe, splits, data<T>(weight_sums));
    weighted_rows<T>(stripe, transposed.const_data_ptr(), d, sum_splits, data<T>(sums), stream);
    finish_gradient<T>(precision,
                       FinishGradient<T>{rows.x.const_data_ptr(), rows.states(), others_non_finite,
                                         data<T>(rows.inverse), data<T>(sums), pulls ? data<T>(weight_sums) : nullptr,
                                         order, first, stripe.count, d, m, splits, sum_splits, sign,
                                         std::numeric_limits<T>::quiet_NaN(), normalize, grad.mutable_data_ptr()},
                       stream);
  }
}

template <class T, class WriteWeights>
Tensor pair_gradient(Precision precision, const RowsOnDevice<T>& rows, const RowsOnDevice<T>& others, T sign,
                     bool pulls, bool normalize, const int32_t* others_non_finite, Stream stream,
                     const WriteWeights& write_weights) {
  const Tensor grad = empty(rows.x, {rows.x.size(0), rows.x.size(1)}, rows.x.scalar_type());
  write_pair_gradient<T>(precision, rows, others, sign, pulls, normalize, others_non_finite, ActiveTiles{}, nullptr,
                         stream, grad, write_weights);
  return grad;
}

}  // namespace dml
