// Whole numbers and bits.

#include <algorithm>
#include <type_traits>

#include "ptx/lanes.h"
#include "ptx/operations.h"

namespace ptx {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
// Of the size of T twice, with its sign.
template <class T>
using Wide =
    std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                       std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                          std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>>>;

struct Subtract {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(a - b);
  }
};
struct Multiply {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  }
};
struct MultiplyWide {
  template <class T>
  static Wide<T> apply(T a, T b) {
    return Wide<T>(a) * Wide<T>(b);
  }
};
struct MultiplyHigh {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(Wide<T>(a) * Wide<T>(b) >> sizeof(T) * 8);
  }
};
template <class Product>
struct ThenAdd {
  template <class T, class R>
  static R apply(T a, T b, R c) {
    return Add::apply(static_cast<R>(Product::apply(a, b)), c);
  }
};
// A division by zero gives all ones on a GPU.
struct Divide {
  template <class T>
  static T apply(T a, T b) {
    if (b == 0) return static_cast<T>(~T(0));
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract::apply(T(0), a);
    return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <class T>
  static T apply(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct Negate {
  template <class T>
  static T apply(T a) {
    return Subtract::apply(T(0), a);
  }
};
struct Absolute {
  template <class T>
  static T apply(T a) {
    return a < T(0) ? Negate::apply(a) : a;
  }
};
struct Not {
  template <class T>
  static T apply(T a) {
    return static_cast<T>(~a);
  }
};
struct ShiftLeft {
  template <class T>
  static T apply(T a, uint32_t count) {
    return count < sizeof(T) * 8 ? static_cast<T>(static_cast<uint64_t>(a) << count) : T(0);
  }
};
struct ShiftRight {
  template <class T>
  static T apply(T a, uint32_t count) {
    return static_cast<T>(a >> std::min<uint32_t>(count, sizeof(T) * 8 - 1) >>
                          (count >= sizeof(T) * 8 && std::is_unsigned_v<T> ? 1 : 0));
  }
};

struct PopulationCount {
  template <class T>
  static uint32_t apply(T a) {
    return static_cast<uint32_t>(__builtin_popcountll(static_cast<Unsigned<T>>(a)));
  }
};
struct LeadingZeros {
  template <class T>
  static uint32_t apply(T a) {
    return a == 0 ? sizeof(T) * 8
                  : static_cast<uint32_t>(__builtin_clzll(static_cast<Unsigned<T>>(a))) - (64 - sizeof(T) * 8);
  }
};
struct Reverse {
  template <class T>
  static T apply(T a) {
    T reversed = 0;
    for (size_t k = 0; k < sizeof(T) * 8; ++k) reversed = static_cast<T>(reversed << 1 | (a >> k & 1));
    return reversed;
  }
};
// The highest bit that is not the sign, or how far it would be shifted to the top.
template <bool shift_amount>
struct FindHighest {
  template <class T>
  static uint32_t apply(T a) {
    const auto bits = static_cast<Unsigned<T>>(std::is_signed_v<T> && a < 0 ? ~a : a);
    if (bits == 0) return ~0u;
    const uint32_t zeros = LeadingZeros::apply(bits);
    return shift_amount ? zeros : static_cast<uint32_t>(sizeof(T) * 8 - 1) - zeros;
  }
};
struct ExtractField {
  template <class T>
  static T apply(T a, uint32_t at, uint32_t length) {
    constexpr uint32_t kBits = sizeof(T) * 8;
    at &= 0xff;
    length &= 0xff;
    if (length == 0) return 0;
    const auto bit = [a](uint32_t k) { return static_cast<Unsigned<T>>(k < kBits ? a >> k & 1 : 0); };
    const Unsigned<T> sign = std::is_signed_v<T> ? bit(std::min(at + length - 1, kBits - 1)) : 0;
    Unsigned<T> field = 0;
    for (uint32_t k = 0; k < kBits; ++k) field |= (k < length && at + k < kBits ? bit(at + k) : sign) << k;
    return static_cast<T>(field);
  }
};
struct InsertField {
  template <class T>
  static T apply(T a, T b, uint32_t at, uint32_t length) {
    at &= 0xff;
    length &= 0xff;
    for (uint32_t k = 0; k < length && at + k < sizeof(T) * 8; ++k)
      b = static_cast<T>((b & ~(T(1) << (at + k))) | (a >> k & 1) << (at + k));
    return b;
  }
};
// Each nibble of the selector names one of eight bytes, or repeats its sign.
struct Permute {
  static uint32_t apply(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t picked = 0;
    for (uint32_t k = 0; k < 4; ++k) {
      const uint32_t choice = selector >> 4 * k & 0xf;
      const auto byte = static_cast<uint32_t>(bytes >> 8 * (choice & 7) & 0xff);
      picked |= ((choice & 8) != 0 ? (byte >> 7) * 0xff : byte) << 8 * k;
    }
    return picked;
  }
};
// Any function of three bits, by its table.
struct Lookup {
  static uint32_t apply(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t result = 0;
    for (uint32_t k = 0; k < 8; ++k)
      if ((table >> k & 1) != 0) result |= ((k & 4) != 0 ? a : ~a) & ((k & 2) != 0 ? b : ~b) & ((k & 1) != 0 ? c : ~c);
    return result;
  }
};
template <bool left, bool wrap>
struct FunnelShift {
  static uint32_t apply(uint32_t low, uint32_t high, uint32_t count) {
    const uint32_t by = wrap ? count & 31 : std::min(count, 32u);
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    return static_cast<uint32_t>(left ? both << by >> 32 : both >> by);
  }
};

// The predicates of a warp are masks.
template <class F>
void predicates(Warp& warp, const Instruction& in, Mask active) {
  const Mask first = warp.predicate(in.from[0]);
  warp.set_predicate(in.to[0], F::apply(first, warp.predicate(in.from.back())), active);
}
struct NotFirst {
  static Mask apply(Mask a, Mask) { return ~a; }
};

template <class F>
void unary(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  take_operands(a, s, in, {type.bytes()});
  with_whole(s, type, [&](auto of) { in.run = each_lane<F, decltype(of), decltype(of)>; });
}
template <class F>
void binary(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  take_operands(a, s, in, {type.bytes(), type.bytes()});
  with_whole(s, type, [&](auto of) { in.run = each_lane<F, decltype(of), decltype(of), decltype(of)>; });
}
// Of one number, whose count has 32 bits.
template <class F>
void counting(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  take_operands(a, s, in, {type.bytes()});
  with_whole(s, type, [&](auto of) { in.run = each_lane<F, uint32_t, decltype(of)>; });
}
template <class F>
void shift(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  take_operands(a, s, in, {type.bytes(), 4});
  with_whole(s, type, [&](auto of) { in.run = each_lane<F, decltype(of), decltype(of), uint32_t>; });
}
template <class F>
void logic(Assembler& a, Statement& s, Instruction& in) {
  if (s.modifiers != std::vector<std::string>{"pred"}) return binary<F>(a, s, in);
  s.take_last();
  s.expect_operands(3, 3);
  in.to = {a.result(s, s.operand(0))};
  in.from = {a.predicate(s, s.operand(1)), a.predicate(s, s.operand(2))};
  in.run = predicates<F>;
}
void negation(Assembler& a, Statement& s, Instruction& in) {
  if (s.modifiers != std::vector<std::string>{"pred"}) return unary<Not>(a, s, in);
  s.take_last();
  s.expect_operands(2, 2);
  in.to = {a.result(s, s.operand(0))};
  in.from = {a.predicate(s, s.operand(1))};
  in.run = predicates<NotFirst>;
}

template <class Product, class T>
Instruction::Run product(bool adds) {
  using R = decltype(Product::apply(T{}, T{}));
  return adds ? each_lane<ThenAdd<Product>, R, T, T, R> : each_lane<Product, R, T, T>;
}
// mul.lo, .hi and .wide, and mad, which adds a third number.
template <bool adds>
void multiply(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  const std::string part = s.take_one({"lo", "hi", "wide"});
  const auto bytes = static_cast<uint8_t>(type.bytes() * (part == "wide" ? 2 : 1));
  if (adds)
    take_operands(a, s, in, {type.bytes(), type.bytes(), bytes});
  else
    take_operands(a, s, in, {type.bytes(), type.bytes()});
  with_whole(s, type, [&](auto of) {
    using T = decltype(of);
    if constexpr (sizeof(T) == 2 || sizeof(T) == 4) {
      if (part == "wide") in.run = product<MultiplyWide, T>(adds);
    }
    if (part == "lo") in.run = product<Multiply, T>(adds);
    if (part == "hi") in.run = product<MultiplyHigh, T>(adds);
  });
}

void extract_field(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  take_operands(a, s, in, {type.bytes(), 4, 4});
  with_whole(s, type,
             [&](auto of) { in.run = each_lane<ExtractField, decltype(of), decltype(of), uint32_t, uint32_t>; });
}
void insert_field(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  take_operands(a, s, in, {type.bytes(), type.bytes(), 4, 4});
  with_whole(s, type, [&](auto of) {
    in.run = each_lane<InsertField, decltype(of), decltype(of), decltype(of), uint32_t, uint32_t>;
  });
}
void find_highest(Assembler& a, Statement& s, Instruction& in) {
  if (s.take("shiftamt"))
    counting<FindHighest<true>>(a, s, in);
  else
    counting<FindHighest<false>>(a, s, in);
}
void permute(Assembler& a, Statement& s, Instruction& in) {
  if (!s.take("b32")) return;
  take_operands(a, s, in, {4, 4, 4});
  in.run = each_lane<Permute, uint32_t, uint32_t, uint32_t, uint32_t>;
}
void lookup(Assembler& a, Statement& s, Instruction& in) {
  if (!s.take("b32")) return;
  take_operands(a, s, in, {4, 4, 4, 4});
  in.run = each_lane<Lookup, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>;
}
void funnel_shift(Assembler& a, Statement& s, Instruction& in) {
  const bool left = s.take("l"), right = s.take("r"), wrap = s.take("wrap"), clamp = s.take("clamp");
  if (left == right || wrap == clamp || !s.take("b32")) s.unknown();
  take_operands(a, s, in, {4, 4, 4});
  using Run = Instruction::Run;
  const auto with = []<class F>(F) -> Run { return each_lane<F, uint32_t, uint32_t, uint32_t, uint32_t>; };
  in.run = left ? (wrap ? with(FunnelShift<true, true>{}) : with(FunnelShift<true, false>{}))
                : (wrap ? with(FunnelShift<false, true>{}) : with(FunnelShift<false, false>{}));
}

}  // namespace

void add_integer_decoders(Decoders& all) {
  all["add"] = binary<Add>;
  all["sub"] = binary<Subtract>;
  all["mul"] = multiply<false>;
  all["mad"] = multiply<true>;
  all["div"] = binary<Divide>;
  all["rem"] = binary<Remainder>;
  all["min"] = binary<Min>;
  all["max"] = binary<Max>;
  all["neg"] = unary<Negate>;
  all["abs"] = unary<Absolute>;
  all["and"] = logic<And>;
  all["or"] = logic<Or>;
  all["xor"] = logic<Xor>;
  all["not"] = negation;
  all["shl"] = shift<ShiftLeft>;
  all["shr"] = shift<ShiftRight>;
  all["popc"] = counting<PopulationCount>;
  all["clz"] = counting<LeadingZeros>;
  all["brev"] = unary<Reverse>;
  all["bfind"] = find_highest;
  all["bfe"] = extract_field;
  all["bfi"] = insert_field;
  all["prmt"] = permute;
  all["lop3"] = lookup;
  all["shf"] = funnel_shift;
}

}  // namespace ptx
