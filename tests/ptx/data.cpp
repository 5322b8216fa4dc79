// Registers and memory: mov, ld, st, and what goes with them.

#include "ptx/lanes.h"

namespace ptx {
namespace {

struct Same {
  template <class T>
  static T apply(T x) {
    return x;
  }
};
// Between an address of a space and a generic one: the window differs.
struct Shift {
  static uint64_t apply(uint64_t address, uint64_t by) { return address + by; }
};

Instruction::Run copy(Type type) {
  switch (type.bytes()) {
    case 1:
      return each_lane<Same, uint8_t, uint8_t>;
    case 2:
      return each_lane<Same, uint16_t, uint16_t>;
    case 4:
      return each_lane<Same, uint32_t, uint32_t>;
    default:
      return each_lane<Same, uint64_t, uint64_t>;
  }
}

void copy_predicate(Warp& warp, const Instruction& in, Mask active) {
  warp.set_predicate(in.to[0], warp.predicate(in.from[0]), active);
}

// A register's parts, the lowest bits first.
void pack(Warp& warp, const Instruction& in, Mask active) {
  uint64_t whole[kLanes] = {};
  int at = 0;
  for (const Operand& part : in.from) {
    uint64_t buffer[kLanes];
    const uint64_t* bits = warp.get(part, buffer);
    for (int l = 0; l < kLanes; ++l) whole[l] |= bits[l] << at;
    at += static_cast<int>(in.number);
  }
  warp.put(in.to[0], whole, active);
}
void unpack(Warp& warp, const Instruction& in, Mask active) {
  uint64_t buffer[kLanes], part[kLanes];
  const uint64_t* whole = warp.get(in.from[0], buffer);
  int at = 0;
  for (const Operand& to : in.to) {
    for (int l = 0; l < kLanes; ++l) part[l] = whole[l] >> at;
    warp.put(to, part, active);
    at += static_cast<int>(in.number);
  }
}

void move(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  s.expect_operands(2, 2);
  const std::string &to = s.operand(0), &from = s.operand(1);
  if (type.kind == Type::Kind::predicate) {
    in.to = {a.result(s, to)};
    in.from = {a.predicate(s, from)};
    in.run = copy_predicate;
    return;
  }
  const auto parts = a.items(to.front() == '{' ? to : from);
  in.number = type.bits / static_cast<int>(parts.size());
  const auto part_bytes = static_cast<uint8_t>(in.number / 8);
  for (const std::string& name : to.front() == '{' ? parts : std::vector{to}) in.to.push_back(a.result(s, name));
  for (const std::string& name : from.front() == '{' ? parts : std::vector{from})
    in.from.push_back(a.value(s, name, from.front() == '{' ? part_bytes : type.bytes()));
  in.run = to.front() == '{' ? unpack : from.front() == '{' ? pack : copy(type);
}

Space take_space(Statement& s) {
  return take_shared(s)                                   ? Space::shared
         : s.take("global")                               ? Space::global
         : s.take("local")                                ? Space::local
         : !s.take_one({"param", "param::entry"}).empty() ? Space::param
                                                          : Space::generic;
}

void convert_address(Assembler& a, Statement& s, Instruction& in) {
  const std::string type = s.take_last();
  const bool to = s.take("to");
  const Space space = take_space(s);
  if (type != "u64" || space == Space::generic) s.unknown();
  take_operands(a, s, in, {8});
  const uint64_t by = space == Space::global ? 0 : window(space);
  in.from.push_back(a.constant(to ? -by : by, 8));
  in.run = each_lane<Shift, uint64_t, uint64_t, uint64_t>;
}

// What a cache may do with a word, and how the order of accesses is seen by other threads: all are in order here.
void take_hints(Statement& s) {
  s.take_one({"weak", "volatile", "relaxed", "acquire", "release", "acq_rel"});
  s.take_one({"cta", "gpu", "sys"});
  s.take_one({"ca", "cg", "cs", "lu", "cv", "nc", "wb", "wt"});
  std::erase_if(s.modifiers, [](const std::string& m) { return m.starts_with("L1::") || m.starts_with("L2::"); });
}

template <class Act>
void with_addresses(Warp& warp, const Instruction& in, const Operand& base, Mask active, size_t bytes, Act&& act) {
  uint64_t buffer[kLanes];
  const uint64_t* addresses = warp.get(base, buffer);
  for_each_lane(active, [&](int l) {
    act(l, warp.memory(in.space, addresses[l] + static_cast<uint64_t>(in.offsets[0]), bytes, l));
  });
}

template <class T>
void load(Warp& warp, const Instruction& in, Mask active) {
  const size_t count = in.to.size();
  T values[8][kLanes];
  with_addresses(warp, in, in.from[0], active, count * sizeof(T), [&](int l, const unsigned char* at) {
    for (size_t k = 0; k < count; ++k) memcpy(&values[k][l], at + k * sizeof(T), sizeof(T));
  });
  for (size_t k = 0; k < count; ++k) warp.put(in.to[k], values[k], active);
}

template <class T>
void store(Warp& warp, const Instruction& in, Mask active) {
  const size_t count = in.from.size() - 1;
  T buffers[8][kLanes];
  const T* values[8];
  for (size_t k = 0; k < count; ++k) values[k] = warp.get(in.from[k + 1], buffers[k]);
  with_addresses(warp, in, in.from[0], active, count * sizeof(T), [&](int l, unsigned char* at) {
    for (size_t k = 0; k < count; ++k) memcpy(at + k * sizeof(T), &values[k][l], sizeof(T));
  });
}

// ld.global.v2.f32, st.shared.u8; a number with a sign fills a wider register with it.
template <bool loads>
void access(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  take_hints(s);
  in.space = take_space(s);
  const std::string vector = s.take_one({"v2", "v4"});
  s.expect_operands(2, 2);
  in.from = {a.address(s, s.operand(loads ? 1 : 0), in.space, in.offsets[0])};
  for (const std::string& name : a.items(s.operand(loads ? 0 : 1))) {
    if (loads)
      in.to.push_back(a.result(s, name));
    else
      in.from.push_back(a.value(s, name, type.bytes()));
  }
  const size_t count = vector.empty() ? 1 : static_cast<size_t>(vector[1] - '0');
  if ((loads ? in.to.size() : in.from.size() - 1) != count) s.unknown();
  const Type bits = type.is_real() ? Type{Type::Kind::bits, type.bits, 1} : type;
  with_whole(s, bits, [&](auto of) { in.run = loads ? load<decltype(of)> : store<decltype(of)>; });
}

}  // namespace

void add_data_decoders(Decoders& all) {
  all["mov"] = move;
  all["cvta"] = convert_address;
  all["ld"] = access<true>;
  all["st"] = access<false>;
}

}  // namespace ptx
