#pragma once
// PTX as text: what is said in it, before anyone asks what it means.

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Without comments and without the places in a source; as many lines as before.
std::string without_comments(std::string_view text);

// The parts between commas that no bracket encloses.
std::vector<std::string> split(std::string_view list);
std::string trimmed(std::string_view text);
size_t closing(std::string_view text, size_t open);  // the place of the bracket that closes this one

// ".shared .align 8 .b8 name[16]", ".param .u64 name".
struct Declaration {
  explicit Declaration(const std::string& text);

  std::string name;
  size_t align = 1, bytes = 0;
  bool has_no_size = false;  // "name[]"
};
inline size_t align_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

struct Line {
  enum class Kind { label, open, close, directive, instruction };
  Kind kind;
  std::string text;
  int number;
};
std::vector<Line> lines_of(std::string_view body, int first_line);

// "@!%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+8]" in its parts.
class Statement {
 public:
  explicit Statement(const Line& line);

  std::string text, guard, name;
  bool negated = false;
  std::vector<std::string> modifiers, operands;
  int line;

  // A decoder takes the modifiers that it knows; one that is left is not known.
  bool take(std::string_view modifier);
  std::string take_one(std::initializer_list<std::string_view> choices);  // empty where there is none of them
  std::string take_last();
  const std::string& operand(size_t k) const;
  void expect_operands(size_t least, size_t most) const;
  [[noreturn]] void unknown(const std::string& why = "unknown instruction") const;
};

}  // namespace ptx
