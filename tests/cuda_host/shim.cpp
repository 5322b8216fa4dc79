#include "cuda_host/shim.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#error "the fibers of tests/cuda_host switch their contexts in x86-64 assembly"
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

// Saves what the calling convention asks a function to keep, and goes on with another stack. 7 ns; swapcontext, which
// also saves the signal mask, takes 220.
asm(R"(
.text
.globl cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");
extern "C" void cuda_host_switch(void** save, void* load);

namespace cuda_host {
namespace {

constexpr size_t kStack = 256 * 1024, kGuard = 4096;
constexpr size_t kAlign = 128, kCanary = 256;
constexpr int kWarpSize = 32;
constexpr size_t kSharedLimit = 99 * 1024;
constexpr unsigned kMostBlocksOnX = 0x7fffffff, kMostBlocksOnYZ = 0xffff;
constexpr unsigned char kNanByte = 0xff;
// Beyond the shared memory: NaN in every floating type too, but neither what kernels write as NaN nor -1.
constexpr unsigned char kCanaryBytes[2] = {0xfe, 0xff};

std::atomic<uint64_t> seed{[] {
  const char* text = std::getenv("DMLKERNELS_CUDA_HOST_SEED");
  return text == nullptr ? 0ull : std::strtoull(text, nullptr, 10);
}()};

std::atomic<bool> runs{true};
std::atomic<Launcher> launcher{nullptr};

struct Copy {
  void* to;
  const void* from;
  size_t size, valid;
};

enum class State { runnable, at_block_barrier, at_warp_barrier, done };

// What the lanes of one exchange brought, for as long as one of them may read it.
struct Exchange {
  unsigned readers = 0;
  alignas(64) unsigned char deposits[kWarpSize * kDeposit];
};

struct Warp {
  unsigned char brought[kWarpSize * kDeposit];
  std::deque<Exchange> exchanges;

  Exchange& unused() {
    for (Exchange& exchange : exchanges)
      if (exchange.readers == 0) return exchange;
    return exchanges.emplace_back();
  }
};

struct Fiber {
  unsigned char* stack = nullptr;
  void* pointer = nullptr;  // stack pointer while it does not run
  void* fake_stack = nullptr;
  State state = State::done;
  dim3 index;
  unsigned mask = 0;
  Site site;
  Exchange* exchange = nullptr;  // the last one, which this lane may still read
  int predicate = 0;
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

class Block;
thread_local Block* current_block = nullptr;

class Block {
 public:
  Indices where;
  unsigned char* shared = nullptr;
  int current = -1, votes = 0;
  std::vector<Warp> warps;

  Block(dim3 grid, dim3 size, size_t shared_size, const std::function<void()>& kernel)
      : warps((size.x * size.y * size.z + kWarpSize - 1) / kWarpSize),
        kernel_(kernel),
        shared_size_(shared_size),
        count_(static_cast<int>(size.x * size.y * size.z)) {
    where.block_size = size;
    where.grid_size = grid;
    if (grid.x > kMostBlocksOnX || grid.y > kMostBlocksOnYZ || grid.z > kMostBlocksOnYZ)
      throw std::runtime_error("cuda_host: a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) +
                               " x " + std::to_string(grid.z) +
                               " blocks, more than 2147483647 on x or 65535 on y or z");
    if (count_ > 1024) throw std::runtime_error("cuda_host: a block has at most 1024 threads");
    if (shared_size > kSharedLimit)
      throw std::runtime_error("cuda_host: a block asks for " + std::to_string(shared_size) +
                               " bytes of shared memory, more than the 99 KiB that every device has");
    memory_.resize(shared_size + kCanary + kAlign);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    shared = memory_.data() + (kAlign - address % kAlign) % kAlign;
    thread_local std::vector<Fiber> all;
    while (static_cast<int>(all.size()) < count_) all.push_back(make_fiber());
    fibers_ = all.data();
  }
  ~Block() { ASAN_UNPOISON_MEMORY_REGION(memory_.data(), memory_.size()); }

  void run_grid() {
    const dim3 grid = where.grid_size;
    std::vector<size_t> order(size_t{grid.x} * grid.y * grid.z);
    std::iota(order.begin(), order.end(), size_t{0});
    random_.seed(static_cast<unsigned>(seed.load()));
    std::shuffle(order.begin(), order.end(), random_);
    for (size_t k : order) {
      const size_t row = k / grid.x;
      run(dim3(static_cast<unsigned>(k % grid.x), static_cast<unsigned>(row % grid.y),
               static_cast<unsigned>(row / grid.y)));
    }
  }

  Fiber& self() { return fibers_[current]; }

  bool is_shared(const void* at, size_t size) const {
    const auto* first = static_cast<const unsigned char*>(at);
    return first >= shared && first + size <= shared + shared_size_;
  }

  void wait_for_block(const Site& site) {
    self().site = site;
    self().state = State::at_block_barrier;
    if (all_at(site)) {
      votes = 0;
      for (int k = 0; k < count_; ++k) {
        votes += fibers_[k].predicate != 0;
        wake(k);
      }
    }
    leave();
  }

  const unsigned char* exchange(unsigned mask, const void* value, size_t size, const Site& site) {
    const int first = current / kWarpSize * kWarpSize, lane = current - first;
    Fiber& me = self();
    Warp& warp = warps[current / kWarpSize];
    if ((mask >> lane & 1u) == 0) fail_in_kernel("a lane is not in the mask of its own warp operation", site);
    if (me.exchange != nullptr) me.exchange->readers &= ~(1u << lane);
    if (size > 0) memcpy(warp.brought + lane * kDeposit, value, size);
    me.mask = mask;
    me.site = site;
    me.state = State::at_warp_barrier;
    for (int k = 0; k < kWarpSize; ++k) {
      if ((mask >> k & 1u) != 0 && (first + k >= count_ || !waits_with(fibers_[first + k], me))) {
        leave();
        return self().exchange->deposits;
      }
    }
    Exchange& exchange = warp.unused();
    exchange.readers = mask;
    for (int k = 0; k < kWarpSize; ++k) {
      if ((mask >> k & 1u) == 0) continue;
      memcpy(exchange.deposits + k * kDeposit, warp.brought + k * kDeposit, size);
      fibers_[first + k].exchange = &exchange;
      if (k != lane) wake(first + k);
    }
    me.state = State::runnable;  // the last to come goes on
    return exchange.deposits;
  }

  // Abandons the block: the fibers are not resumed, and kernels own nothing that would need unwinding.
  [[noreturn]] void fail(const std::string& what) {
    failure = what;
    for (;;) leave();
  }
  std::string failure;

 private:
  const std::function<void()>& kernel_;
  size_t shared_size_;
  int count_, live_ = 0;
  Fiber* fibers_;  // the thread's, kept from launch to launch
  std::vector<unsigned char> memory_;
  std::vector<int> runnable_;
  std::mt19937 random_;
  void* scheduler_ = nullptr;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_size_ = 0;

  void run(dim3 block) {
    where.block = block;
    ASAN_UNPOISON_MEMORY_REGION(shared, shared_size_ + kCanary);
    std::fill_n(shared, shared_size_, kNanByte);
    for (size_t k = 0; k < kCanary; ++k) shared[shared_size_ + k] = kCanaryBytes[k % 2];
    ASAN_POISON_MEMORY_REGION(shared + shared_size_, kCanary);
    for (Warp& warp : warps)
      for (Exchange& exchange : warp.exchanges) exchange.readers = 0;
    runnable_.clear();
    for (int k = 0; k < count_; ++k) start(k);
    live_ = count_;
    while (live_ > 0) {
      if (runnable_.empty()) throw std::runtime_error("cuda_host: divergent barrier: " + who_waits());
      const size_t pick = random_() % runnable_.size();
      const int next = runnable_[pick];
      runnable_[pick] = runnable_.back();
      runnable_.pop_back();
      resume(next);
      if (!failure.empty()) throw std::runtime_error("cuda_host: " + failure);
    }
    ASAN_UNPOISON_MEMORY_REGION(shared + shared_size_, kCanary);
    for (size_t k = 0; k < kCanary; ++k)
      if (shared[shared_size_ + k] != kCanaryBytes[k % 2])
        throw std::runtime_error("cuda_host: a kernel wrote beyond the " + std::to_string(shared_size_) +
                                 " bytes of shared memory it asked for, at byte " + std::to_string(shared_size_ + k));
  }

  static Fiber make_fiber() {
    Fiber fiber;
    void* memory = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuard, PROT_NONE);
    fiber.stack = static_cast<unsigned char*>(memory) + kGuard;
    return fiber;
  }

  static bool same_site(const Site& a, const Site& b) {
    return a.line() == b.line() && a.column() == b.column() &&
           (a.file_name() == b.file_name() || strcmp(a.file_name(), b.file_name()) == 0);
  }
  static bool waits_with(const Fiber& other, const Fiber& me) {
    return other.state == State::at_warp_barrier && other.mask == me.mask && same_site(other.site, me.site);
  }
  bool all_at(const Site& site) {
    for (int k = 0; k < count_; ++k)
      if (fibers_[k].state != State::at_block_barrier || !same_site(fibers_[k].site, site)) return false;
    return true;
  }

  std::string who_waits() {
    std::map<std::string, int> groups;
    for (int k = 0; k < count_; ++k) {
      const Fiber& fiber = fibers_[k];
      const std::string place = std::string(fiber.site.file_name()) + ":" + std::to_string(fiber.site.line());
      ++groups[fiber.state == State::done               ? "have returned"
               : fiber.state == State::at_block_barrier ? "wait for their block at " + place
                                                        : "wait for their warp at " + place];
    }
    std::string text;
    for (const auto& [what, number] : groups)
      text += (text.empty() ? "" : ", ") + std::to_string(number) + " threads " + what;
    return text;
  }

  void wake(int k) {
    fibers_[k].state = State::runnable;
    runnable_.push_back(k);
  }

  void start(int k) {
    Fiber& fiber = fibers_[k];
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStack);
    const dim3 size = where.block_size;
    const auto n = static_cast<unsigned>(k);
    fiber.index = dim3(n % size.x, n / size.x % size.y, n / (size.x * size.y));
    fiber.open.clear();
    fiber.groups.clear();
    fiber.exchange = nullptr;
    fiber.fake_stack = nullptr;
    // Six registers to pop and the entry to return to; the stack is aligned as after a call.
    auto* top = reinterpret_cast<void**>(fiber.stack + kStack - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&Block::entry);
    for (int r = 0; r < 6; ++r) *--top = nullptr;
    fiber.pointer = top;
    wake(k);
  }

  static void entry() {
    Block& block = *current_block;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack_, &block.scheduler_size_);
#endif
    block.kernel_();
    Fiber& me = block.self();
    me.state = State::done;
    --block.live_;
    block.leave(true);
    std::abort();
  }

  void resume(int k) {
    current = k;
    Fiber& fiber = fibers_[k];
    where.thread = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fiber.stack, kStack);
#endif
    cuda_host_switch(&scheduler_, fiber.pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
  }

  void leave([[maybe_unused]] bool forever = false) {
    Fiber& me = self();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(forever ? nullptr : &me.fake_stack, scheduler_stack_, scheduler_size_);
#endif
    cuda_host_switch(&me.pointer, scheduler_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(me.fake_stack, &scheduler_stack_, &scheduler_size_);
#endif
  }
};

void finish(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    memcpy(copy.to, copy.from, copy.valid);
    memset(static_cast<unsigned char*>(copy.to) + copy.valid, 0, copy.size - copy.valid);
  }
}

}  // namespace

const Indices& indices() { return current_block->where; }
unsigned char* shared_memory() { return current_block->shared; }
int lane() { return current_block->current % kWarpSize; }

void run(const Launch& launch, const std::function<void()>& kernel) {
  Block work(launch.grid, launch.block, launch.shared, kernel);
  if (!runs) return;
  if (const Launcher other = launcher; other != nullptr && other(launch)) return;
  current_block = &work;
  work.run_grid();
}

void block_barrier(const Site& site) { current_block->wait_for_block(site); }

const unsigned char* warp_exchange(unsigned mask, const void* value, size_t size, const Site& site) {
  return current_block->exchange(mask, value, size, site);
}

void fail_in_kernel(const char* what, const Site& site) {
  current_block->fail(std::string(what) + " at " + site.file_name() + ":" + std::to_string(site.line()));
}

void copy_async(void* to, const void* from, size_t size, size_t valid, const Site& site) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % size != 0)
    fail_in_kernel("a copy of misaligned addresses", site);
  if (!current_block->is_shared(to, size)) fail_in_kernel("a copy to what is not shared memory", site);
  memset(to, kNanByte, size);
  current_block->self().open.push_back(Copy{to, from, size, valid});
}

void copy_async_commit() {
  Fiber& me = current_block->self();
  me.groups.push_back(std::move(me.open));
  me.open.clear();
}

void copy_async_wait(int groups_in_flight) {
  auto& groups = current_block->self().groups;
  while (static_cast<int>(groups.size()) > groups_in_flight) {
    finish(groups.front());
    groups.erase(groups.begin());
  }
}

}  // namespace cuda_host

int __syncthreads_count(int predicate, const cuda_host::Site& site) {
  cuda_host::current_block->self().predicate = predicate;
  cuda_host::block_barrier(site);
  const int votes = cuda_host::current_block->votes;
  cuda_host::current_block->self().predicate = 0;
  return votes;
}

int __syncthreads_or(int predicate, const cuda_host::Site& site) { return __syncthreads_count(predicate, site) != 0; }

// The order of the fibers from the next launch on.
extern "C" __attribute__((visibility("default"))) void dmlkernels_cuda_host_seed(uint64_t value) {
  cuda_host::seed = value;
}

// Whether launches run from now on, or are only checked: sizes that a device has memory and time for, and a test has
// not.
extern "C" __attribute__((visibility("default"))) void dmlkernels_cuda_host_run(bool value) { cuda_host::runs = value; }

// Who is asked first of every later launch; null for nobody.
extern "C" __attribute__((visibility("default"))) void dmlkernels_cuda_host_launch_by(cuda_host::Launcher launcher) {
  cuda_host::launcher = launcher;
}
