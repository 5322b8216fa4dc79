// Runs one case under several seeds, and prints for each a line with the bits of what came out, or the error:
// driver NAME fault|right SEED...

#include "cuda_host/driver.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

extern "C" void dmlkernels_cuda_host_seed(uint64_t value);

namespace cuda_host {

static std::map<std::string, Case>& cases() {
  static std::map<std::string, Case> all;
  return all;
}

bool add_case(const char* name, Case run) { return cases().emplace(name, run).second; }

}  // namespace cuda_host

int main(int count, char** arguments) {
  if (count < 4) return 2;
  const auto found = cuda_host::cases().find(arguments[1]);
  if (found == cuda_host::cases().end()) return 2;
  const bool right = strcmp(arguments[2], "right") == 0;
  for (int k = 3; k < count; ++k) {
    dmlkernels_cuda_host_seed(std::strtoull(arguments[k], nullptr, 10));
    try {
      for (const float x : found->second(right)) std::printf("%08x ", __float_as_uint(x));
      std::printf("\n");
    } catch (const std::exception& error) {
      std::printf("error: %s\n", error.what());
    }
  }
  return 0;
}
