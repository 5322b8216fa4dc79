// Floating-point arithmetic, with the rounding that an instruction names.

#include <cmath>
#include <limits>

#include "ptx/lanes.h"
#include "ptx/operations.h"

namespace ptx {
namespace {

template <class T>
void flush(T (&values)[kLanes]) {
  for (T& x : values)
    if (std::fabs(x) < std::numeric_limits<T>::min()) x = std::copysign(T(0), x);
}

// Results that are no number are one and the same in float32.
template <class T>
void finish(const Instruction& in, T (&values)[kLanes]) {
  if (in.flush) flush(values);
  if (in.saturate)
    for (T& x : values) x = x > T(0) ? (x < T(1) ? x : T(1)) : T(0);
  if (sizeof(T) == 4)
    for (T& x : values)
      x = x == x
              ? x
              : __builtin_bit_cast(T, static_cast<std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>(0x7fffffff));
}

template <class T, size_t count>
struct Sources {
  T values[count][kLanes];

  Sources(const Warp& warp, const Instruction& in) {
    for (size_t k = 0; k < count; ++k) {
      T buffer[kLanes];
      memcpy(values[k], warp.get(in.from[k], buffer), sizeof(buffer));
      if (in.flush) flush(values[k]);
    }
  }
};

template <class F, class T, size_t... k>
void compute(Warp& warp, const Instruction& in, Mask active, std::index_sequence<k...>) {
  const Sources<T, sizeof...(k)> from(warp, in);
  T result[kLanes];
  const RoundingMode mode(in.rounding);
  for (int l = 0; l < kLanes; ++l) result[l] = F::apply(from.values[k][l]...);
  mode.end(result);
  finish(in, result);
  warp.put(in.to[0], result, active);
}
template <class F, class T, size_t count>
void run(Warp& warp, const Instruction& in, Mask active) {
  compute<F, T>(warp, in, active, std::make_index_sequence<count>{});
}

struct Subtract {
  template <class T>
  static T apply(T a, T b) {
    return a - b;
  }
};
struct Multiply {
  template <class T>
  static T apply(T a, T b) {
    return a * b;
  }
};
struct MultiplyAdd {
  template <class T>
  static T apply(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
struct Divide {
  template <class T>
  static T apply(T a, T b) {
    return a / b;
  }
};
template <bool greater>
struct Extreme {
  template <class T>
  static T apply(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    if (a == b) return std::signbit(a) == greater ? b : a;
    return (a > b) == greater ? a : b;
  }
};
// Not a number as soon as one is none.
template <bool greater>
struct StrictExtreme {
  template <class T>
  static T apply(T a, T b) {
    return a != a ? a : b != b ? b : Extreme<greater>::apply(a, b);
  }
};
struct Root {
  template <class T>
  static T apply(T a) {
    return std::sqrt(a);
  }
};
struct Reciprocal {
  template <class T>
  static T apply(T a) {
    return T(1) / a;
  }
};
struct InverseRoot {
  template <class T>
  static T apply(T a) {
    return static_cast<T>(1 / std::sqrt(static_cast<double>(a)));
  }
};
struct PowerOfTwo {
  static float apply(float a) { return std::exp2(a); }
};
struct BinaryLogarithm {
  static float apply(float a) { return std::log2(a); }
};
struct Sine {
  static float apply(float a) { return std::sin(a); }
};
struct Cosine {
  static float apply(float a) { return std::cos(a); }
};
struct HyperbolicTangent {
  static float apply(float a) { return std::tanh(a); }
};
// Of the upper half of a double; the lower half of the result is zero.
template <class Of>
struct OfUpperHalf {
  static double apply(double a) {
    constexpr uint64_t kUpper = ~uint64_t{0} << 32;
    const auto upper = [](double x) { return __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, x) & kUpper); };
    return upper(Of::apply(upper(a)));
  }
};
template <uint64_t keep, uint64_t set>
struct ChangeSign {
  template <class T>
  static T apply(T bits) {
    constexpr T kSign = T(1) << (sizeof(T) * 8 - 1);
    return static_cast<T>(keep != 0 ? bits ^ kSign : bits & static_cast<T>(~kSign));
  }
};

void take_options(Statement& s, Instruction& in) {
  take_rounding(s, in);
  in.flush = s.take("ftz");
  in.saturate = s.take("sat");
}

template <class F, size_t count>
void arithmetic(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  take_options(s, in);
  if constexpr (count == 1)
    take_operands(a, s, in, {type.bytes()});
  else if constexpr (count == 2)
    take_operands(a, s, in, {type.bytes(), type.bytes()});
  else
    take_operands(a, s, in, {type.bytes(), type.bytes(), type.bytes()});
  with_real(s, type, [&](auto of) { in.run = run<F, decltype(of), count>; });
}

// Where an approximation is asked for, the nearest number is one.
template <class F, size_t count>
void approximate(Assembler& a, Statement& s, Instruction& in) {
  const bool is_approximate = s.take("approx") || s.take("full");
  if (is_approximate && s.modifiers.back() == "f64") {
    if constexpr (count == 1) {
      s.take_last();
      take_options(s, in);
      take_operands(a, s, in, {8});
      in.run = run<OfUpperHalf<F>, double, 1>;
    }
    return;
  }
  arithmetic<F, count>(a, s, in);
}
template <class F>
void of_float(Assembler& a, Statement& s, Instruction& in) {
  if (!s.take("approx") || !s.take("f32")) s.unknown();
  take_options(s, in);
  take_operands(a, s, in, {4});
  in.run = run<F, float, 1>;
}
template <bool greater>
void extreme(Assembler& a, Statement& s, Instruction& in) {
  if (s.take("NaN"))
    arithmetic<StrictExtreme<greater>, 2>(a, s, in);
  else
    arithmetic<Extreme<greater>, 2>(a, s, in);
}
template <bool negates>
void sign(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  in.flush = s.take("ftz");
  take_operands(a, s, in, {type.bytes()});
  if (in.flush) {
    struct Negate {
      static float apply(float x) { return negates ? -x : std::fabs(x); }
    };
    in.run = run<Negate, float, 1>;
    return;
  }
  using F = ChangeSign<negates, 0>;
  in.run = type.bits == 64 ? each_lane<F, uint64_t, uint64_t> : each_lane<F, uint32_t, uint32_t>;
}

}  // namespace

void add_real_decoders(Decoders& all) {
  all["add"] = arithmetic<Add, 2>;
  all["sub"] = arithmetic<Subtract, 2>;
  all["mul"] = arithmetic<Multiply, 2>;
  all["fma"] = all["mad"] = arithmetic<MultiplyAdd, 3>;
  all["div"] = approximate<Divide, 2>;
  all["min"] = extreme<false>;
  all["max"] = extreme<true>;
  all["neg"] = sign<true>;
  all["abs"] = sign<false>;
  all["sqrt"] = approximate<Root, 1>;
  all["rcp"] = approximate<Reciprocal, 1>;
  all["rsqrt"] = approximate<InverseRoot, 1>;
  all["ex2"] = of_float<PowerOfTwo>;
  all["lg2"] = of_float<BinaryLogarithm>;
  all["sin"] = of_float<Sine>;
  all["cos"] = of_float<Cosine>;
  all["tanh"] = of_float<HyperbolicTangent>;
}

}  // namespace ptx
