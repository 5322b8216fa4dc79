#include "ptx/library.h"

#include <atomic>
#include <mutex>
#include <unordered_map>

#include "cuda_host/shim.h"
#include "ptx/block.h"
#include "ptx/memory.h"
#include "ptx/module.h"
#include "ptx/text.h"

namespace ptx {
namespace {

thread_local std::string error;
std::atomic<uint64_t> seed{0};
std::mutex mutex;
TensorCores tensor_cores;

struct Bound {
  Module* module = nullptr;
  std::string entry;
};
std::unordered_map<const void*, Bound> kernels;

// What `act` gives, or what stands for its failure.
template <class Act, class R>
R guarded(R failed, Act&& act) {
  try {
    return act();
  } catch (const std::exception& thrown) {
    error = thrown.what();
    return failed;
  }
}

TensorCores chosen_tensor_cores() {
  const std::lock_guard lock(mutex);
  return tensor_cores;
}

void launch(Module& module, const std::string& entry, Three grid, Three block, size_t dynamic_shared,
            std::vector<unsigned char> parameters) {
  ++module.tally(entry).launches;
  module.tally(entry).instructions += run(
      Launch{module.program(entry), grid, block, dynamic_shared, std::move(parameters), seed, chosen_tensor_cores()});
}

std::vector<unsigned char> parameters_of(const Program& program, const cuda_host::Launch& launch) {
  if (launch.count != program.parameters.size()) throw Error("another number of parameters: " + program.name);
  std::vector<unsigned char> all(program.parameter_bytes);
  for (size_t k = 0; k < launch.count; ++k) {
    const Parameter& parameter = program.parameters[k];
    if (launch.sizes[k] != parameter.bytes)
      throw Error("parameter " + std::to_string(k) + " has another size: " + program.name);
    memcpy(all.data() + parameter.offset, launch.arguments[k], parameter.bytes);
  }
  return all;
}

Bound bound(const void* kernel) {
  const std::lock_guard lock(mutex);
  const auto found = kernels.find(kernel);
  if (found == kernels.end()) throw Error("no PTX stands for the kernel that is launched");
  return found->second;
}

}  // namespace
}  // namespace ptx

const char* dmlkernels_ptx_error() { return ptx::error.c_str(); }

ptx::Module* dmlkernels_ptx_load(const char* text) {
  return ptx::guarded(static_cast<ptx::Module*>(nullptr), [&] { return new ptx::Module(text); });
}

void dmlkernels_ptx_free(ptx::Module* module) { delete module; }

const char* dmlkernels_ptx_entries(ptx::Module* module) {
  thread_local std::string names;
  names.clear();
  for (const std::string& name : module->entries()) names += name + "\n";
  return names.c_str();
}

int dmlkernels_ptx_parameters(ptx::Module* module, const char* entry, size_t* offsets, size_t* sizes, int asked) {
  return ptx::guarded(-1, [&] {
    const auto& parameters = module->program(entry).parameters;
    const auto count = static_cast<int>(parameters.size());
    for (int k = 0; k < std::min(asked, count); ++k) {
      offsets[k] = parameters[static_cast<size_t>(k)].offset;
      sizes[k] = parameters[static_cast<size_t>(k)].bytes;
    }
    return count;
  });
}

int dmlkernels_ptx_launch(ptx::Module* module, const char* entry, const unsigned* grid, const unsigned* block,
                          size_t dynamic_shared, const void* parameters, size_t parameter_bytes) {
  return ptx::guarded(-1, [&] {
    const auto* bytes = static_cast<const unsigned char*>(parameters);
    ptx::launch(*module, entry, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, dynamic_shared,
                {bytes, bytes + parameter_bytes});
    return 0;
  });
}

int dmlkernels_ptx_launches(ptx::Module* module, const char* entry) {
  return ptx::guarded(-1, [&] { return static_cast<int>(module->tally(entry).launches); });
}

int64_t dmlkernels_ptx_instructions(ptx::Module* module, const char* entry) {
  return ptx::guarded(int64_t{-1}, [&] { return static_cast<int64_t>(module->tally(entry).instructions); });
}

void dmlkernels_ptx_seed(uint64_t seed) { ptx::seed = seed; }

void dmlkernels_ptx_tensor_cores(int extra_bits, int together) {
  const std::lock_guard lock(ptx::mutex);
  ptx::tensor_cores = {extra_bits, together};
}

void dmlkernels_ptx_add_memory(const void* at, size_t bytes) {
  ptx::allocations().add(reinterpret_cast<uintptr_t>(at), bytes);
}

void dmlkernels_ptx_remove_memory(const void* at) { ptx::allocations().remove(reinterpret_cast<uintptr_t>(at)); }

void dmlkernels_ptx_bind(const void* kernel, ptx::Module* module, const char* entry) {
  const std::lock_guard lock(ptx::mutex);
  ptx::kernels[kernel] = {module, entry};
}

bool dmlkernels_ptx_run_kernel(const cuda_host::Launch& launch) {
  const ptx::Bound kernel = ptx::bound(launch.kernel);
  const auto three = [](const dim3& of) { return ptx::Three{of.x, of.y, of.z}; };
  ptx::launch(*kernel.module, kernel.entry, three(launch.grid), three(launch.block), launch.shared,
              ptx::parameters_of(kernel.module->program(kernel.entry), launch));
  return true;
}

bool dmlkernels_ptx_count_kernel(const cuda_host::Launch& launch) {
  const ptx::Bound kernel = ptx::bound(launch.kernel);
  ++kernel.module->tally(kernel.entry).launches;
  return false;
}
