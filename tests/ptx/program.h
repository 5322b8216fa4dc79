#pragma once
// What the text of an entry becomes: instructions whose operands are places among the registers of a warp.

#include <stdint.h>

#include <array>
#include <string>
#include <vector>

#include "ptx/memory.h"

namespace ptx {

constexpr int kLanes = 32;
using Mask = uint32_t;  // of the lanes of a warp
constexpr Mask kAllLanes = 0xffffffffu;

class Warp;

// A value of every lane: `bytes` of each, side by side. A predicate is a mask, and has no bytes.
struct Operand {
  uint32_t at = 0;
  uint8_t bytes = 0;
};

enum class Rounding : uint8_t { nearest, zero, down, up };

struct Instruction {
  using Run = void (*)(Warp&, const Instruction&, Mask active);
  Run run = nullptr;
  bool guarded = false, negated = false;
  Operand guard;
  std::vector<Operand> to, from;
  int64_t number = 0;       // a count, or the choice among the kinds of an instruction
  int64_t offsets[2] = {};  // of addresses
  uint32_t target = 0;
  Space space = Space::generic;
  Rounding rounding = Rounding::nearest;
  bool flush = false, saturate = false;  // .ftz, .sat
  uint8_t relations = 0;                 // that a comparison asks for
  int line = 0;
  std::string text;
};

struct Parameter {
  std::string name;
  size_t offset = 0, bytes = 0;
};

// Registers, then constants and what a thread knows of itself.
enum class Special : uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  nwarpid,
  lanemask_eq,
  lanemask_lt,
  lanemask_le,
  lanemask_gt,
  lanemask_ge,
  dynamic_smem_size,
  count
};

struct Constant {
  Operand place;
  uint64_t bits;
};

struct Program {
  std::string name;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  std::array<unsigned, 3> required_threads{}, most_threads{};  // .reqntid, .maxntid: 0 where not said
  std::vector<Instruction> code;
  size_t register_bytes = 0;
  std::vector<Constant> constants;
  std::array<Operand, static_cast<size_t>(Special::count)> specials{};  // those without bytes are not asked for
  size_t static_shared = 0, local_bytes = 0;
};

}  // namespace ptx
