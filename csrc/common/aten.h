#pragma once
// ATen's own operators that the stable headers do not wrap, or wrap slowly.

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace dml::aten {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::detail::from;
using torch::stable::detail::to;

// The results take the places of the arguments. The stable headers' macro for this is not the same in torch 2.11 and in
// later ones, so the code is read here.
template <size_t N>
void call(const char* op, const char* overload, std::array<StableIValue, N>& stack) {
  if (torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION) != 0)
    throw std::runtime_error(std::string(op) + " failed; torch has logged its error");
}

// Uninitialised, on the device of another one. The headers' own `new_empty` and `contiguous` look their operators up by
// name at each call, which takes longer than the pairs of a few rows.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  int32_t code = to<int32_t>(from(type));
  AtenTensorHandle made = nullptr;
  if (aoti_torch_aten_new_empty(like.get(), shape.data(), static_cast<int64_t>(shape.size()), &code, nullptr, nullptr,
                                0, nullptr, &made) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("aten::new_empty failed; torch has logged its error");
  return Tensor(made);
}

inline Tensor as_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& x) {
  return x ? std::make_optional(as_contiguous(*x)) : std::nullopt;
}

// Into a tensor that is there, because autocast would make a new one of bfloat16.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  call("aten::mm", "out", stack);
  to<Tensor>(stack[0]);
}

// L of A = L L^T for one or many matrices, and the info of each (0: positive definite).
inline std::tuple<Tensor, Tensor> cholesky(const Tensor& a) {
  std::array<StableIValue, 3> stack{from(a), from(false), from(false)};
  call("aten::linalg_cholesky_ex", "", stack);
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

inline Tensor cholesky_solve(const Tensor& b, const Tensor& l) {
  std::array<StableIValue, 3> stack{from(b), from(l), from(false)};
  call("aten::cholesky_solve", "", stack);
  return to<Tensor>(stack[0]);
}

inline Tensor cholesky_inverse(const Tensor& l) {
  std::array<StableIValue, 2> stack{from(l), from(false)};
  call("aten::cholesky_inverse", "", stack);
  return to<Tensor>(stack[0]);
}

// Sorted values and the places they come from; equal values keep their order. On the device, without synchronising.
inline std::array<Tensor, 2> stable_sort(const Tensor& x) {
  std::array<StableIValue, 4> stack{from(x), from(std::optional<bool>(true)), from(int64_t{-1}), from(false)};
  call("aten::sort", "stable", stack);
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Entries of x along a dimension.
inline Tensor index_select(const Tensor& x, int64_t dim, const Tensor& index) {
  std::array<StableIValue, 3> stack{from(x), from(dim), from(index)};
  call("aten::index_select", "", stack);
  return to<Tensor>(stack[0]);
}

}  // namespace dml::aten
