// atom and red: the lanes of a warp come in a random order.

#include <algorithm>
#include <array>
#include <numeric>

#include "ptx/block.h"
#include "ptx/lanes.h"
#include "ptx/operations.h"

namespace ptx {
namespace {

template <class F>
struct Update {
  template <class T>
  static T apply(T old, T x, T) {
    return F::apply(old, x);
  }
};
struct Exchange {
  template <class T>
  static T apply(T, T x, T) {
    return x;
  }
};
struct CompareAndSwap {
  template <class T>
  static T apply(T old, T x, T y) {
    return old == x ? y : old;
  }
};

template <class F, class T>
void update(Warp& warp, const Instruction& in, Mask active) {
  uint64_t buffer[kLanes];
  T first[kLanes], second[kLanes], old[kLanes];
  const uint64_t* addresses = warp.get(in.from[0], buffer);
  const T *x = warp.get(in.from[1], first), *y = warp.get(in.from.back(), second);
  std::array<int, kLanes> order;
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), warp.block().random());
  for (const int l : order) {
    if ((active >> l & 1) == 0) continue;
    unsigned char* at = warp.memory(in.space, addresses[l] + static_cast<uint64_t>(in.offsets[0]), sizeof(T), l);
    memcpy(&old[l], at, sizeof(T));
    const T updated = F::apply(old[l], x[l], y[l]);
    memcpy(at, &updated, sizeof(T));
  }
  if (!in.to.empty()) warp.put(in.to[0], old, active);
}

template <class F>
void choose(const Statement& s, Type type, Instruction& in) {
  with_whole(s, type, [&](auto of) { in.run = update<F, decltype(of)>; });
}

template <bool gives_old>
void decode(Assembler& a, Statement& s, Instruction& in) {
  const Type type = Type::parse(s, s.take_last());
  const std::string what = s.take_one({"add", "min", "max", "and", "or", "xor", "exch", "cas"});
  s.take_one({"relaxed", "acquire", "release", "acq_rel"});
  s.take_one({"cta", "gpu", "sys"});
  in.space = take_shared(s) ? Space::shared : s.take("global") ? Space::global : Space::generic;
  const size_t first = gives_old ? 1 : 0, sources = what == "cas" ? 2 : 1;
  s.expect_operands(first + 1 + sources, first + 1 + sources);
  if (gives_old) in.to = {a.result(s, s.operand(0))};
  in.from = {a.address(s, s.operand(first), in.space, in.offsets[0])};
  for (size_t k = 0; k < sources; ++k) in.from.push_back(a.value(s, s.operand(first + 1 + k), type.bytes()));
  if (type.is_real()) {
    if (what == "add") with_real(s, type, [&](auto of) { in.run = update<Update<Add>, decltype(of)>; });
    return;
  }
  if (type.bits != 32 && type.bits != 64) s.unknown();
  if (what == "add") choose<Update<Add>>(s, type, in);
  if (what == "min") choose<Update<Min>>(s, type, in);
  if (what == "max") choose<Update<Max>>(s, type, in);
  if (what == "and") choose<Update<And>>(s, type, in);
  if (what == "or") choose<Update<Or>>(s, type, in);
  if (what == "xor") choose<Update<Xor>>(s, type, in);
  if (what == "exch") choose<Exchange>(s, type, in);
  if (what == "cas") choose<CompareAndSwap>(s, type, in);
}

}  // namespace

void add_atomic_decoders(Decoders& all) {
  all["atom"] = decode<true>;
  all["red"] = decode<false>;
}

}  // namespace ptx
