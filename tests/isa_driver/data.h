#pragma once
// Rows of known numbers, packed as the kernels take them, and what the checks of the driver share.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/tile_schedule.h"
#include "cpu/dispatch.h"
#include "cpu/rows_kernels.h"

namespace {

using namespace dml;

constexpr int64_t kRows = 203, kWidth = 37, kClasses = 17;
constexpr double kAlpha = 1.3, kMargin = 0.5, kTemperature = 3;
int failures = 0;

void expect(bool good, const char* what, double got, double wanted) {
  if (good) return;
  ++failures;
  std::printf("%s: got %.9g, wanted %.9g\n", what, got, wanted);
}

template <class T>
T* aligned(size_t n) {
  T* p = static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64));
  for (size_t i = 0; i < n; ++i) p[i] = 0;
  return p;
}

template <class T>
RowsView<T> make_rows(const RowsKernels<T>& kernel, std::vector<double>& unit) {
  const int64_t width = kernel.panel_width, padded = (kRows + width - 1) / width * width;
  const int64_t stride = (kWidth + width - 1) / width * width + 64 / static_cast<int64_t>(sizeof(T));
  T *panels = aligned<T>(padded * kWidth), *rows = aligned<T>(padded * stride), *norms = aligned<T>(padded);
  int32_t *classes = aligned<int32_t>(padded), *index = aligned<int32_t>(padded);
  unsigned state = 1;
  for (int64_t i = 0; i < padded; ++i) {
    classes[i] = i < kRows ? static_cast<int32_t>(i * kClasses / kRows) : -1;
    index[i] = i < kRows ? static_cast<int32_t>(i) : -1;
    for (int64_t k = 0; k < kWidth && i < kRows; ++k) {
      state = state * 1664525u + 1013904223u;
      rows[i * stride + k] = static_cast<T>((state >> 8) / 16777216.0 - 0.5);
    }
    const T norm = std::sqrt(kernel.sum_squares(rows + i * stride, kWidth));
    if (i < kRows) kernel.scale(rows + i * stride, kWidth, 1 / norm);
    norms[i] = i < kRows ? T(1) : kFar<T>;
    for (int64_t k = 0; k < kWidth && i < kRows; ++k) unit.push_back(rows[i * stride + k]);
  }
  for (int64_t p = 0; p < padded; p += width) kernel.pack_panel(rows + p * stride, stride, kWidth, panels + p * kWidth);
  return {kRows, padded, kWidth, stride, panels, rows, norms, classes, nullptr, index};
}

double distance(const std::vector<double>& unit, int64_t i, int64_t j) {
  double squared = 0;
  for (int64_t k = 0; k < kWidth; ++k) squared += std::pow(unit[i * kWidth + k] - unit[j * kWidth + k], 2);
  return std::sqrt(squared);
}

template <class Run>
void for_each_tile(const TileSchedule& schedule, const Run& run) {
  for (int64_t round = 0; round < schedule.rounds(); ++round)
    for (int64_t task = 0; task < schedule.tasks(round); ++task)
      if (const TilePair t = schedule.at(round, task); t.valid) run(t);
}

struct ClassRanges {
  std::vector<int64_t> begin, end;

  explicit ClassRanges(const int32_t* classes) : begin(kRows), end(kRows) {
    for (int64_t i = 0; i < kRows; ++i) {
      for (begin[i] = i; begin[i] > 0 && classes[begin[i] - 1] == classes[i];) --begin[i];
      for (end[i] = i; end[i] < kRows && classes[end[i]] == classes[i];) ++end[i];
    }
  }
};

}  // namespace
