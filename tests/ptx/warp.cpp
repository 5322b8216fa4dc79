#include "ptx/warp.h"

#include <algorithm>

#include "ptx/block.h"
#include "ptx/text.h"

namespace ptx {
namespace {

// Of a turn, one in so many begins with some lanes held back.
constexpr unsigned kTurnsPerHold = 4;

std::array<uint32_t, kLanes> special_values(const Block& block, unsigned warp, Special special) {
  std::array<uint32_t, kLanes> values{};
  const Launch& launch = block.launch();
  const auto kind = static_cast<unsigned>(special), axis = kind % 3;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned thread = warp * kLanes + lane;
    const Three& size = launch.block;
    const Three thread_index{thread % size[0], thread / size[0] % size[1], thread / (size[0] * size[1])};
    const Mask own = 1u << lane;
    switch (special) {
      case Special::laneid:
        values[lane] = lane;
        break;
      case Special::warpid:
        values[lane] = warp;
        break;
      case Special::nwarpid:
        values[lane] = block.warps();
        break;
      case Special::lanemask_eq:
        values[lane] = own;
        break;
      case Special::lanemask_lt:
        values[lane] = own - 1;
        break;
      case Special::lanemask_le:
        values[lane] = own | (own - 1);
        break;
      case Special::lanemask_gt:
        values[lane] = ~(own | (own - 1));
        break;
      case Special::lanemask_ge:
        values[lane] = ~(own - 1);
        break;
      case Special::dynamic_smem_size:
        values[lane] = static_cast<uint32_t>(launch.dynamic_shared);
        break;
      default:
        values[lane] = kind < 3   ? thread_index[axis]
                       : kind < 6 ? size[axis]
                       : kind < 9 ? block.index()[axis]
                                  : launch.grid[axis];
    }
  }
  return values;
}

template <class T>
void fill(unsigned char* at, uint64_t bits) {
  std::fill_n(reinterpret_cast<T*>(at), kLanes, static_cast<T>(bits));
}

}  // namespace

Warp::Warp(Block& block, const Program& program)
    : block_(block),
      program_(program),
      registers_(static_cast<unsigned char*>(::operator new[](program.register_bytes, std::align_val_t{64}))),
      local_(program.local_bytes * kLanes) {
  memset(registers_.get(), 0, program.register_bytes);
  for (const Constant& constant : program.constants) {
    unsigned char* at = registers_.get() + constant.place.at;
    switch (constant.place.bytes) {
      case 0:
        memcpy(at, &constant.bits, sizeof(Mask));
        break;
      case 1:
        fill<uint8_t>(at, constant.bits);
        break;
      case 2:
        fill<uint16_t>(at, constant.bits);
        break;
      case 4:
        fill<uint32_t>(at, constant.bits);
        break;
      default:
        fill<uint64_t>(at, constant.bits);
    }
  }
}

void Warp::start(unsigned index, Mask lanes) {
  index_ = index;
  lanes_ = live_ = lanes;
  waiting_ = held_ = group_ = 0;
  at_barrier_ = false;
  places_.fill(0);
  for (Copies& copies : copies_) copies = {};
  std::fill(local_.begin(), local_.end(), 0xff);
  for (size_t k = 0; k < program_.specials.size(); ++k) {
    if (program_.specials[k].bytes == 0) continue;
    const auto values = special_values(block_, index, static_cast<Special>(k));
    memcpy(registers_.get() + program_.specials[k].at, values.data(), sizeof(values));
  }
}

void Warp::set_places(Mask lanes, uint32_t place) {
  for_each_lane(lanes, [&](int l) { places_[static_cast<size_t>(l)] = place; });
}

void Warp::hold_some_back() {
  held_ = block_.random()() % kTurnsPerHold == 0 ? static_cast<Mask>(block_.random()()) & live_ & ~waiting_ : 0;
}

void Warp::choose_group() {
  Mask candidates = live_ & ~waiting_ & ~held_;
  if (candidates == 0) {
    held_ = 0;
    candidates = live_ & ~waiting_;
  }
  if (candidates == 0) {
    at_ = places_[static_cast<size_t>(__builtin_ctz(live_))];
    fail("some lanes wait here for others that wait elsewhere");
  }
  at_ = ~0u;
  for_each_lane(candidates, [&](int l) { at_ = std::min(at_, places_[static_cast<size_t>(l)]); });
  group_ = 0;
  for_each_lane(live_ & ~held_, [&](int l) { group_ |= places_[static_cast<size_t>(l)] == at_ ? 1u << l : 0u; });
  waiting_ &= ~group_;
}

void Warp::run(int quantum) {
  hold_some_back();
  while (quantum > 0 && runnable()) {
    choose_group();
    uint32_t until = ~0u;  // the next place where lanes join
    for_each_lane(live_ & ~group_, [&](int l) {
      const uint32_t place = places_[static_cast<size_t>(l)];
      if (place > at_) until = std::min(until, place);
    });
    regroup_ = false;
    while (!regroup_ && at_ < until && quantum-- > 0) {
      const Instruction& instruction = program_.code[at_];
      Mask active = group_;
      if (instruction.guarded) {
        const Mask guard = predicate(instruction.guard);
        active &= instruction.negated ? ~guard : guard;
      }
      next_ = at_ + 1;
      instructions_ += static_cast<unsigned>(__builtin_popcount(active));
      if (active != 0) instruction.run(*this, instruction, active);
      if (!regroup_) at_ = next_;
    }
    if (!regroup_) set_places(group_, at_);
  }
}

void Warp::jump(Mask active, uint32_t target) {
  if (active == live_) {
    next_ = target;
    return;
  }
  set_places(group_ & ~active, next_);
  set_places(active, target);
  regroup_ = true;
}

void Warp::finish(Mask active) {
  set_places(group_ & ~active, next_);
  live_ &= ~active;
  regroup_ = true;
}

bool Warp::together(Mask active, Mask wanted) {
  if ((wanted & ~lanes_ & ~active) != 0 || (wanted & lanes_ & ~live_) != 0)
    fail("lanes are waited for that have returned");
  if ((wanted & ~active) == 0) return true;
  set_places(group_ & ~active, next_);
  set_places(active, at_);
  waiting_ |= active;
  regroup_ = true;
  return false;
}

void Warp::wait_at_barrier(Mask active) {
  set_places(group_ & ~active, next_);
  set_places(active, next_);
  at_barrier_ = regroup_ = true;
}

unsigned char* Warp::memory(Space space, uint64_t address, size_t bytes, int lane, size_t align) {
  if (align == 0) align = bytes;
  if (address % align != 0) fail("the address is not a multiple of " + std::to_string(align));
  if (space == Space::generic) {
    space = Space::global;
    for (const Space other : {Space::shared, Space::local, Space::param})
      if (address >> kWindowBits == window(other) >> kWindowBits) space = other;
    address &= (uint64_t{1} << kWindowBits) - 1;
  }
  const auto within = [&](unsigned char* begin, size_t size, uint64_t offset, const char* what) {
    if (offset > size || size - offset < bytes)
      fail("byte " + std::to_string(static_cast<int64_t>(offset)) + " is beyond the " + std::to_string(size) +
           " bytes of " + what);
    return begin + offset;
  };
  switch (space) {
    case Space::shared:
      return within(block_.shared().data(), block_.shared().size(), address - kSharedBegin, "shared memory");
    case Space::local:
      return within(local_.data() + static_cast<size_t>(lane) * program_.local_bytes, program_.local_bytes, address,
                    "local memory");
    case Space::param: {
      const std::vector<unsigned char>& parameters = block_.launch().parameters;
      return within(const_cast<unsigned char*>(parameters.data()), parameters.size(), address, "parameters");
    }
    default:
      break;
  }
  if (!last_.holds(address, bytes)) {
    last_ = allocations().around(address);
    if (!last_.holds(address, bytes)) {
      const Extent before = last_.end == 0 ? allocations().around(address - 1) : last_;
      fail("the address is outside of every allocation" +
           (before.end == 0 ? std::string()
                            : ": byte " + std::to_string(address - before.begin) + " of one of " +
                                  std::to_string(before.end - before.begin) + " bytes"));
    }
  }
  return reinterpret_cast<unsigned char*>(address);
}

void Warp::fail(const std::string& what) const {
  const Instruction& instruction = place();
  const Three& block = block_.index();
  throw Error(what + ", in warp " + std::to_string(index_) + " of block (" + std::to_string(block[0]) + ", " +
              std::to_string(block[1]) + ", " + std::to_string(block[2]) + ") at line " +
              std::to_string(instruction.line) + " of " + program_.name + ": " + instruction.text);
}

}  // namespace ptx
