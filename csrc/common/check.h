#pragma once
// Errors, which name op, argument, expected and got, and what every operator asks of a tensor.

#include <charconv>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "common/aten.h"

#define DML_CHECK(condition, op, argument, expected, got)                \
  do {                                                                   \
    if (!(condition)) dml::fail(op, argument, expected, dml::text(got)); \
  } while (0)

namespace dml {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string text(const std::string& value) { return value; }
inline std::string text(int64_t value) { return std::to_string(value); }
// As Python writes it.
inline std::string text(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const double size = std::fabs(value);
  const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  const std::string digits(buffer, end);
  return digits.find_first_of(".e") == std::string::npos ? digits + ".0" : digits;
}
inline std::string text(ScalarType type) {
  static constexpr std::pair<ScalarType, const char*> kNames[] = {{ScalarType::Double, "float64"},
                                                                  {ScalarType::Float, "float32"},
                                                                  {ScalarType::Half, "float16"},
                                                                  {ScalarType::BFloat16, "bfloat16"},
                                                                  {ScalarType::Long, "int64"},
                                                                  {ScalarType::Int, "int32"},
                                                                  {ScalarType::Short, "int16"},
                                                                  {ScalarType::Char, "int8"},
                                                                  {ScalarType::Byte, "uint8"},
                                                                  {ScalarType::Bool, "bool"},
                                                                  {ScalarType::ComplexFloat, "complex64"},
                                                                  {ScalarType::ComplexDouble, "complex128"}};
  for (const auto& [known, name] : kNames)
    if (known == type) return name;
  return torch::headeronly::toString(type);
}
inline std::string text(const torch::stable::Device& device) {
  if (device.type() == torch::headeronly::DeviceType::CPU) return "cpu";
  if (device.type() != torch::headeronly::DeviceType::CUDA) return "another device";
  return "cuda:" + std::to_string(device.index());
}
inline std::string text(const Tensor& tensor) {
  std::string shape = "(";
  for (int64_t k = 0; k < tensor.dim(); ++k) shape += (k ? ", " : "") + std::to_string(tensor.size(k));
  return shape + (tensor.dim() == 1 ? ",)" : ")");
}

// std::invalid_argument is a ValueError in Python.
[[noreturn]] inline void fail(const char* op, const char* argument, const std::string& expected,
                              const std::string& got) {
  throw std::invalid_argument(std::string(op) + ": " + argument + " must be " + expected + ", got " + got);
}

inline void check_finite(const char* op, bool any_non_finite) {
  DML_CHECK(!any_non_finite, op, "embeddings and ref_emb", "finite (check_finite=True)", std::string("NaN or Inf"));
}

inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

using aten::as_contiguous;

}  // namespace dml
