#pragma once

namespace dml {

using Stream = void*;  // cudaStream_t, in headers that know neither CUDA nor torch

}  // namespace dml
