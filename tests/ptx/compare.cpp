// Comparisons, and choices by a predicate.

#include <cmath>

#include "ptx/lanes.h"

namespace ptx {
namespace {

enum Combination : int64_t { kAlone, kAnd, kOr, kXor };

// What a comparison gives where a number is less, equal or greater, and where one of both is no number.
template <bool less, bool equal, bool greater, bool unordered>
struct Compare {
  template <class T>
  static bool apply(T a, T b) {
    return (less && a < b) || (equal && a == b) || (greater && a > b) || (unordered && (a != a || b != b));
  }
};

template <class F, class T>
Mask compared(const Warp& warp, const Instruction& in) {
  T first[kLanes], second[kLanes];
  const T *a = warp.get(in.from[0], first), *b = warp.get(in.from[1], second);
  Mask result = 0;
  for (int l = 0; l < kLanes; ++l) {
    T x = a[l], y = b[l];
    if constexpr (std::is_same_v<T, float>) {
      if (in.flush && std::fabs(x) < 0x1p-126f) x = 0;
      if (in.flush && std::fabs(y) < 0x1p-126f) y = 0;
    }
    result |= static_cast<Mask>(F::apply(x, y)) << l;
  }
  return result;
}

template <class F, class T>
void set_predicates(Warp& warp, const Instruction& in, Mask active) {
  const Mask result = compared<F, T>(warp, in), with = in.number == kAlone ? 0 : warp.predicate(in.from[2]);
  const auto combined = [&](Mask one) {
    return in.number == kAnd ? one & with : in.number == kOr ? one | with : in.number == kXor ? one ^ with : one;
  };
  const Mask first = combined(result), second = combined(~result);
  warp.set_predicate(in.to[0], first, active);
  if (in.to.size() > 1) warp.set_predicate(in.to[1], second, active);
}

template <class F, class T>
void set_numbers(Warp& warp, const Instruction& in, Mask active) {
  const Mask result = compared<F, T>(warp, in);
  uint32_t numbers[kLanes];
  for (int l = 0; l < kLanes; ++l) numbers[l] = (result >> l & 1) != 0 ? static_cast<uint32_t>(in.number) : 0;
  warp.put(in.to[0], numbers, active);
}

struct Comparison {
  template <class F>
  static void choose(Instruction& in, const Statement& s, Type type, bool predicates) {
    const auto with = [&](auto of) {
      in.run = predicates ? set_predicates<F, decltype(of)> : set_numbers<F, decltype(of)>;
    };
    if (type.is_real())
      with_real(s, type, with);
    else
      with_whole(s, type, with);
  }
};

void take_comparison(const Statement& s, const std::string& name, Type type, Instruction& in, bool predicates) {
  const auto choose = [&]<bool less, bool equal, bool greater, bool unordered>() {
    Comparison::choose<Compare<less, equal, greater, unordered>>(in, s, type, predicates);
  };
  const bool is_real = type.is_real();
  if (name == "eq") return choose.operator()<false, true, false, false>();
  if (name == "ne") return choose.operator()<true, false, true, false>();
  if (name == "lt" || (!is_real && name == "lo")) return choose.operator()<true, false, false, false>();
  if (name == "le" || (!is_real && name == "ls")) return choose.operator()<true, true, false, false>();
  if (name == "gt" || (!is_real && name == "hi")) return choose.operator()<false, false, true, false>();
  if (name == "ge" || (!is_real && name == "hs")) return choose.operator()<false, true, true, false>();
  if (!is_real) s.unknown();
  if (name == "equ") return choose.operator()<false, true, false, true>();
  if (name == "neu") return choose.operator()<true, false, true, true>();
  if (name == "ltu") return choose.operator()<true, false, false, true>();
  if (name == "leu") return choose.operator()<true, true, false, true>();
  if (name == "gtu") return choose.operator()<false, false, true, true>();
  if (name == "geu") return choose.operator()<false, true, true, true>();
  if (name == "num") return choose.operator()<true, true, true, false>();
  if (name == "nan") return choose.operator()<false, false, false, true>();
  s.unknown();
}

std::string take_name(Statement& s) {
  return s.take_one({"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
                     "geu", "num", "nan"});
}

// setp.lt.and.f32 p|q, a, b, c
void set_predicate(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  const std::string name = take_name(s), combination = s.take_one({"and", "or", "xor"});
  in.flush = s.take("ftz");
  in.number = combination == "and" ? kAnd : combination == "or" ? kOr : combination == "xor" ? kXor : kAlone;
  s.expect_operands(in.number == kAlone ? 3 : 4, in.number == kAlone ? 3 : 4);
  const std::string& results = s.operand(0);
  const size_t bar = results.find('|');
  in.to = {a.result(s, trimmed(results.substr(0, bar)))};
  if (bar != std::string::npos) in.to.push_back(a.result(s, trimmed(results.substr(bar + 1))));
  in.from = {a.value(s, s.operand(1), type.bytes()), a.value(s, s.operand(2), type.bytes())};
  if (in.number != kAlone) in.from.push_back(a.predicate(s, s.operand(3)));
  take_comparison(s, name, type, in, true);
}

// set.lt.f32.s32: all ones or 1.0 where it holds.
void set_number(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  const std::string result = s.take_one({"u32", "s32", "f32"}), name = take_name(s);
  if (result.empty()) s.unknown();
  in.flush = s.take("ftz");
  in.number = result == "f32" ? 0x3f800000 : 0xffffffff;
  take_operands(a, s, in, {type.bytes(), type.bytes()});
  take_comparison(s, name, type, in, false);
}

template <class T>
void choose_by_predicate(Warp& warp, const Instruction& in, Mask active) {
  T first[kLanes], second[kLanes], result[kLanes];
  const T *a = warp.get(in.from[0], first), *b = warp.get(in.from[1], second);
  const Mask chosen = warp.predicate(in.from[2]);
  for (int l = 0; l < kLanes; ++l) result[l] = (chosen >> l & 1) != 0 ? a[l] : b[l];
  warp.put(in.to[0], result, active);
}
void select(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  s.expect_operands(4, 4);
  in.to = {a.result(s, s.operand(0))};
  in.from = {a.value(s, s.operand(1), type.bytes()), a.value(s, s.operand(2), type.bytes()),
             a.predicate(s, s.operand(3))};
  in.run = type.bits == 16   ? choose_by_predicate<uint16_t>
           : type.bits == 32 ? choose_by_predicate<uint32_t>
           : type.bits == 64 ? choose_by_predicate<uint64_t>
                             : nullptr;
}

// a where c is not negative.
struct SelectBySign {
  template <class T, class C>
  static T apply(T a, T b, C c) {
    return c >= C(0) ? a : b;
  }
};
void select_by_sign(Assembler& a, Statement& s, Instruction& in) {
  const std::string sign = s.take_last();
  const Type type = Type::parse(s, s.take_last());
  if (type.bits != 32) s.unknown();
  take_operands(a, s, in, {4, 4, 4});
  in.run = sign == "s32"   ? each_lane<SelectBySign, uint32_t, uint32_t, uint32_t, int32_t>
           : sign == "f32" ? each_lane<SelectBySign, uint32_t, uint32_t, uint32_t, float>
                           : nullptr;
}

}  // namespace

void add_comparison_decoders(Decoders& all) {
  all["setp"] = set_predicate;
  all["set"] = set_number;
  all["selp"] = select;
  all["slct"] = select_by_sign;
}

}  // namespace ptx
