#pragma once
// The triplet loss goes over the pairs once for every so many positives of each query, whose distances are in memory at
// a time: how many passes there are, the negatives that a pass chooses, and the gradient that it adds.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/nearest_positive.h"
#include "common/triplet.h"
#include "common/triplet_arguments.h"
#include "cpu/dispatch.h"
#include "cpu/rows.h"
#include "cpu/rows_kernels.h"
#include "cpu/tiles.h"
#include "cpu/triplet_kernels.h"

namespace dml {

// Bytes of the largest array of numbers by positive.
constexpr int64_t kPositiveBytes = int64_t{4} << 20;

template <class T>
struct TripletPasses {
  const PairRows<T>& rows;
  TripletProblem<T> problem{};
  TileSchedule schedule;
  int64_t parts;

  TripletPasses(const PairRows<T>& rows, const TripletOptions& o) : rows(rows) {
    const RowsView<T>&q = rows.queries.view, &g = rows.gallery().view;
    schedule = TileSchedule::make(q.n, g.n, rows.self);
    parts = std::max<int64_t>(schedule.parts, 1);
    begin_ = Buffer<int64_t>(q.n + 1);
    end_ = Buffer<int64_t>(q.n + 1);
    // Both sides are sorted by class: one walk finds each query's range of gallery rows.
    for (int64_t i = 0, j = 0; i < q.n; ++i) {
      if (i == 0 || q.classes[i] != q.classes[i - 1]) {
        while (j < g.n && g.classes[j] < q.classes[i]) ++j;
        begin_[i] = j;
        while (j < g.n && g.classes[j] == q.classes[i]) ++j;
        end_[i] = j;
      } else {
        begin_[i] = begin_[i - 1];
        end_[i] = end_[i - 1];
      }
      largest_class_ = std::max(largest_class_, end_[i] - begin_[i]);
    }
    const int64_t fit = kPositiveBytes / (std::max<int64_t>(q.padded, 1) * parts * static_cast<int64_t>(sizeof(T)));
    const int64_t slots = std::min({std::max(fit, 2 * kSlotGroup), kMostSlots, largest_class_});
    problem.q = q;
    problem.g = g;
    problem.self = rows.self;
    problem.soft = o.soft;
    problem.margin = static_cast<T>(o.margin);
    problem.class_begin = begin_.data();
    problem.class_end = end_.data();
    problem.slots = (slots + kSlotGroup - 1) / kSlotGroup * kSlotGroup;
    problem.col_tiles = schedule.col_tiles;
    positives_ = Buffer<T>(problem.slots * q.padded);
    problem.positives = positives_.data();
  }

  // Calls back with the problem of each pass.
  template <class Pass>
  void for_each(const Pass& pass) {
    const auto& kernel = kernels<TripletSelectionKernels<T>>();
    for (problem.first_slot = 0; problem.first_slot < largest_class_; problem.first_slot += problem.slots) {
      std::fill_n(problem.positives, problem.slots * problem.q.padded, -std::numeric_limits<T>::infinity());
      torch::stable::parallel_for(0, (problem.q.n + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) kernel.positives(problem, tile);
      });
      pass();
    }
  }

 private:
  Buffer<int64_t> begin_, end_;
  Buffer<T> positives_;
  int64_t largest_class_ = 0;
};

// Of each positive of a pass, (slots, padded q): the packed gallery row, -1 for none.
template <class T>
struct ChosenNegatives {
  Buffer<T> distance;
  Buffer<int32_t> row;
};

template <class T>
ChosenNegatives<T> choose_negatives(TripletPasses<T>& passes) {
  TripletProblem<T>& p = passes.problem;
  const int64_t length = p.slots * p.q.padded;
  ChosenNegatives<T> chosen{Buffer<T>(passes.parts * length), Buffer<int32_t>(passes.parts * length)};
  const Buffer<T> exact(passes.parts * length);
  // Farther than any row, and finite.
  std::fill_n(chosen.distance.data(), passes.parts * length, kFar<T>);
  std::fill_n(exact.data(), passes.parts * length, std::numeric_limits<T>::quiet_NaN());
  std::fill_n(chosen.row.data(), passes.parts * length, -1);
  p.share = static_cast<T>(tie_share(p.q.d, std::numeric_limits<T>::epsilon()));
  p.nearest = chosen.distance.data();
  p.nearest_exact = exact.data();
  p.nearest_row = chosen.row.data();
  const auto& kernel = kernels<TripletSelectionKernels<T>>();
  for_each_tile(passes.schedule, [&](const TilePair& t) { kernel.choose(p, t.row, t.col, t.part); });
  kernel.merge(p, passes.parts);
  for (int64_t at = 0; at < length; ++at) chosen.distance[at] = std::sqrt(chosen.distance[at]);
  return chosen;
}

// Sums of weighted rows for finish_gradient, sign -1. In self mode the gallery's are the queries'.
template <class T>
struct TripletGradient {
  Buffer<T> rows_q, weights_q, rows_g, weights_g;

  TripletGradient(TripletPasses<T>& passes, bool need_grad_ref)
      : rows_q(passes.parts * passes.problem.q.padded * passes.problem.q.stride),
        weights_q(passes.parts * passes.problem.q.padded),
        passes_(passes),
        p_(passes.problem) {
    if (need_grad_ref) {
      rows_g = Buffer<T>(p_.g.padded * p_.g.stride);
      weights_g = Buffer<T>(p_.g.padded);
    }
    p_.both_ends = p_.self || need_grad_ref;
    p_.rows_q = rows_q.data();
    p_.weights_q = weights_q.data();
    p_.rows_g = p_.self ? rows_q.data() : rows_g.data();
    p_.weights_g = p_.self ? weights_q.data() : weights_g.data();
  }

  void add_all() {
    const int64_t length = p_.slots * p_.q.padded;
    const Buffer<T> slopes(passes_.parts * length);
    p_.slopes = slopes.data();
    const auto& kernel = kernels<TripletKernels<T>>();
    for_each_tile(passes_.schedule, [&](const TilePair& t) { kernel.backward(p_, t.row, t.col, t.part); });
    for (int64_t other = length; other < passes_.parts * length; ++other) slopes[other % length] += slopes[other];
    for_each_slot([&](int64_t at, int64_t i) {
      if (slopes[at] != 0) slopes[at] = weight(i, p_.class_begin[i] + slot(at), p_.grad[i] * slopes[at]);
    });
    add_positives(slopes.data());
  }

  void add_semihard() {
    const int64_t length = p_.slots * p_.q.padded;
    const ChosenNegatives<T> chosen = choose_negatives(passes_);
    const Buffer<T> pull(length), push(length);
    for_each_slot([&](int64_t at, int64_t i) {
      if (chosen.row[at] < 0) return;
      const double x = static_cast<double>(p_.positives[at] + p_.margin - chosen.distance[at]);
      const T slope = p_.grad[i] * static_cast<T>(triplet_term(x, p_.soft).slope);
      if (slope == 0) return;
      pull[at] = weight(i, p_.class_begin[i] + slot(at), slope);
      push[at] = -weight(i, chosen.row[at], slope);
    });
    add_positives(pull.data());
    add_negatives(chosen.row.data(), push.data());
  }

 private:
  TripletPasses<T>& passes_;
  TripletProblem<T>& p_;

  int64_t slot(int64_t at) const { return p_.first_slot + at / p_.q.padded; }

  template <class Visit>
  void for_each_slot(const Visit& visit) const {
    torch::stable::parallel_for(0, p_.slots, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        for (int64_t i = 0; i < p_.q.n; ++i) visit(s * p_.q.padded + i, i);
    });
  }

  // Weight of (f_i - g_j) from dL/dd.
  T weight(int64_t i, int64_t j, T slope) const {
    const auto& kernel = kernels<RowsKernels<T>>();
    const double eps = std::numeric_limits<T>::epsilon();
    const double squared = kernel.squared_difference(p_.q.rows + i * p_.q.stride, p_.g.rows + j * p_.g.stride, p_.q.d);
    const double norms = static_cast<double>(p_.q.norms[i]) + p_.g.norms[j];
    return squared > norms * (8 * eps * eps) ? static_cast<T>(slope / std::sqrt(squared)) : T(0);
  }

  // Adds the listed rows to row `to` of one side; list_of(to, list) fills pairs of the other row and the weight.
  template <class ListOf>
  void add_lists(const RowsView<T>& side, const RowsView<T>& others, T* sums, T* weights, const ListOf& list_of) {
    const auto& kernel = kernels<TripletKernels<T>>();
    const int64_t width = others.stride - 64 / static_cast<int64_t>(sizeof(T));
    torch::stable::parallel_for(0, side.n, 64, [&](int64_t begin, int64_t end) {
      std::vector<int> list;
      std::vector<T> values;
      const auto add = [&](int64_t other, T w) {
        if (w == 0) return;
        list.push_back(static_cast<int>(other));
        values.push_back(w);
      };
      for (int64_t to = begin; to < end; ++to) {
        list.clear();
        values.clear();
        list_of(to, add);
        for (const T w : values) weights[to] += w;
        kernel.add_rows(list.data(), values.data(), static_cast<int>(list.size()), others.rows, others.stride, width,
                        sums + to * side.stride);
      }
    });
  }

  // weights (slots, padded q) of the positives.
  void add_positives(const T* weights) {
    const int64_t padded = p_.q.padded;
    add_lists(p_.q, p_.g, p_.rows_q, p_.weights_q, [&](int64_t i, const auto& add) {
      const int64_t first = p_.class_begin[i] + p_.first_slot, end = std::min(p_.class_end[i], first + p_.slots);
      for (int64_t j = first; j < end; ++j) add(j, weights[(j - first) * padded + i]);
    });
    if (!p_.both_ends) return;
    // The queries of a class are one range too.
    add_lists(p_.g, p_.q, p_.rows_g, p_.weights_g, [&](int64_t j, const auto& add) {
      const int32_t* const end = p_.q.classes + p_.q.n;
      const auto [from, to] = std::equal_range(p_.q.classes, end, p_.g.classes[j]);
      if (from == to) return;
      const int64_t at = j - p_.class_begin[from - p_.q.classes] - p_.first_slot;
      if (at < 0 || at >= p_.slots) return;
      for (int64_t i = from - p_.q.classes; i < to - p_.q.classes; ++i) add(i, weights[at * padded + i]);
    });
  }

  // weights (slots, padded q) of the chosen negatives.
  void add_negatives(const int32_t* chosen, const T* weights) {
    const int64_t padded = p_.q.padded;
    add_lists(p_.q, p_.g, p_.rows_q, p_.weights_q, [&](int64_t i, const auto& add) {
      for (int64_t at = i; at < p_.slots * padded; at += padded) add(chosen[at], weights[at]);
    });
    if (!p_.both_ends) return;
    // By gallery row, in the order of the queries, so that every sum has one owner and one order.
    std::vector<int64_t> first(static_cast<size_t>(p_.g.n) + 1);
    for (int64_t at = 0; at < p_.slots * padded; ++at)
      if (weights[at] != 0) ++first[chosen[at] + 1];
    for (int64_t j = 0; j < p_.g.n; ++j) first[j + 1] += first[j];
    std::vector<int32_t> from(static_cast<size_t>(first.back()));
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t at = 0; at < p_.slots * padded; ++at)
      if (weights[at] != 0) from[next[chosen[at]]++] = static_cast<int32_t>(at);
    add_lists(p_.g, p_.q, p_.rows_g, p_.weights_g, [&](int64_t j, const auto& add) {
      for (int64_t k = first[j]; k < first[j + 1]; ++k) add(from[k] % padded, weights[from[k]]);
    });
  }
};

}  // namespace dml
