// dmlkernels._C: facts about this build for Python. It takes no Tensor and includes no torch header, so that it can be
// imported and asked before any operator library is loaded.

#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "common/tile_schedule.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace {

py::list split(const char* text) {
  py::list items;
  std::istringstream stream(text);
  for (std::string item; stream >> item;) items.append(item);
  return items;
}

py::dict build_info() {
  py::dict info;
  info["version"] = DML_VERSION;
  info["compiler"] = DML_COMPILER;
  info["build_type"] = DML_BUILD_TYPE;
  info["cpu_isas"] = split(DML_CPU_ISAS);
  info["cuda"] = *DML_CUDA_ARCHITECTURES != '\0';
  info["cuda_version"] = DML_CUDA_VERSION;
  info["cuda_architectures"] = split(DML_CUDA_ARCHITECTURES);
  info["torch_version"] = DML_TORCH_VERSION;
  return info;
}

// major and minor of the oldest torch whose stable ABI the libraries use.
py::dict constants() {
  constexpr unsigned long long target = TORCH_TARGET_VERSION;
  py::dict values;
  values["torch_target_version"] = py::make_tuple(target >> 56, (target >> 48) & 0xff);
  values["tile"] = dml::kTile;
  return values;
}

// Rounds of (row tile, column tile, part): what runs at the same time.
py::list tile_schedule(int64_t rows, int64_t cols, bool self) {
  const auto schedule = dml::TileSchedule::make(rows, cols, self);
  py::list rounds;
  for (int64_t round = 0; round < schedule.rounds(); ++round) {
    py::list pairs;
    for (int64_t task = 0; task < schedule.tasks(round); ++task) {
      const auto pair = schedule.at(round, task);
      if (pair.valid) pairs.append(py::make_tuple(pair.row, pair.col, pair.part));
    }
    rounds.append(pairs);
  }
  return rounds;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Facts about the compiled part of dmlkernels.";
  module.def("build_info", &build_info, "How the compiled libraries were built.");
  module.def(
      "cpu_capability", [] { return dml::isa_name(dml::cpu_isa()); },
      "The kernel units in use: 'plain', 'avx2' or 'avx512'. ValueError: DMLKERNELS_CPU_ISA asks for what is not "
      "there.");
  module.def(
      "tile_schedule", &tile_schedule, py::arg("rows"), py::arg("cols"), py::arg("self_mode"),
      "Rounds of tiles (row tile, column tile, part) for rows x cols pairs; no two tiles of a round write to the "
      "same rows.");
  module.def("constants", &constants, "Compile-time constants shared by all kernels.");
}
