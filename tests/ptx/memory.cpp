#include "ptx/memory.h"

#include <mutex>

namespace ptx {

void Allocations::add(uintptr_t begin, size_t bytes) {
  const std::unique_lock lock(mutex_);
  ends_[begin] = begin + bytes;
}

void Allocations::remove(uintptr_t begin) {
  const std::unique_lock lock(mutex_);
  ends_.erase(begin);
}

Extent Allocations::around(uintptr_t address) const {
  const std::shared_lock lock(mutex_);
  auto next = ends_.upper_bound(address);
  if (next == ends_.begin()) return {};
  const auto [begin, end] = *--next;
  return address < end ? Extent{begin, end} : Extent{};
}

Allocations& allocations() {
  static Allocations all;
  return all;
}

}  // namespace ptx
