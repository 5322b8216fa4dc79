// What the lanes of a warp tell each other.

#include <algorithm>

#include "ptx/block.h"
#include "ptx/lanes.h"
#include "ptx/operations.h"

namespace ptx {
namespace {

enum Direction : int64_t { kUp, kDown, kButterfly, kIndex };

// The lane that lane l reads, and whether it is within its part of the warp; the bits as PTX has them.
int source_lane(int64_t direction, int l, uint32_t b, uint32_t c, bool& within) {
  const int by = static_cast<int>(b & 31), clamp = static_cast<int>(c & 31), segment = static_cast<int>(c >> 8 & 31);
  const int last = (l & segment) | (clamp & ~segment), first = l & segment;
  const int from = direction == kUp          ? l - by
                   : direction == kDown      ? l + by
                   : direction == kButterfly ? l ^ by
                                             : first | (by & ~segment);
  within = direction == kUp ? from >= last : from <= last;
  return within ? from : l;
}

// from: value, lane, clamp and segment, mask.
void shuffle(Warp& warp, const Instruction& in, Mask active) {
  with_members(warp, in.from[3], active, [&](Mask mask) {
    uint32_t buffers[3][kLanes], result[kLanes];
    const uint32_t *a = warp.get(in.from[0], buffers[0]), *b = warp.get(in.from[1], buffers[1]),
                   *c = warp.get(in.from[2], buffers[2]);
    Mask within = 0;
    for_each_lane(active, [&](int l) {
      bool is_within = false;
      const int from = source_lane(in.number, l, b[l], c[l], is_within);
      if ((mask >> from & 1) == 0) warp.fail("a shuffle reads a lane outside its mask");
      result[l] = a[from];
      within |= static_cast<Mask>(is_within) << l;
    });
    warp.put(in.to[0], result, active);
    if (in.to.size() > 1) warp.set_predicate(in.to[1], within, active);
  });
}

void decode_shuffle(Assembler& a, Statement& s, Instruction& in) {
  const std::string direction = s.take_one({"up", "down", "bfly", "idx"});
  if (direction.empty() || !s.take("sync") || !s.take("b32")) s.unknown();
  in.number = direction == "up" ? kUp : direction == "down" ? kDown : direction == "bfly" ? kButterfly : kIndex;
  s.expect_operands(5, 5);
  const std::string& results = s.operand(0);
  const size_t bar = results.find('|');
  in.to = {a.result(s, trimmed(results.substr(0, bar)))};
  if (bar != std::string::npos) in.to.push_back(a.result(s, trimmed(results.substr(bar + 1))));
  for (size_t k = 1; k < 5; ++k) in.from.push_back(a.value(s, s.operand(k), 4));
  in.run = shuffle;
}

enum Vote : int64_t { kAll, kAny, kUniform, kBallot };

void vote(Warp& warp, const Instruction& in, Mask active) {
  with_members(warp, in.from[1], active, [&](Mask mask) {
    const Mask votes = warp.predicate(in.from[0]) & mask;
    if (in.number == kBallot) {
      uint32_t ballot[kLanes];
      std::fill_n(ballot, kLanes, votes);
      return warp.put(in.to[0], ballot, active);
    }
    const bool holds = in.number == kAll ? votes == mask : in.number == kAny ? votes != 0 : votes == mask || votes == 0;
    warp.set_predicate(in.to[0], holds ? kAllLanes : 0, active);
  });
}

void decode_vote(Assembler& a, Statement& s, Instruction& in) {
  const std::string what = s.take_one({"all", "any", "uni", "ballot"});
  if (what.empty() || !s.take("sync") || !s.take(what == "ballot" ? "b32" : "pred")) s.unknown();
  in.number = what == "all" ? kAll : what == "any" ? kAny : what == "uni" ? kUniform : kBallot;
  s.expect_operands(3, 3);
  in.to = {a.result(s, s.operand(0))};
  in.from = {a.predicate(s, s.operand(1)), a.value(s, s.operand(2), 4)};
  in.run = vote;
}

void active_mask(Warp& warp, const Instruction& in, Mask active) {
  uint32_t masks[kLanes];
  std::fill_n(masks, kLanes, active);
  warp.put(in.to[0], masks, active);
}
void decode_active_mask(Assembler& a, Statement& s, Instruction& in) {
  if (!s.take("b32")) s.unknown();
  s.expect_operands(1, 1);
  in.to = {a.result(s, s.operand(0))};
  in.run = active_mask;
}

template <class F, class T>
void reduce(Warp& warp, const Instruction& in, Mask active) {
  with_members(warp, in.from[1], active, [&](Mask mask) {
    T buffer[kLanes], result[kLanes];
    const T* values = warp.get(in.from[0], buffer);
    T sum = values[__builtin_ctz(mask)];
    for_each_lane(mask & (mask - 1), [&](int l) { sum = F::apply(sum, values[l]); });
    std::fill_n(result, kLanes, sum);
    warp.put(in.to[0], result, active);
  });
}

void decode_reduce(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  const std::string what = s.take_one({"add", "min", "max", "and", "or", "xor"});
  if (!s.take("sync") || type.bits != 32) s.unknown();
  take_operands(a, s, in, {4, 4});
  with_whole(s, type, [&](auto of) {
    using T = decltype(of);
    if constexpr (sizeof(T) == 4)
      in.run = what == "add"   ? reduce<Add, T>
               : what == "min" ? reduce<Min, T>
               : what == "max" ? reduce<Max, T>
               : what == "and" ? reduce<And, T>
               : what == "or"  ? reduce<Or, T>
               : what == "xor" ? reduce<Xor, T>
                               : nullptr;
  });
}

}  // namespace

void add_exchange_decoders(Decoders& all) {
  all["shfl"] = decode_shuffle;
  all["vote"] = decode_vote;
  all["activemask"] = decode_active_mask;
  all["redux"] = decode_reduce;
}

}  // namespace ptx
