// What a launch asks of CUDA's runtime and leaves in it: launch attribute|launch|limits|earlier. Prints a line.

#include "cuda/launch.cuh"

#include <cstdio>
#include <string>

namespace {

DML_KERNEL(32) kernel(int) {}

void launch_with(size_t shared) { dml::launch(kernel, dim3(1), 32, shared, nullptr, 1); }

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 2;
  const std::string what = arguments[1];
  if (what == "limits") {
    for (const size_t shared : {1000, 50000, 99000, 60000}) launch_with(shared);
    for (const int limit : runtime.limits) std::printf("%d ", limit);
    return 0;
  }
  if (what == "earlier") runtime.last = cudaErrorInvalidValue;
  if (what == "attribute") runtime.of_attribute = cudaErrorInvalidValue;
  if (what == "launch") runtime.of_launch = cudaErrorInvalidConfiguration;
  try {
    launch_with(50000);
    std::printf("launched");
  } catch (const std::exception& error) {
    std::printf("%s", error.what());
  }
  std::printf("; launches: %d, left: %d", runtime.launches, runtime.last);
  return 0;
}
