#pragma once
// Which tiles of pairs run at the same time, so that no two of a round write to the same rows: every sum has one owner
// and one order, whatever the number of threads.

#include <stdint.h>

#include "common/hd.h"

namespace dml {
inline namespace DML_ISA {

constexpr int kTile = 128;  // 512 x 512 tiles at N = 65,536; three tiles of floats fit a 256 KB cache

struct TilePair {
  int64_t row, col, part;  // part: which partial sum of the row tile this pair adds to
  bool valid;
};

// Self: a round-robin tournament over the upper triangle (the circle method), after a first round of diagonal tiles.
// Otherwise: in round r, row tile i meets column tile (i + r) mod L of each part of the columns.
struct TileSchedule {
  int64_t row_tiles, col_tiles, parts, part_tiles;
  bool self;

  static TileSchedule make(int64_t rows, int64_t cols, bool self) {
    const int64_t row_tiles = (rows + kTile - 1) / kTile, col_tiles = (cols + kTile - 1) / kTile;
    // Few queries against a long gallery: the columns are cut into parts, or one thread would do all the work.
    int64_t parts = self || row_tiles == 0 ? 1 : 64 / row_tiles;
    parts = parts < 1 ? 1 : parts > 16 ? 16 : parts;
    if (parts > col_tiles) parts = col_tiles < 1 ? 1 : col_tiles;
    return TileSchedule{row_tiles, col_tiles, parts, (col_tiles + parts - 1) / parts, self};
  }
  int64_t players() const { return row_tiles + row_tiles % 2; }
  int64_t period() const { return row_tiles > part_tiles ? row_tiles : part_tiles; }
  int64_t rounds() const { return row_tiles == 0 || col_tiles == 0 ? 0 : self ? players() : period(); }
  int64_t tasks(int64_t round) const { return !self ? row_tiles * parts : round == 0 ? row_tiles : players() / 2; }
  TilePair at(int64_t round, int64_t task) const {
    if (!self) {
      const int64_t row = task / parts, part = task % parts, within = (row + round) % period();
      const int64_t col = part * part_tiles + within;
      return TilePair{row, col, part, within < part_tiles && col < col_tiles};
    }
    if (round == 0) return TilePair{task, task, 0, true};
    const int64_t last = players() - 1, r = round - 1;
    const int64_t a = task == 0 ? last : (r + task) % last, b = (r - task + last) % last;
    return TilePair{a < b ? a : b, a < b ? b : a, 0, a < row_tiles && b < row_tiles};
  }
};

}  // namespace DML_ISA
}  // namespace dml
