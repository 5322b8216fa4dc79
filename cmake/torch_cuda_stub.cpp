// Stands in for libtorch_cuda.so where torch is a CPU build. Only its name and these names matter, and only to the
// linker: the CUDA library must list libtorch_cuda.so as needed, because torch loads it without making its functions
// visible to others, and an undefined function that is not listed here is a mistake.

extern "C" {
void aoti_torch_get_current_cuda_stream() {}
void torch_c10_cuda_check_msg() {}
void torch_c10_cuda_free_error_msg() {}
}
