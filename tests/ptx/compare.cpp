// Comparisons, and choices by a predicate.

#include <cmath>
#include <map>

#include "ptx/lanes.h"

namespace ptx {
namespace {

enum Combination : int64_t { kAlone, kAnd, kOr, kXor };

// Of two numbers; the last where one of them is none.
enum Relation : uint8_t { kLess = 1, kEqual = 2, kGreater = 4, kUnordered = 8 };

// Where a relation of the two holds that the instruction asks for.
template <class T>
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
    const int relation = (x < y ? kLess : 0) | (x == y ? kEqual : 0) | (x > y ? kGreater : 0);
    result |= static_cast<Mask>(((relation == 0 ? kUnordered : relation) & in.relations) != 0) << l;
  }
  return result;
}

template <class T>
void set_predicates(Warp& warp, const Instruction& in, Mask active) {
  const Mask result = compared<T>(warp, in), with = in.number == kAlone ? 0 : warp.predicate(in.from[2]);
  const auto combined = [&](Mask one) {
    return in.number == kAnd ? one & with : in.number == kOr ? one | with : in.number == kXor ? one ^ with : one;
  };
  const Mask first = combined(result), second = combined(~result);
  warp.set_predicate(in.to[0], first, active);
  if (in.to.size() > 1) warp.set_predicate(in.to[1], second, active);
}

template <class T>
void set_numbers(Warp& warp, const Instruction& in, Mask active) {
  const Mask result = compared<T>(warp, in);
  uint32_t numbers[kLanes];
  for (int l = 0; l < kLanes; ++l) numbers[l] = (result >> l & 1) != 0 ? static_cast<uint32_t>(in.number) : 0;
  warp.put(in.to[0], numbers, active);
}

uint8_t take_relations(Statement& s, bool is_real) {
  static const std::map<std::string, uint8_t> known{{"eq", kEqual},   {"ne", kLess | kGreater},
                                                    {"lt", kLess},    {"le", kLess | kEqual},
                                                    {"gt", kGreater}, {"ge", kGreater | kEqual}};
  static const std::map<std::string, uint8_t> of_bits{
      {"lo", kLess}, {"ls", kLess | kEqual}, {"hi", kGreater}, {"hs", kGreater | kEqual}};
  const std::string name = s.modifiers.empty() ? std::string() : s.modifiers.front();
  s.take(name);
  if (const auto found = known.find(name); found != known.end()) return found->second;
  if (const auto found = of_bits.find(name); found != of_bits.end() && !is_real) return found->second;
  if (is_real && name == "num") return kLess | kEqual | kGreater;
  if (is_real && name == "nan") return kUnordered;
  const auto found = known.find(name.substr(0, 2));
  if (!is_real || name.size() != 3 || name[2] != 'u' || found == known.end()) s.unknown();
  return found->second | kUnordered;
}

// setp.lt.and.f32 p|q, a, b, c
void set_predicate(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  in.relations = take_relations(s, type.is_real());
  const std::string combination = s.take_one({"and", "or", "xor"});
  in.flush = s.take("ftz");
  in.number = combination == "and" ? kAnd : combination == "or" ? kOr : combination == "xor" ? kXor : kAlone;
  s.expect_operands(in.number == kAlone ? 3 : 4, in.number == kAlone ? 3 : 4);
  const std::string& results = s.operand(0);
  const size_t bar = results.find('|');
  in.to = {a.result(s, trimmed(results.substr(0, bar)))};
  if (bar != std::string::npos) in.to.push_back(a.result(s, trimmed(results.substr(bar + 1))));
  in.from = {a.value(s, s.operand(1), type.bytes()), a.value(s, s.operand(2), type.bytes())};
  if (in.number != kAlone) in.from.push_back(a.predicate(s, s.operand(3)));
  with_number(s, type, [&](auto of) { in.run = set_predicates<decltype(of)>; });
}

// set.lt.f32.s32: all ones or 1.0 where it holds.
void set_number(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  in.relations = take_relations(s, type.is_real());
  const std::string result = s.take_one({"u32", "s32", "f32"});
  if (result.empty()) s.unknown();
  in.flush = s.take("ftz");
  in.number = result == "f32" ? 0x3f800000 : 0xffffffff;
  take_operands(a, s, in, {type.bytes(), type.bytes()});
  with_number(s, type, [&](auto of) { in.run = set_numbers<decltype(of)>; });
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
