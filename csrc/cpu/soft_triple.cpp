#include <algorithm>
#include <limits>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "common/soft_triple_arguments.h"
#include "cpu/dispatch.h"
#include "cpu/rows.h"
#include "cpu/soft_triple_kernels.h"
#include "cpu/tiles.h"

namespace dml {
namespace {

// The rows of both sides, and the problem of the kernels.
template <class T>
struct Operands {
  Rows<T> x, centers;
  Buffer<int32_t> labels;
  TileSchedule schedule;
  int64_t parts;
  SoftTripleProblem<T> problem{};

  // labels are checked
  Operands(const Tensor& embeddings, const Tensor& y, const Tensor& c, const SoftTriple& loss, bool normalize,
           Layout layout)
      : x(prepare_finite_rows<T>(embeddings, normalize, layout)),
        centers(prepare_finite_rows<T>(c, normalize, layout, loss.per_class)),
        labels(x.view.padded),
        schedule(TileSchedule::make(x.view.n, centers.view.n, false)),
        parts(std::max<int64_t>(schedule.parts, 1)) {
    for (int64_t i = 0; i < x.view.padded; ++i)
      labels[i] = x.view.index[i] < 0 ? -1 : static_cast<int32_t>(y.const_data_ptr<int64_t>()[x.view.index[i]]);
    problem.centers = centers.view;
    problem.embeddings = x.view;
    problem.loss = loss;
    problem.classes = c.size(0) / loss.per_class;
    problem.labels = labels.data();
  }
};

template <class T>
std::tuple<Tensor, Tensor> forward_as(const Tensor& embeddings, const Tensor& labels, const Tensor& centers,
                                      const SoftTriple& loss, bool normalize) {
  const int64_t m = embeddings.size(0);
  const ScalarType type = compute_type(embeddings);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Tensor value = filled(embeddings, {m}, type, nan), stats = filled(embeddings, {2, m}, type, nan);
  Operands<T> rows(embeddings, labels, centers, loss, normalize, Layout::panels);
  if (rows.centers.any_non_finite) return {value, stats};
  const RowsView<T>& x = rows.x.view;
  const int64_t length = rows.parts * x.padded;
  const Buffer<T> sums(kSoftTripleSums * length);
  std::fill_n(sums.data() + kOtherMax * length, length, kNoLogit<T>);
  SoftTripleProblem<T>& p = rows.problem;
  p.sums = sums.data();
  const auto& kernel = kernels<SoftTripleKernels<T>>();
  for_each_tile(rows.schedule, [&](const TilePair& t) { kernel.forward(p, t.row, t.col, t.part, rows.parts); });

  T *losses = static_cast<T*>(value.mutable_data_ptr()), *out = static_cast<T*>(stats.mutable_data_ptr());
  for (int64_t i = 0; i < x.n; ++i) {
    LogSumExp others{0, kNoLogit<double>};
    double own = 0;  // one part has the own class, the others 0
    for (int64_t part = 0; part < rows.parts; ++part) {
      const T* at = sums.data() + part * x.padded + i;
      others.add(at[kOtherSum * length], at[kOtherMax * length]);
      own += at[kOwnLogit * length];
    }
    const SoftTripleRow row = soft_triple_row(others, own);
    losses[x.index[i]] = static_cast<T>(row.loss);
    out[x.index[i]] = static_cast<T>(row.log_sum);
    out[m + x.index[i]] = static_cast<T>(row.miss);
  }
  return {value, stats};
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad, const Tensor& embeddings, const Tensor& labels,
                                       const Tensor& centers, const Tensor& stats, const SoftTriple& loss,
                                       bool normalize) {
  const int64_t m = embeddings.size(0);
  Operands<T> rows(embeddings, labels, centers, loss, normalize, Layout::both);
  const Tensor all_nan = filled(centers, {centers.size(0), centers.size(1)}, centers.scalar_type(),
                                std::numeric_limits<double>::quiet_NaN());
  if (rows.centers.any_non_finite)
    return {
        filled(embeddings, {m, embeddings.size(1)}, embeddings.scalar_type(), std::numeric_limits<double>::quiet_NaN()),
        all_nan};
  const RowsView<T>&x = rows.x.view, &c = rows.centers.view;
  const Buffer<T> log_sum(x.padded), miss(x.padded), scale(x.padded);
  const T *at = static_cast<const T*>(stats.const_data_ptr()), *g = static_cast<const T*>(grad.const_data_ptr());
  for (int64_t i = 0; i < x.n; ++i) {
    log_sum[i] = at[x.index[i]];
    miss[i] = at[m + x.index[i]];
    scale[i] = static_cast<T>(loss.la) * g[x.index[i]];
  }
  const Buffer<T> rows_x(rows.parts * x.padded * x.stride), rows_c(c.padded * c.stride);
  const Buffer<T> weights_x(rows.parts * x.padded), weights_c(c.padded);
  SoftTripleProblem<T>& p = rows.problem;
  p.log_sum = log_sum.data();
  p.miss = miss.data();
  p.scale = scale.data();
  p.rows_x = rows_x.data();
  p.rows_c = rows_c.data();
  const auto& kernel = kernels<SoftTripleKernels<T>>();
  for_each_tile(rows.schedule, [&](const TilePair& t) { kernel.backward(p, t.row, t.col, t.part); });
  const Tensor grad_x = finish_gradient<T>(embeddings, rows.x, rows_x, weights_x, rows.parts, T(1), normalize);
  // Every embedding has a term with every center.
  if (rows.x.any_non_finite) return {grad_x, all_nan};
  return {grad_x, finish_gradient<T>(centers, rows.centers, rows_c, weights_c, 1, T(1), normalize)};
}

std::tuple<Tensor, Tensor> soft_triple_fwd(const operators::soft_triple_fwd& a) {
  const Tensor x = as_contiguous(a.embeddings), y = as_contiguous(a.labels), c = as_contiguous(a.centers);
  return in_compute_type(x, [&]<class T>() { return forward_as<T>(x, y, c, soft_triple_of(a), a.normalize); });
}

std::tuple<Tensor, Tensor> soft_triple_bwd(const operators::soft_triple_bwd& a) {
  const Tensor grad = as_contiguous(a.grad_loss), x = as_contiguous(a.embeddings), y = as_contiguous(a.labels),
               c = as_contiguous(a.centers), stats = as_contiguous(a.row_stats);
  return in_compute_type(
      x, [&]<class T>() { return backward_as<T>(grad, x, y, c, stats, soft_triple_of(a), a.normalize); });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("soft_triple_fwd", dml::boxed<&dml::soft_triple_fwd, dml::Read::numbers>);
  m.impl("soft_triple_bwd", dml::boxed<&dml::soft_triple_bwd, dml::Read::numbers>);
}
