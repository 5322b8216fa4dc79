#pragma once
// Rows of the caller's tensors on the device, ready for pair kernels, and the gradients of such rows from weights per
// pair, a stripe of rows at a time.

#include <algorithm>
#include <limits>

#include "common/pair_arguments.h"
#include "common/tile_schedule.h"
#include "cuda/launcher.h"
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

// One side of the pairs, contiguous, and the facts of its rows.
template <class T>
class RowsOnDevice {
 public:
  Tensor x, inverse, norm, state, any_non_finite;

  // labels: of the rows, where they have any. all_count: non-finite rows too, for what may be NaN.
  RowsOnDevice(const Tensor& x, const Tensor* labels, std::optional<int64_t> ignore_index, bool normalize,
               Precision precision, Stream stream, bool all_count = false)
      : x(x),
        inverse(empty(x, {x.size(0)}, compute_type(x))),
        norm(empty(x, {x.size(0)}, compute_type(x))),
        state(empty(x, {all_count ? 0 : x.size(0)}, ScalarType::Byte)),
        any_non_finite(zeros(x, {1}, ScalarType::Int)),
        labels_(labels == nullptr ? nullptr : data<int64_t>(*labels)),
        all_count_(all_count) {
    row_facts<T>(precision, x.const_data_ptr(), x.size(0), x.size(1), labels_, ignore_index.has_value(),
                 ignore_index.value_or(0), normalize, data<T>(inverse), data<T>(norm), states(), flag(), stream);
  }
  RowState* states() const { return all_count_ ? nullptr : data<RowState>(state); }
  // Not 0 if a row is not finite, on the device.
  int32_t* flag() const { return data<int32_t>(any_non_finite); }
  SideRows<T> side(const std::optional<Tensor>& ids, int64_t first_id) const {
    return SideRows<T>{x.const_data_ptr(), nullptr, x.size(0),
                       RowFacts<T>{data<T>(inverse), data<T>(norm), labels_, data<int64_t>(ids), first_id}};
  }

 private:
  const int64_t* labels_;
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
        queries(a.embeddings, &a.labels, a.ignore_index, a.normalize, precision, stream) {
    if (a.ref_emb) own_gallery.emplace(*a.ref_emb, &*a.ref_labels, a.ignore_index, a.normalize, precision, stream);
    const SideRows<T> own = queries.side(a.ids, 0);
    // Without ids, a gallery row of its own shares none with a query: it counts down from -1.
    sides = PairSides<T>{own, own_gallery ? own_gallery->side(a.ref_ids, -1) : own, a.embeddings.size(1)};
  }
  const RowsOnDevice<T>& gallery() const { return own_gallery ? *own_gallery : queries; }
};

// Raises if a row of either side is not finite; the only synchronisation of a pair operation, and asked for.
template <class T>
void check_all_finite(const char* op, const PairsOnDevice<T>& pairs) {
  check_finite(op, read_int(pairs.queries.any_non_finite) != 0 || read_int(pairs.gallery().any_non_finite) != 0);
}

// Largest workspace of one stripe of weights.
constexpr int64_t kStripeBytes = int64_t{128} << 20;

// Gradient of `rows` (side a of the sides) from weights per pair with `others` (side b): sign * sum_j w_ij x_j, plus
// the sums of the weights times f_i if `pulls`. write_weights(stripe, splits, weight_sums) launches the weights.
template <class T, class WriteWeights>
Tensor pair_gradient(Precision precision, const RowsOnDevice<T>& rows, const RowsOnDevice<T>& others, T sign,
                     bool pulls, bool normalize, const int32_t* others_non_finite, const unsigned char* active,
                     int64_t active_row_stride, int64_t active_col_stride, Stream stream,
                     const WriteWeights& write_weights) {
  const int64_t m = rows.x.size(0), n = others.x.size(0), d = rows.x.size(1);
  Tensor grad = empty(rows.x, {m, d}, rows.x.scalar_type());
  if (m == 0 || d == 0) return grad;
  const ScalarType value = compute_type(rows.x);
  const ScalarType element = precision == Precision::bfloat16 ? ScalarType::BFloat16 : value;
  const int64_t terms = weight_terms(precision);
  const int64_t padded = (n + kTile - 1) / kTile * kTile;
  const int64_t stripe_rows = std::min(
      m, std::max<int64_t>(kStripeBytes / (std::max<int64_t>(padded, 1) * static_cast<int64_t>(sizeof(T))) / kTile, 1) *
             kTile);
  const int64_t splits = column_splits((stripe_rows + kTile - 1) / kTile, padded / kTile);
  const Tensor transposed = empty(rows.x, {d, padded}, element),
               weights = empty(rows.x, {stripe_rows, terms, padded}, element);
  const Tensor sums = empty(rows.x, {stripe_rows, d}, value), weight_sums = zeros(rows.x, {splits, m}, value);
  transpose_rows(precision, others.x.const_data_ptr(), others.states(), n, d, padded, transposed.mutable_data_ptr(),
                 stream);
  for (int64_t first = 0; first < m; first += stripe_rows) {
    const Stripe stripe{first,
                        std::min(stripe_rows, m - first),
                        padded,
                        precision,
                        weights.mutable_data_ptr(),
                        active,
                        active_row_stride,
                        active_col_stride};
    write_weights(stripe, splits, data<T>(weight_sums));
    weighted_rows<T>(stripe, transposed.const_data_ptr(), d, data<T>(sums), stream);
    finish_gradient<T>(
        precision,
        FinishGradient<T>{rows.x.const_data_ptr(), rows.states(), others_non_finite, data<T>(rows.inverse),
                          data<T>(sums), pulls ? data<T>(weight_sums) : nullptr, first, stripe.count, d, m, splits,
                          sign, std::numeric_limits<T>::quiet_NaN(), normalize, grad.mutable_data_ptr()},
        stream);
  }
  return grad;
}

}  // namespace dml
