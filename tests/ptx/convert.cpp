// cvt, between all types that kernels use.

#include <algorithm>
#include <cmath>
#include <limits>

#include "ptx/half.h"
#include "ptx/lanes.h"

namespace ptx {
namespace {

enum class ToWhole : int64_t { none, nearest, zero, down, up };

double rounded(double x, ToWhole how) {
  switch (how) {
    case ToWhole::nearest:
      return std::nearbyint(x);
    case ToWhole::zero:
      return std::trunc(x);
    case ToWhole::down:
      return std::floor(x);
    case ToWhole::up:
      return std::ceil(x);
    default:
      return x;
  }
}

// No number becomes zero, or the least of 64 bits.
template <class To, class From>
To whole_from_real(From x, ToWhole how) {
  if (x != x)
    return sizeof(To) == 8 || sizeof(From) == 8 ? static_cast<To>(uint64_t{1} << (sizeof(To) * 8 - 1)) : To(0);
  const double whole = rounded(static_cast<double>(x), how);
  if (whole <= static_cast<double>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (whole >= static_cast<double>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return static_cast<To>(whole);
}

template <class To, class From>
To converted(const Instruction& in, From x) {
  if constexpr (std::is_integral_v<To> && std::is_integral_v<From>) {
    if (!in.saturate) return static_cast<To>(x);
    const auto wide = static_cast<__int128>(x);
    return static_cast<To>(std::clamp<__int128>(wide, std::numeric_limits<To>::min(), std::numeric_limits<To>::max()));
  } else if constexpr (std::is_integral_v<To>) {
    return whole_from_real<To>(x, static_cast<ToWhole>(in.number));
  } else if constexpr (std::is_integral_v<From>) {
    return static_cast<To>(x);
  } else {
    if (in.number != 0) return static_cast<To>(rounded(static_cast<double>(x), static_cast<ToWhole>(in.number)));
    return static_cast<To>(x);
  }
}

template <class T>
T flushed(T x) {
  return std::fabs(x) < T(0x1p-126) ? std::copysign(T(0), x) : x;
}

template <class To, class From>
void convert(Warp& warp, const Instruction& in, Mask active) {
  From buffer[kLanes];
  To result[kLanes];
  const From* from = warp.get(in.from[0], buffer);
  const RoundingMode mode(in.rounding);
  for (int l = 0; l < kLanes; ++l) {
    From x = from[l];
    if constexpr (std::is_same_v<From, float>) x = in.flush ? flushed(x) : x;
    To y = converted<To>(in, x);
    if constexpr (std::is_same_v<To, float>) y = in.flush ? flushed(y) : y;
    if constexpr (std::is_floating_point_v<To>)
      if (in.saturate) y = y > To(0) ? std::min(y, To(1)) : To(0);
    result[l] = y;
  }
  mode.end(result);
  warp.put(in.to[0], result, active);
}

template <class To, bool brain>
void from_half(Warp& warp, const Instruction& in, Mask active) {
  uint16_t buffer[kLanes];
  const uint16_t* from = warp.get(in.from[0], buffer);
  To result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = converted<To>(in, brain ? brain_float(from[l]) : half_float(from[l]));
  warp.put(in.to[0], result, active);
}

// Two numbers in one register: the second source lies in the lower half.
template <bool brain>
void to_halves(Warp& warp, const Instruction& in, Mask active) {
  uint32_t result[kLanes] = {};
  for (const Operand& source : in.from) {
    float buffer[kLanes];
    const float* from = warp.get(source, buffer);
    for (int l = 0; l < kLanes; ++l)
      result[l] = result[l] << 16 | (brain ? to_brain(from[l], in.rounding) : to_half(from[l], in.rounding));
  }
  warp.put(in.to[0], result, active);
}

// Nearest, ties away from zero.
struct RoundToTf32 {
  static uint32_t apply(uint32_t x) { return (x & 0x7f800000u) == 0x7f800000u ? x : (x + 0x1000u) & 0xffffe000u; }
};

bool is_half(Type type) { return type.bits == 16 && (type.is_real() || type.kind == Type::Kind::brain); }

void take_whole_rounding(Statement& s, Instruction& in) {
  const std::string name = s.take_one({"rni", "rzi", "rmi", "rpi"});
  in.number = static_cast<int64_t>(name == "rni"   ? ToWhole::nearest
                                   : name == "rzi" ? ToWhole::zero
                                   : name == "rmi" ? ToWhole::down
                                   : name == "rpi" ? ToWhole::up
                                                   : ToWhole::none);
}

void decode(Assembler& a, Statement& s, Instruction& in) {
  const Type from = Type::parse(s, s.take_last()), to = Type::parse(s, s.take_last());
  if (to.kind == Type::Kind::tf32) {
    if (!s.take("rna") || from.bits != 32 || !from.is_real()) s.unknown();
    take_operands(a, s, in, {4});
    in.run = each_lane<RoundToTf32, uint32_t, uint32_t>;
    return;
  }
  take_whole_rounding(s, in);
  take_rounding(s, in);
  in.flush = s.take("ftz");
  in.saturate = s.take("sat");
  if (is_half(to)) {
    if (!from.is_real() || from.bits != 32 || in.number != 0 || in.saturate) s.unknown();
    if (to.lanes == 2)
      take_operands(a, s, in, {4, 4});
    else
      take_operands(a, s, in, {4});
    in.run = to.kind == Type::Kind::brain ? to_halves<true> : to_halves<false>;
    return;
  }
  take_operands(a, s, in, {from.bytes()});
  if (is_half(from)) {
    const bool brain = from.kind == Type::Kind::brain;
    return with_number(
        s, to, [&](auto of) { in.run = brain ? from_half<decltype(of), true> : from_half<decltype(of), false>; });
  }
  with_number(s, to,
              [&]<class To>(To) { with_number(s, from, [&]<class From>(From) { in.run = convert<To, From>; }); });
}

}  // namespace

void add_conversion_decoders(Decoders& all) { all["cvt"] = decode; }

}  // namespace ptx
