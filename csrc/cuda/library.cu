// Proves that libdmlkernels_cuda.so was compiled and which architectures it carries.

extern "C" __attribute__((visibility("default"))) const char* dmlkernels_cuda_architectures() {
  return DML_CUDA_ARCHITECTURES;
}
