#pragma once
// Checks of an operator's arguments, which the header generated from dmlkernels/_contract.py calls, and the
// registration of a function that takes them by name. dmlkernels/_verify.py checks the same in the same words where
// kernels are written in Python.

#include <algorithm>
#include <initializer_list>
#include <tuple>
#include <type_traits>

#include <torch/csrc/stable/library.h>

#include "common/check.h"

namespace dml {

// A name of a sentence and its value, for "(M,) with M=12".
struct Known {
  const char* name;
  bool whole;
  union {
    int64_t integer;
    double real;
  };
  Known(const char* name, int64_t value) : name(name), whole(true), integer(value) {}
  Known(const char* name, double value) : name(name), whole(false), real(value) {}
};
using Knowns = std::initializer_list<Known>;

// What the size of a dimension has to be: a value, or a size that is learnt from `unit` times it, or that one again.
class Size {
 public:
  Size(int64_t value) : value_(value) {}
  static Size learn(int64_t& size, int64_t unit = 1) { return Size(unit, &size); }
  static Size again(int64_t& size) { return Size(0, &size); }
  bool holds(int64_t size) const {
    if (learnt_ == nullptr) return size == value_;
    if (value_ == 0) return size == *learnt_;
    *learnt_ = size / value_;
    return size % value_ == 0;
  }

 private:
  int64_t value_;
  int64_t* learnt_ = nullptr;
  Size(int64_t value, int64_t* learnt) : value_(value), learnt_(learnt) {}
};

// "[0, C)", and its ends.
struct Interval {
  std::string text;
  double low, high;
  // Both are false for NaN.
  bool begins(double v) const { return text.front() == '[' ? v >= low : v > low; }
  bool holds(double v) const { return begins(v) && (text.back() == ']' ? v <= high : v < high); }
};

class Arguments {
 public:
  // first: the tensor whose device the others have.
  Arguments(const char* subject, const char* first_name, const Tensor& first)
      : subject_(subject), first_name_(first_name), first_(first) {}

  void given(const char* name, const std::optional<Tensor>& value, bool wanted, const char* partners) const {
    DML_CHECK(value.has_value() == wanted, subject_, name, "given with " + std::string(partners) + ", and only then",
              std::string(value ? "a tensor" : "None"));
  }

  void absent(const char* name, const std::optional<Tensor>& value, bool wanted, const char* reason) const {
    DML_CHECK(!value || !wanted, subject_, name, "None with " + std::string(reason), std::string("a tensor"));
  }

  void shape(const char* name, const Tensor& x, const char* shape, std::initializer_list<Size> sizes,
             Knowns known) const {
    bool right = x.dim() == static_cast<int64_t>(sizes.size());
    for (int64_t k = 0; right && k < x.dim(); ++k) right = sizes.begin()[k].holds(x.size(k));
    if (!right) fail(subject_, name, shape + with(known), text(x));
    DML_CHECK(x.dim() != 2 || x.size(0) <= INT32_MAX, subject_, name, "of at most 2^31 - 1 rows", x);
  }

  // Sentences are put together when they are needed: a call of a few rows would wait for all of them.
  void dtype(const char* name, const Tensor& x, std::initializer_list<ScalarType> types) const {
    if (std::find(types.begin(), types.end(), x.scalar_type()) != types.end()) return;
    std::string expected;
    for (const ScalarType& type : types)
      expected += (&type == types.begin() ? "" : &type == types.end() - 1 ? " or " : ", ") + text(type);
    fail(subject_, name, expected, text(x.scalar_type()));
  }
  void dtype_like(const char* name, const Tensor& x, const char* other_name, const Tensor& other) const {
    DML_CHECK(x.scalar_type() == other.scalar_type(), subject_, name, text(other.scalar_type()) + " like " + other_name,
              x.scalar_type());
  }
  void dtype_of_sums(const char* name, const Tensor& x, const char* other_name, const Tensor& other) const {
    DML_CHECK(x.scalar_type() == compute_type(other), subject_, name,
              text(compute_type(other)) + " for " + other_name + " of " + text(other.scalar_type()), x.scalar_type());
  }

  void device(const char* name, const Tensor& x) const {
    DML_CHECK(x.device() == first_.device(), subject_, name, "on " + text(first_.device()) + " like " + first_name_,
              x.device());
  }

  void choice(const char* name, const std::string& value, std::initializer_list<const char*> choices) const {
    if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
    std::string expected;
    for (const char* choice : choices) expected += (expected.empty() ? "'" : " or '") + std::string(choice) + "'";
    fail(subject_, name, expected, "'" + value + "'");
  }

  template <class Value>
  void interval(const char* name, Value value, const Interval& interval, Knowns known) const {
    DML_CHECK(interval.holds(static_cast<double>(value)), subject_, name, "in " + interval.text + with(known), value);
  }

  void only_with(const char* name, bool value, bool partner, const char* partner_name) const {
    DML_CHECK(!value || partner, subject_, name, std::string("False without ") + partner_name, std::string("True"));
  }

  // What a tensor holds: its lowest number is named if that is below, else its highest, and NaN if there is one.
  template <class Value>
  void numbers(const char* name, const Tensor& x, const Interval& interval, Knowns known) const {
    const Tensor here = as_contiguous(x);
    const Value* values = static_cast<const Value*>(here.const_data_ptr());
    const int64_t count = here.numel();
    if (count == 0) return;
    Value low = values[0], high = values[0];
    for (int64_t k = 0; k < count && low == low; ++k) {
      low = values[k] >= low ? low : values[k];
      high = values[k] <= high ? high : values[k];
    }
    const Value worst = interval.begins(static_cast<double>(low)) ? high : low;
    this->interval(name, worst, interval, known);
  }

 private:
  const char *subject_, *first_name_;
  const Tensor& first_;

  static std::string with(Knowns known) {
    std::string words;
    for (const Known& k : known)
      words +=
          (words.empty() ? " with " : ", ") + std::string(k.name) + "=" + (k.whole ? text(k.integer) : text(k.real));
    return words;
  }
};

// f of the type in which x is summed.
template <class F>
auto in_compute_type(const Tensor& x, const F& f) {
  return compute_type(x) == ScalarType::Double ? f.template operator()<double>() : f.template operator()<float>();
}

// Which numbers of tensors are looked at: on a CPU, where that waits for nobody.
enum class Read { shapes, numbers };

template <class Result, class Taken>
Taken taken_by(Result (*)(const Taken&));

// A function of an operator's arguments as the dispatcher calls it.
template <auto function, Read read = Read::shapes>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  const auto arguments = decltype(taken_by(function))::take(stack);
  arguments.template verify<read>();
  const auto results = function(arguments);
  if constexpr (std::is_same_v<std::remove_const_t<decltype(results)>, Tensor>) {
    stack[0] = torch::stable::detail::from(results);
  } else {
    std::apply([&](const auto&... result) { ((*stack++ = torch::stable::detail::from(result)), ...); }, results);
  }
}

}  // namespace dml
