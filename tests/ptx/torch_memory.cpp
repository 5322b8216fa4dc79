// The allocator of torch's CPU tensors, which tells the interpreter what it gives and takes back.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include "ptx/library.h"
#include "ptx/memory.h"

namespace {

c10::DeleterFnPtr own_deleter = nullptr;

void give_back(void* memory) {
  ptx::allocations().remove(reinterpret_cast<uintptr_t>(memory));
  own_deleter(memory);
}

// Torch keeps it for good, and asks it for raw memory too: what is given back is the address itself.
class Watched final : public c10::Allocator {
 public:
  explicit Watched(c10::Allocator* own) : own_(own) { own_deleter = own->raw_deleter(); }

  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr given = own_->allocate(bytes);
    const c10::Device device = given.device();
    void* const memory = given.release_context();
    ptx::allocations().add(reinterpret_cast<uintptr_t>(memory), bytes);
    return {memory, memory, give_back, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { own_->copy_data(to, from, bytes); }

 private:
  c10::Allocator* own_;
};

}  // namespace

void dmlkernels_ptx_watch_torch() {
  static Watched watched(c10::GetDefaultCPUAllocator());
  c10::SetCPUAllocator(&watched, 1);
}
