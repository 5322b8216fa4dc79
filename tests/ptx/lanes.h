#pragma once
// What instructions share that do the same in every lane.

#include <cfenv>
#include <cstdint>
#include <tuple>
#include <utility>

#include "ptx/assembler.h"
#include "ptx/warp.h"

namespace ptx {

template <class T>
struct OfLanes {
  T values[kLanes];
};

template <class F, class R, class... A, size_t... k>
void map_lanes(Warp& warp, const Instruction& in, Mask active, std::index_sequence<k...>) {
  std::tuple<OfLanes<A>...> buffers;
  const std::tuple<const A*...> from{warp.get(in.from[k], std::get<k>(buffers).values)...};
  R result[kLanes];
  for (int l = 0; l < kLanes; ++l) result[l] = F::apply(std::get<k>(from)[l]...);
  warp.put(in.to[0], result, active);
}

// to[0] = F::apply(from...) in each lane.
template <class F, class R, class... A>
void each_lane(Warp& warp, const Instruction& in, Mask active) {
  map_lanes<F, R, A...>(warp, in, active, std::index_sequence_for<A...>{});
}

// Of this processor, for the results that are computed until its end.
class RoundingMode {
 public:
  explicit RoundingMode(Rounding rounding) : changed_(rounding != Rounding::nearest) {
    constexpr int kModes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    if (changed_) std::fesetround(kModes[static_cast<int>(rounding)]);
  }
  template <class T>
  void end(const T& results) const {
    if (!changed_) return;
    asm volatile("" : : "r"(&results) : "memory");  // they are there before the mode is another
    std::fesetround(FE_TONEAREST);
  }

 private:
  bool changed_;
};

// Calls `act` with a number of a type: one without a sign where only bits are named.
template <class Act>
void with_whole(const Statement& s, Type type, Act&& act) {
  const bool has_sign = type.kind == Type::Kind::sign;
  if (type.lanes != 1 || (!has_sign && type.kind != Type::Kind::whole && type.kind != Type::Kind::bits)) s.unknown();
  switch (type.bits) {
    case 8:
      return has_sign ? act(int8_t{}) : act(uint8_t{});
    case 16:
      return has_sign ? act(int16_t{}) : act(uint16_t{});
    case 32:
      return has_sign ? act(int32_t{}) : act(uint32_t{});
    case 64:
      return has_sign ? act(int64_t{}) : act(uint64_t{});
    default:
      s.unknown();
  }
}
template <class Act>
void with_real(const Statement& s, Type type, Act&& act) {
  if (type.kind != Type::Kind::real || type.lanes != 1) s.unknown();
  if (type.bits == 32) return act(float{});
  if (type.bits == 64) return act(double{});
  s.unknown();
}

template <class Act>
void with_number(const Statement& s, Type type, Act&& act) {
  if (type.is_real())
    with_real(s, type, act);
  else
    with_whole(s, type, act);
}

// Calls act(mask) when all lanes of the mask that each of them names are here.
template <class Act>
void with_members(Warp& warp, const Operand& masks, Mask active, Act&& act) {
  uint32_t buffer[kLanes];
  const uint32_t* member = warp.get(masks, buffer);
  const Mask mask = member[__builtin_ctz(active)];
  for_each_lane(active, [&](int l) {
    if (member[l] != mask) warp.fail("lanes name different masks");
    if ((mask >> l & 1) == 0) warp.fail("a lane is not in the mask of its own warp operation");
  });
  if (warp.together(active, mask)) act(mask);
}

// The result, and as many sources as there are sizes.
inline void take_operands(Assembler& a, const Statement& s, Instruction& in, std::initializer_list<uint8_t> sizes) {
  s.expect_operands(sizes.size() + 1, sizes.size() + 1);
  in.to = {a.result(s, s.operand(0))};
  size_t k = 1;
  for (const uint8_t bytes : sizes) in.from.push_back(a.value(s, s.operand(k++), bytes));
}

inline bool take_shared(Statement& s) { return !s.take_one({"shared", "shared::cta"}).empty(); }

inline void take_rounding(Statement& s, Instruction& in) {
  const std::string name = s.take_one({"rn", "rz", "rm", "rp"});
  in.rounding = name == "rz"   ? Rounding::zero
                : name == "rm" ? Rounding::down
                : name == "rp" ? Rounding::up
                               : Rounding::nearest;
}

}  // namespace ptx
