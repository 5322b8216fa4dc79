// Jumps and barriers.

#include <algorithm>

#include "ptx/block.h"
#include "ptx/lanes.h"

namespace ptx {
namespace {

void jump(Warp& warp, const Instruction& in, Mask active) { warp.jump(active, in.target); }
void finish(Warp& warp, const Instruction&, Mask active) { warp.finish(active); }
void nothing(Warp&, const Instruction&, Mask) {}
void trap(Warp& warp, const Instruction&, Mask) { warp.fail("the kernel gives up"); }

void decode_jump(Assembler& a, Statement& s, Instruction& in) {
  s.take("uni");
  s.expect_operands(1, 1);
  a.jump_to(in, s.operand(0));
  in.run = jump;
}
void decode_finish(Assembler&, Statement& s, Instruction& in) {
  s.take("uni");
  s.expect_operands(0, 0);
  in.run = finish;
}
void decode_trap(Assembler&, Statement&, Instruction& in) { in.run = trap; }
// Fences: every access is seen at once here. What one is missing for, the order of the warps shows.
void decode_fence(Assembler&, Statement& s, Instruction& in) {
  s.modifiers.clear();
  in.run = nothing;
}

enum Reduction : int64_t { kNone, kAnd, kOr, kCount };

// bar.sync and bar.red; from: the barrier, how many threads (0: all), a predicate.
void barrier(Warp& warp, const Instruction& in, Mask active) {
  if (!warp.together(active, warp.lanes())) return;
  uint32_t first[kLanes], second[kLanes];
  const uint32_t number = warp.get(in.from[0], first)[0], threads = warp.get(in.from[1], second)[0];
  Mask predicate = 0;
  Block::Release release;
  if (in.number != kNone) {
    predicate = warp.predicate(in.from[2]) & active;
    release = [&in](const std::vector<Block::Arrival>& all) {
      int count = 0, lanes = 0;
      for (const Block::Arrival& one : all) {
        count += __builtin_popcount(one.predicate);
        lanes += __builtin_popcount(one.warp->lanes());
      }
      uint32_t counts[kLanes];
      std::fill_n(counts, kLanes, static_cast<uint32_t>(count));
      for (const Block::Arrival& one : all) {
        if (in.number == kCount)
          one.warp->put(in.to[0], counts, one.warp->lanes());
        else
          one.warp->set_predicate(in.to[0], (in.number == kAnd ? count == lanes : count > 0) ? kAllLanes : 0,
                                  one.warp->lanes());
      }
    };
  }
  warp.wait_at_barrier(active);
  warp.block().arrive(warp, number, threads, predicate, std::move(release));
}

// bar.warp.sync
void warp_barrier(Warp& warp, const Instruction& in, Mask active) {
  with_members(warp, in.from[0], active, [](Mask) {});
}
void decode_warp_barrier(Assembler& a, Statement& s, Instruction& in) {
  if (!s.take("sync")) s.unknown();
  s.expect_operands(1, 1);
  in.from = {a.value(s, s.operand(0), 4)};
  in.run = warp_barrier;
}

void decode_barrier(Assembler& a, Statement& s, Instruction& in) {
  if (s.take("warp")) return decode_warp_barrier(a, s, in);
  s.take("cta");
  s.take("aligned");
  const bool reduces = s.take("red");
  if (reduces) {
    const std::string what = s.take_one({"popc", "and", "or"});
    if (what.empty() || !s.take(what == "popc" ? "u32" : "pred")) s.unknown();
    in.number = what == "popc" ? kCount : what == "and" ? kAnd : kOr;
    in.to = {a.result(s, s.operand(0))};
  } else if (!s.take("sync")) {
    s.unknown();
  }
  const size_t first = reduces ? 1 : 0, last = s.operands.size() - first;
  s.expect_operands(first + 1 + first, first + 2 + first);
  in.from = {a.value(s, s.operand(first), 4)};
  in.from.push_back(last == 2 + first ? a.value(s, s.operand(first + 1), 4) : a.constant(0, 4));
  if (reduces) in.from.push_back(a.predicate(s, s.operands.back()));
  in.run = barrier;
}

}  // namespace

void add_control_decoders(Decoders& all) {
  all["bra"] = decode_jump;
  all["ret"] = all["exit"] = decode_finish;
  all["trap"] = decode_trap;
  all["membar"] = all["fence"] = all["nanosleep"] = decode_fence;
  all["bar"] = all["barrier"] = decode_barrier;
}

}  // namespace ptx
