#pragma once
// Runs a kernel on every tile of a schedule: rounds one after the other, the tiles of a round in parallel.

#include <torch/csrc/stable/ops.h>

#include "common/tile_schedule.h"

namespace dml {

template <class Run>
void for_each_tile(const TileSchedule& schedule, const Run& run) {
  for (int64_t round = 0; round < schedule.rounds(); ++round)
    torch::stable::parallel_for(0, schedule.tasks(round), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const TilePair pair = schedule.at(round, task);
        if (pair.valid) run(pair);
      }
    });
}

}  // namespace dml
