#pragma once
// Global memory is the host's own. What a kernel may touch of it are the allocations that are known here.

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <shared_mutex>

namespace ptx {

struct Extent {
  uintptr_t begin = 0, end = 0;

  bool holds(uintptr_t address, size_t bytes) const { return address >= begin && address + bytes <= end; }
};

class Allocations {
 public:
  void add(uintptr_t begin, size_t bytes);
  void remove(uintptr_t begin);
  // The one that an address lies in; empty where there is none.
  Extent around(uintptr_t address) const;

 private:
  mutable std::shared_mutex mutex_;
  std::map<uintptr_t, uintptr_t> ends_;  // by their beginnings
};

Allocations& allocations();

// Generic addresses of what is not global lie in windows where no host has memory. Within its space a byte has the low
// bits; shared memory begins where it does on a GPU, behind what the system keeps.
enum class Space : uint8_t { generic, global, shared, local, param };
constexpr int kWindowBits = 56;
constexpr uint64_t window(Space space) { return static_cast<uint64_t>(space) << kWindowBits; }
constexpr uint64_t kSharedBegin = 1024;

}  // namespace ptx
