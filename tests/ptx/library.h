#pragma once
// What Python calls (interpreter.py). Who gives a pointer or a number gives null or -1 where it failed, and
// dmlkernels_ptx_error says why.

#include <stddef.h>
#include <stdint.h>

#define DML_PTX_API extern "C" __attribute__((visibility("default")))

namespace ptx {
class Module;
}
namespace cuda_host {
struct Launch;
}

DML_PTX_API const char* dmlkernels_ptx_error();

DML_PTX_API ptx::Module* dmlkernels_ptx_load(const char* text);
DML_PTX_API void dmlkernels_ptx_free(ptx::Module* module);
// Names of the entries, a line each.
DML_PTX_API const char* dmlkernels_ptx_entries(ptx::Module* module);
// Assembles an entry. How many parameters it has; where they lie and how large they are, for as many as are asked for.
DML_PTX_API int dmlkernels_ptx_parameters(ptx::Module* module, const char* entry, size_t* offsets, size_t* sizes,
                                          int asked);
DML_PTX_API int dmlkernels_ptx_launch(ptx::Module* module, const char* entry, const unsigned* grid,
                                      const unsigned* block, size_t dynamic_shared, const void* parameters,
                                      size_t parameter_bytes);
// How often an entry has been launched.
DML_PTX_API int dmlkernels_ptx_launches(ptx::Module* module, const char* entry);
// The instructions that its threads have executed.
DML_PTX_API int64_t dmlkernels_ptx_instructions(ptx::Module* module, const char* entry);

// Of every launch from now on: the order of warps and blocks, and how tensor cores add (see TensorCores).
DML_PTX_API void dmlkernels_ptx_seed(uint64_t seed);
DML_PTX_API void dmlkernels_ptx_tensor_cores(int extra_bits, int together);

// Memory that kernels may touch: what is added here, and every CPU tensor that torch makes from now on.
DML_PTX_API void dmlkernels_ptx_add_memory(const void* at, size_t bytes);
DML_PTX_API void dmlkernels_ptx_remove_memory(const void* at);
DML_PTX_API void dmlkernels_ptx_watch_torch();

// The entry that stands for a kernel compiled for the host. Launchers: one runs it, one only counts that it is
// launched.
DML_PTX_API void dmlkernels_ptx_bind(const void* kernel, ptx::Module* module, const char* entry);
DML_PTX_API bool dmlkernels_ptx_run_kernel(const cuda_host::Launch& launch);
DML_PTX_API bool dmlkernels_ptx_count_kernel(const cuda_host::Launch& launch);
