#pragma once
// 32 lanes that go through a program, each at its own place: those at the lowest place go on together, as far as the
// next place where others wait for them. At random moments a few are held back, as nothing says that lanes keep step.

#include <string.h>

#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "ptx/program.h"

namespace ptx {

class Block;

// A copy that goes on while its thread computes. Until the thread waits for it the target is NaN.
struct Copy {
  unsigned char* to;
  const unsigned char* from;
  size_t size, valid;
};

struct Copies {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

class Warp {
 public:
  Warp(Block& block, const Program& program);

  void start(unsigned index, Mask lanes);
  // Carries out so many instructions, or fewer where the warp ends or comes to a barrier.
  void run(int quantum);
  uint64_t instructions() const { return instructions_; }  // of all its lanes so far
  bool runnable() const { return live_ != 0 && !at_barrier_; }
  Mask live() const { return live_; }
  Mask lanes() const { return lanes_; }
  unsigned index() const { return index_; }
  // The instruction at which a warp has stopped.
  const Instruction& place() const { return program_.code[at_]; }

  // For instructions.

  Block& block() { return block_; }
  // Values of all lanes; of registers of another size than T they go through the buffer.
  template <class T>
  const T* get(const Operand& operand, T (&buffer)[kLanes]) const;
  template <class T>
  void put(const Operand& operand, const T (&values)[kLanes], Mask active);
  Mask predicate(const Operand& operand) const;
  void set_predicate(const Operand& operand, Mask value, Mask active);
  // So many bytes behind an address of a lane, which must be a multiple of their number or of what is given.
  unsigned char* memory(Space space, uint64_t address, size_t bytes, int lane, size_t align = 0);
  Copies& copies(int lane) { return copies_[static_cast<size_t>(lane)]; }

  void jump(Mask active, uint32_t target);
  void finish(Mask active);
  // Are all the lanes that are wanted at this instruction? If not, those that are wait for the others.
  bool together(Mask active, Mask wanted);
  void wait_at_barrier(Mask active);
  void leave_barrier() { at_barrier_ = false; }
  [[noreturn]] void fail(const std::string& what) const;

 private:
  Block& block_;
  const Program& program_;
  struct Free {
    void operator()(unsigned char* at) const { ::operator delete[](at, std::align_val_t{64}); }
  };
  std::unique_ptr<unsigned char[], Free> registers_;
  std::vector<unsigned char> local_;
  std::array<Copies, kLanes> copies_;
  std::array<uint32_t, kLanes> places_{};
  Mask lanes_ = 0, live_ = 0;
  Mask waiting_ = 0;  // for other lanes
  Mask held_ = 0;     // back for now
  Mask group_ = 0;    // those that go on
  bool at_barrier_ = false, regroup_ = false;
  uint32_t at_ = 0, next_ = 0;
  unsigned index_ = 0;
  uint64_t instructions_ = 0;
  Extent last_;  // that an address lay in

  // Calls back with an unsigned number of a register's size.
  template <class Call>
  void with_type(const Operand& operand, const Call& call) const;
  void hold_some_back();
  void choose_group();
  void set_places(Mask lanes, uint32_t place);
};

template <class Call>
void Warp::with_type(const Operand& operand, const Call& call) const {
  switch (operand.bytes) {
    case 1:
      call(uint8_t{});
      break;
    case 2:
      call(uint16_t{});
      break;
    case 4:
      call(uint32_t{});
      break;
    case 8:
      call(uint64_t{});
      break;
    default:
      fail("a predicate is no number");
  }
}

template <class T>
const T* Warp::get(const Operand& operand, T (&buffer)[kLanes]) const {
  const unsigned char* at = registers_.get() + operand.at;
  if (operand.bytes == sizeof(T)) return reinterpret_cast<const T*>(at);
  const auto narrow = [&](auto of) {
    const auto* from = reinterpret_cast<const decltype(of)*>(at);
    for (int l = 0; l < kLanes; ++l) {
      const uint64_t bits = from[l];
      memcpy(&buffer[l], &bits, sizeof(T));
    }
  };
  with_type(operand, narrow);
  return buffer;
}

// A whole number goes into a wider register with its sign.
template <class T>
void Warp::put(const Operand& operand, const T (&values)[kLanes], Mask active) {
  unsigned char* at = registers_.get() + operand.at;
  const auto blend = [&](auto of) {
    using To = decltype(of);
    To* to = reinterpret_cast<To*>(at);
    for (int l = 0; l < kLanes; ++l) {
      To value;
      if constexpr (std::is_integral_v<T>)
        value = static_cast<To>(values[l]);
      else if constexpr (sizeof(To) == sizeof(T))
        value = __builtin_bit_cast(To, values[l]);
      else
        value = 0;
      to[l] = (active >> l & 1u) != 0 ? value : to[l];
    }
  };
  if (!std::is_integral_v<T> && operand.bytes != sizeof(T)) fail("the register has another size");
  with_type(operand, blend);
}

inline Mask Warp::predicate(const Operand& operand) const {
  Mask value;
  memcpy(&value, registers_.get() + operand.at, sizeof(value));
  return value;
}

inline void Warp::set_predicate(const Operand& operand, Mask value, Mask active) {
  const Mask merged = (predicate(operand) & ~active) | (value & active);
  memcpy(registers_.get() + operand.at, &merged, sizeof(merged));
}

template <class Do>
void for_each_lane(Mask mask, Do&& act) {
  for (; mask != 0; mask &= mask - 1) act(__builtin_ctz(mask));
}

}  // namespace ptx
