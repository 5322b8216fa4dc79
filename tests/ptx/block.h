#pragma once
// A launch: its blocks one after another, the warps of a block in turns between barriers, both in a random order.

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ptx/program.h"
#include "ptx/warp.h"

namespace ptx {

using Three = std::array<unsigned, 3>;

// How tensor cores add the products of one instruction to the accumulator: `together` of them at a time, aligned to the
// largest and cut off so many bits beyond the 24 of float32.
struct TensorCores {
  int extra_bits = 2, together = 16;
};

struct Launch {
  const Program& program;
  Three grid, block;
  size_t dynamic_shared;
  std::vector<unsigned char> parameters;
  uint64_t seed;
  TensorCores tensor_cores;
};

// How many instructions its threads have executed.
uint64_t run(const Launch& launch);

class Block {
 public:
  explicit Block(const Launch& launch);

  void run_grid();
  uint64_t instructions() const;

  const Launch& launch() const { return launch_; }
  const Three& index() const { return index_; }
  std::vector<unsigned char>& shared() { return shared_; }
  std::mt19937& random() { return random_; }
  unsigned warps() const { return static_cast<unsigned>(warps_.size()); }

  // All lanes of a warp have come to a barrier for so many threads, or all (0); where one is reduced, with their
  // predicate. What they are given then is done when the last has come.
  struct Arrival {
    Warp* warp;
    Mask predicate;
  };
  using Release = std::function<void(const std::vector<Arrival>&)>;
  void arrive(Warp& warp, unsigned barrier, unsigned threads, Mask predicate, Release release);

 private:
  struct Barrier {
    unsigned threads = 0, arrived = 0;
    const Instruction* place = nullptr;
    std::vector<Arrival> arrivals;
  };
  const Launch& launch_;
  Three index_{};
  unsigned threads_;
  std::mt19937 random_;
  std::vector<unsigned char> shared_;
  std::vector<std::unique_ptr<Warp>> warps_;
  std::map<unsigned, Barrier> barriers_;

  void run_block();
  std::string who_waits() const;
};

}  // namespace ptx
