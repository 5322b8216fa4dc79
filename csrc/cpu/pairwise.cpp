#include <algorithm>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "common/pairwise_arguments.h"
#include "cpu/dispatch.h"
#include "cpu/pairwise_kernels.h"
#include "cpu/rows.h"
#include "cpu/tiles.h"

namespace dml {
namespace {

template <class T>
struct Operands {
  Rows<T> x;
  std::optional<Rows<T>> own_y;
  const Rows<T>& y() const { return own_y ? *own_y : x; }

  Operands(const Tensor& left, const std::optional<Tensor>& right, bool normalize, Layout layout)
      : x(prepare_rows<T>(left, normalize, layout)) {
    if (right) own_y = prepare_rows<T>(*right, normalize, layout);
  }
};

template <class T>
Tensor forward_as(const Tensor& x, const std::optional<Tensor>& y, Metric metric, bool normalize) {
  const Operands<T> rows(x, y, normalize, Layout::panels);
  const RowsView<T>&q = rows.x.view, &g = rows.y().view;
  Tensor out = aten::empty(x, {q.n, g.n}, x.scalar_type());
  const auto& kernel = kernels<PairwiseKernels<T>>();
  PairwiseProblem<T> problem{};
  problem.q = q;
  problem.g = g;
  problem.same = !y.has_value();
  problem.metric = metric;
  for_each_tile(TileSchedule::make(q.n, g.n, problem.same), [&](const TilePair& t) {
    const Buffer<T> result(kTile * kernel.tile_stride);
    kernel.forward(problem, t.row, t.col, result.data());
    const int64_t i0 = t.row * kTile, j0 = t.col * kTile;
    const int64_t rows_here = std::min<int64_t>(kTile, q.n - i0), cols_here = std::min<int64_t>(kTile, g.n - j0);
    for (int64_t r = 0; r < rows_here; ++r)
      write_row(result.data() + r * kernel.tile_stride, out, i0 + r, j0, cols_here);
    T column[kTile];
    for (int64_t c = 0; problem.same && t.row != t.col && c < cols_here; ++c) {
      for (int64_t r = 0; r < rows_here; ++r) column[r] = result[r * kernel.tile_stride + c];
      write_row(column, out, j0 + c, i0, rows_here);
    }
  });
  return out;
}

template <class T>
std::tuple<Tensor, Tensor> backward_as(const Tensor& grad_out, const Tensor& x, const std::optional<Tensor>& y,
                                       Metric metric, bool normalize) {
  const Operands<T> rows(x, y, normalize, Layout::both);
  const RowsView<T>&q = rows.x.view, &g = rows.y().view;
  const bool same = !y.has_value();
  const TileSchedule schedule = TileSchedule::make(q.n, g.n, same);
  const int64_t parts = std::max<int64_t>(schedule.parts, 1);
  Buffer<T> sums_q(parts * q.padded * q.stride), weights_q(parts * q.padded), own_sums_g, own_weights_g;
  if (!same) {
    own_sums_g = Buffer<T>(g.padded * g.stride);
    own_weights_g = Buffer<T>(g.padded);
  }
  const Buffer<T>&sums_g = same ? sums_q : own_sums_g, &weights_g = same ? weights_q : own_weights_g;
  const PairwiseProblem<T> problem{
      q, g, same, metric, sums_q.data(), sums_g.data(), weights_q.data(), weights_g.data()};
  const auto& kernel = kernels<PairwiseKernels<T>>();
  for_each_tile(schedule, [&](const TilePair& t) {
    const Buffer<T> grad(kTile * kernel.tile_stride);
    const int64_t i0 = t.row * kTile, j0 = t.col * kTile;
    const int64_t rows_here = std::min<int64_t>(kTile, q.n - i0), cols_here = std::min<int64_t>(kTile, g.n - j0);
    for (int64_t r = 0; r < rows_here; ++r)
      read_row(grad_out, i0 + r, grad.data() + r * kernel.tile_stride, j0, cols_here);
    T mirrored[kTile];
    for (int64_t c = 0; same && c < cols_here; ++c) {
      read_row(grad_out, j0 + c, mirrored, i0, rows_here);
      // A diagonal tile is its own mirror: what it gains is what it had, read from the caller's tensor.
      for (int64_t r = 0; r < rows_here; ++r) grad[r * kernel.tile_stride + c] += mirrored[r];
    }
    kernel.backward(problem, t.row, t.col, t.part, grad.data());
  });
  const T sign = metric == Metric::dot ? T(1) : T(-1);
  Tensor grad_x = finish_gradient<T>(x, rows.x, sums_q, weights_q, parts, sign, normalize);
  if (same) return {grad_x, filled(x, {0, x.size(1)}, x.scalar_type(), 0)};
  return {grad_x, finish_gradient<T>(*y, rows.y(), sums_g, weights_g, 1, sign, normalize)};
}

Tensor pairwise_fwd(const operators::pairwise_fwd& a) {
  const Tensor x = as_contiguous(a.x);
  return in_compute_type(
      x, [&]<class T>() { return forward_as<T>(x, as_contiguous(a.y), metric_of(a.metric), a.normalize); });
}

std::tuple<Tensor, Tensor> pairwise_bwd(const operators::pairwise_bwd& a) {
  const Tensor grad = as_contiguous(a.grad_out), x = as_contiguous(a.x);
  return in_compute_type(
      x, [&]<class T>() { return backward_as<T>(grad, x, as_contiguous(a.y), metric_of(a.metric), a.normalize); });
}

}  // namespace
}  // namespace dml

STABLE_TORCH_LIBRARY_IMPL(dmlkernels, CPU, m) {
  m.impl("pairwise_fwd", dml::boxed<&dml::pairwise_fwd, dml::Read::numbers>);
  m.impl("pairwise_bwd", dml::boxed<&dml::pairwise_bwd, dml::Read::numbers>);
}
