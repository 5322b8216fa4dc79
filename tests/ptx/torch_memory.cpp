// The allocator of torch's CPU tensors, which tells the interpreter what it gives and takes back.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include "ptx/library.h"
#include "ptx/memory.h"

namespace {

void give_back(void* context) {
  ptx::allocations().remove(reinterpret_cast<uintptr_t>(static_cast<c10::DataPtr*>(context)->get()));
  delete static_cast<c10::DataPtr*>(context);
}

class Watched final : public c10::Allocator {
 public:
  explicit Watched(c10::Allocator* own) : own_(own) {}

  c10::DataPtr allocate(size_t bytes) override {
    auto* memory = new c10::DataPtr(own_->allocate(bytes));
    ptx::allocations().add(reinterpret_cast<uintptr_t>(memory->get()), bytes);
    return {memory->get(), memory, give_back, memory->device()};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { own_->copy_data(to, from, bytes); }

 private:
  c10::Allocator* own_;
};

}  // namespace

void dmlkernels_ptx_watch_torch() {
  static Watched watched(c10::GetDefaultCPUAllocator());
  c10::SetCPUAllocator(&watched, 1);
}
