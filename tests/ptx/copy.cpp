// cp.async: copies from global to shared memory.

#include "ptx/block.h"
#include "ptx/lanes.h"

namespace ptx {
namespace {

constexpr int kNanByte = 0xff;

void complete(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    memcpy(copy.to, copy.from, copy.valid);
    memset(copy.to + copy.valid, 0, copy.size - copy.valid);
  }
}

// from: target, source, how much of it is valid; number: the size, and the offsets of both.
void start(Warp& warp, const Instruction& in, Mask active) {
  uint64_t first[kLanes], second[kLanes];
  uint32_t third[kLanes];
  const uint64_t *to = warp.get(in.from[0], first), *from = warp.get(in.from[1], second);
  const uint32_t* valid = warp.get(in.from[2], third);
  const auto size = static_cast<size_t>(in.number);
  for_each_lane(active, [&](int l) {
    if (valid[l] > size) warp.fail("a copy of more bytes than it is for");
    unsigned char* target = warp.memory(Space::shared, to[l] + static_cast<uint64_t>(in.offsets[0]), size, l);
    const uint64_t source = from[l] + static_cast<uint64_t>(in.offsets[1]);
    const unsigned char* bytes = valid[l] == 0 ? nullptr : warp.memory(Space::global, source, valid[l], l, size);
    memset(target, kNanByte, size);
    warp.copies(l).open.push_back({target, bytes, size, valid[l]});
  });
}

void commit(Warp& warp, const Instruction&, Mask active) {
  for_each_lane(active, [&](int l) {
    Copies& copies = warp.copies(l);
    copies.groups.push_back(std::move(copies.open));
    copies.open.clear();
  });
}

// Until so many of a thread's groups are under way.
void wait(Warp& warp, const Instruction& in, Mask active) {
  for_each_lane(active, [&](int l) {
    auto& groups = warp.copies(l).groups;
    for (; static_cast<int64_t>(groups.size()) > in.number; groups.pop_front()) complete(groups.front());
  });
}
void wait_for_all(Warp& warp, const Instruction& in, Mask active) {
  commit(warp, in, active);
  wait(warp, in, active);
}

void decode_start(Assembler& a, Statement& s, Instruction& in) {
  const bool whole_line = s.take("cg");
  if (!whole_line && !s.take("ca")) s.unknown();
  if (!take_shared(s) || !s.take("global")) s.unknown();
  std::erase_if(s.modifiers, [](const std::string& m) { return m.starts_with("L2::"); });
  s.expect_operands(3, 4);
  in.number = std::stoll(s.operand(2), nullptr, 0);
  if (in.number != 16 && (whole_line || (in.number != 4 && in.number != 8))) s.unknown();
  in.from = {a.address(s, s.operand(0), Space::shared, in.offsets[0]),
             a.address(s, s.operand(1), Space::global, in.offsets[1]), a.value(s, s.operands.back(), 4)};
  in.run = start;
}

void decode(Assembler& a, Statement& s, Instruction& in) {
  if (!s.take("async")) s.unknown();
  if (s.take("commit_group")) {
    in.run = commit;
  } else if (s.take("wait_group")) {
    in.number = std::stoll(s.operand(0), nullptr, 0);
    in.run = wait;
  } else if (s.take("wait_all")) {
    in.run = wait_for_all;
  } else {
    decode_start(a, s, in);
  }
}

}  // namespace

void add_copy_decoders(Decoders& all) { all["cp"] = decode; }

}  // namespace ptx
