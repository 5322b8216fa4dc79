#pragma once
// Turns the statements of an entry into a Program: names become places among the registers.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ptx/program.h"
#include "ptx/text.h"

namespace ptx {

// "u32", "bf16x2", "pred".
struct Type {
  enum class Kind : uint8_t { bits, whole, sign, real, brain, tf32, predicate };
  Kind kind = Kind::bits;
  int bits = 0;
  int lanes = 1;  // of a packed one

  static Type parse(const Statement& statement, const std::string& name);
  uint8_t bytes() const { return static_cast<uint8_t>(bits * lanes / 8); }
  bool is_real() const { return kind == Kind::real; }
};

struct Variable {
  Space space = Space::generic;
  uint64_t address = 0;  // generic
};
using Variables = std::map<std::string, Variable>;

class Assembler {
 public:
  Assembler(Program& program, Variables variables);

  void assemble(std::string_view body, int first_line);

  // Operands of an instruction as its decoder asks for them.
  Operand value(const Statement& s, const std::string& name, uint8_t bytes);
  Operand predicate(const Statement& s, const std::string& name);
  Operand result(const Statement& s, const std::string& name);
  // "{%r1, %r2}" or one alone.
  std::vector<std::string> items(const std::string& list) const;
  // "[%rd1+8]": where the base of the address is; the offset goes to the instruction.
  Operand address(const Statement& s, const std::string& text, Space space, int64_t& offset);
  Operand constant(uint64_t bits, uint8_t bytes);
  void jump_to(Instruction& instruction, const std::string& label);

 private:
  Program& program_;
  Variables variables_;
  std::vector<std::map<std::string, Operand>> scopes_;
  std::map<std::pair<uint64_t, uint8_t>, Operand> constants_;
  std::map<std::string, uint32_t> labels_;
  std::vector<std::pair<uint32_t, std::string>> jumps_;
  Operand unused_;

  Operand place(uint8_t bytes);
  const Operand* find(const std::string& name) const;
  void declare(const Line& line);
  void add(const Line& line);
  void link();
};

// Fills in `run` and what it needs; complains of what it does not know.
using Decoder = void (*)(Assembler&, Statement&, Instruction&);
using Decoders = std::map<std::string, Decoder>;
// Of whole numbers and all else, and of the instructions of the same names for floating-point numbers.
const Decoders& decoders();
const Decoders& real_decoders();

void add_integer_decoders(Decoders& all);
void add_real_decoders(Decoders& all);
void add_comparison_decoders(Decoders& all);
void add_conversion_decoders(Decoders& all);
void add_data_decoders(Decoders& all);
void add_atomic_decoders(Decoders& all);
void add_copy_decoders(Decoders& all);
void add_control_decoders(Decoders& all);
void add_exchange_decoders(Decoders& all);
void add_tensor_core_decoders(Decoders& all);

}  // namespace ptx
