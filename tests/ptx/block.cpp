#include "ptx/block.h"

#include <algorithm>
#include <numeric>

#include "ptx/text.h"

namespace ptx {
namespace {

constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = 163 * 1024;  // of sm_80
constexpr unsigned kMostOfAxis[3] = {0x7fffffffu, 65535u, 65535u};
constexpr unsigned char kNanByte = 0xff;
// A turn of a warp has up to 2^12 instructions, a short one as often as a long one.
constexpr unsigned kTurnBits = 13;
constexpr int kMostTurns = 1 << 22;

unsigned product(const Three& size) { return size[0] * size[1] * size[2]; }

void check(const Launch& launch) {
  const Program& program = launch.program;
  const auto refuse = [&](const std::string& what) { throw Error(what + ": " + program.name); };
  if (launch.parameters.size() != program.parameter_bytes)
    refuse("the kernel has " + std::to_string(program.parameter_bytes) + " bytes of parameters, not " +
           std::to_string(launch.parameters.size()));
  const unsigned threads = product(launch.block);
  const unsigned most = program.most_threads[0] == 0 ? kMostThreads : product(program.most_threads);
  if (threads == 0 || threads > most) refuse("a block of " + std::to_string(threads) + " threads is too large");
  if (program.required_threads[0] != 0 && program.required_threads != launch.block)
    refuse("the kernel wants another number of threads than " + std::to_string(threads));
  if (program.static_shared + launch.dynamic_shared > kMostShared) refuse("a block asks for too much shared memory");
  for (int axis = 0; axis < 3; ++axis)
    if (launch.grid[static_cast<size_t>(axis)] > kMostOfAxis[axis]) refuse("the grid is too large");
}

}  // namespace

uint64_t run(const Launch& launch) {
  check(launch);
  Block block(launch);
  block.run_grid();
  return block.instructions();
}

Block::Block(const Launch& launch)
    : launch_(launch),
      threads_(product(launch.block)),
      random_(static_cast<unsigned>(launch.seed)),
      shared_(launch.program.static_shared + launch.dynamic_shared) {
  warps_.resize((threads_ + kLanes - 1) / kLanes);
  for (auto& warp : warps_) warp = std::make_unique<Warp>(*this, launch.program);
}

void Block::run_grid() {
  const Three& grid = launch_.grid;
  std::vector<size_t> order(size_t{grid[0]} * grid[1] * grid[2]);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), random_);
  for (const size_t k : order) {
    const size_t row = k / grid[0];
    index_ = {static_cast<unsigned>(k % grid[0]), static_cast<unsigned>(row % grid[1]),
              static_cast<unsigned>(row / grid[1])};
    run_block();
  }
}

uint64_t Block::instructions() const {
  return std::accumulate(warps_.begin(), warps_.end(), uint64_t{0},
                         [](uint64_t sum, const auto& warp) { return sum + warp->instructions(); });
}

void Block::run_block() {
  std::fill(shared_.begin(), shared_.end(), kNanByte);
  barriers_.clear();
  for (unsigned w = 0; w < warps(); ++w) {
    const unsigned lanes = std::min<unsigned>(kLanes, threads_ - w * kLanes);
    warps_[w]->start(w, lanes == kLanes ? kAllLanes : (1u << lanes) - 1);
  }
  std::vector<Warp*> runnable;
  for (int turn = 0;; ++turn) {
    if (turn == kMostTurns) throw Error("the kernel does not end: " + launch_.program.name);
    runnable.clear();
    for (const auto& warp : warps_)
      if (warp->runnable()) runnable.push_back(warp.get());
    if (runnable.empty()) break;
    Warp& next = *runnable[random_() % runnable.size()];
    next.run(static_cast<int>(1u << random_() % kTurnBits));
  }
  if (std::any_of(warps_.begin(), warps_.end(), [](const auto& warp) { return warp->live() != 0; }))
    throw Error("divergent barrier: " + who_waits() + ": " + launch_.program.name);
}

void Block::arrive(Warp& warp, unsigned number, unsigned threads, Mask predicate, Release release) {
  Barrier& barrier = barriers_[number];
  if (threads == 0) threads = warps() * kLanes;
  if (threads % kLanes != 0 || threads > warps() * kLanes)
    warp.fail("a barrier for " + std::to_string(threads) + " threads");
  if (barrier.place == nullptr) {
    barrier.place = &warp.place();
    barrier.threads = threads;
  } else if (barrier.place != &warp.place()) {
    warp.fail("divergent barrier: other warps wait at line " + std::to_string(barrier.place->line));
  } else if (barrier.threads != threads) {
    warp.fail("other warps wait here for another number of threads");
  }
  barrier.arrivals.push_back({&warp, predicate});
  barrier.arrived += kLanes;
  if (barrier.arrived < barrier.threads) return;
  const Barrier complete = std::move(barrier);
  barriers_.erase(number);
  if (release) release(complete.arrivals);
  for (const Arrival& arrival : complete.arrivals) arrival.warp->leave_barrier();
}

std::string Block::who_waits() const {
  std::string text;
  unsigned gone = 0;
  for (const auto& warp : warps_)
    gone += warp->live() == 0 ? static_cast<unsigned>(__builtin_popcount(warp->lanes())) : 0;
  for (const auto& [number, barrier] : barriers_)
    text += std::to_string(barrier.arrived) + " threads wait at line " + std::to_string(barrier.place->line) + ", ";
  return text + std::to_string(gone) + " have returned";
}

}  // namespace ptx
