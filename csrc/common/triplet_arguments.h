#pragma once
// What the arguments of triplet say.

#include "common/pair_arguments.h"
#include "common/tile_schedule.h"

namespace dml {

struct TripletOptions {
  bool semihard;
  double margin;
  bool soft;

  template <class Taken>
  explicit TripletOptions(const Taken& a) : semihard(a.negative == "semihard"), margin(a.margin), soft(a.soft) {}
  // Shape of tile_active, which only the triplets with all negatives have.
  int64_t tiles(int64_t rows) const { return semihard ? 0 : (rows + kTile - 1) / kTile; }
};

}  // namespace dml
