#include "ptx/assembler.h"

#include <cstdlib>
#include <regex>

namespace ptx {
namespace {

constexpr size_t kLine = 64;  // every place begins a line of the cache, so that its loops have aligned vectors

const std::map<std::string, Special>& special_names() {
  static const std::map<std::string, Special> names = [] {
    std::map<std::string, Special> all{{"%laneid", Special::laneid},
                                       {"%warpid", Special::warpid},
                                       {"%nwarpid", Special::nwarpid},
                                       {"%lanemask_eq", Special::lanemask_eq},
                                       {"%lanemask_lt", Special::lanemask_lt},
                                       {"%lanemask_le", Special::lanemask_le},
                                       {"%lanemask_gt", Special::lanemask_gt},
                                       {"%lanemask_ge", Special::lanemask_ge},
                                       {"%dynamic_smem_size", Special::dynamic_smem_size}};
    int next = 0;
    for (const char* vector : {"%tid", "%ntid", "%ctaid", "%nctaid"})
      for (const char* axis : {".x", ".y", ".z"}) all[std::string(vector) + axis] = static_cast<Special>(next++);
    return all;
  }();
  return names;
}

uint64_t whole_number(const Statement& s, const std::string& text) {
  char* end = nullptr;
  const bool negative = text.front() == '-';
  const uint64_t magnitude = std::strtoull(text.c_str() + negative, &end, 0);
  if (end == text.c_str() + negative || (*end != '\0' && std::string(end) != "U")) s.unknown("unknown operand " + text);
  return negative ? -magnitude : magnitude;
}

Decoder decoder_of(const Statement& s) {
  const bool is_real = !s.modifiers.empty() && s.modifiers.back()[0] == 'f';
  for (const Decoders* all : {is_real ? &real_decoders() : &decoders(), &decoders()})
    if (const auto found = all->find(s.name); found != all->end()) return found->second;
  return nullptr;
}

}  // namespace

Type Type::parse(const Statement& s, const std::string& name) {
  if (name == "pred") return {Kind::predicate, 0, 1};
  if (name == "tf32") return {Kind::tf32, 32, 1};
  if (name == "bf16") return {Kind::brain, 16, 1};
  if (name == "bf16x2") return {Kind::brain, 16, 2};
  if (name == "f16x2") return {Kind::real, 16, 2};
  const char* const letters = "busf";
  const size_t kind = std::string(letters).find(name.empty() ? '?' : name[0]);
  const int bits = kind == std::string::npos ? 0 : std::atoi(name.c_str() + 1);
  if (bits != 8 && bits != 16 && bits != 32 && bits != 64) s.unknown("unknown type ." + name);
  return {static_cast<Kind>(kind), bits, 1};
}

Assembler::Assembler(Program& program, Variables variables)
    : program_(program), variables_(std::move(variables)), scopes_(1), unused_(place(8)) {}

Operand Assembler::place(uint8_t bytes) {
  const Operand found{static_cast<uint32_t>(program_.register_bytes), bytes};
  program_.register_bytes += align_up(bytes == 0 ? sizeof(Mask) : static_cast<size_t>(bytes) * kLanes, kLine);
  return found;
}

const Operand* Assembler::find(const std::string& name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    if (const auto found = scope->find(name); found != scope->end()) return &found->second;
  return nullptr;
}

Operand Assembler::constant(uint64_t bits, uint8_t bytes) {
  const auto [found, is_new] = constants_.try_emplace({bits, bytes});
  if (is_new) {
    found->second = place(bytes);
    program_.constants.push_back({found->second, bits});
  }
  return found->second;
}

Operand Assembler::value(const Statement& s, const std::string& name, uint8_t bytes) {
  if (name.empty()) s.unknown("an operand is missing");
  if (const Operand* known = find(name)) return *known;
  if (name[0] == '%') {
    const auto special = special_names().find(name);
    if (special == special_names().end()) s.unknown("unknown register " + name);
    Operand& at = program_.specials[static_cast<size_t>(special->second)];
    if (at.bytes == 0) at = place(4);
    return at;
  }
  if (const auto variable = variables_.find(name); variable != variables_.end())
    return constant(variable->second.address, bytes);
  const bool is_float = name.starts_with("0f") || name.starts_with("0F");
  const bool is_double = name.starts_with("0d") || name.starts_with("0D");
  if (is_float || is_double) {
    if (bytes != (is_float ? 4 : 8)) s.unknown("unknown operand " + name);
    return constant(std::strtoull(name.c_str() + 2, nullptr, 16), bytes);
  }
  const uint64_t bits = whole_number(s, name);
  return constant(bytes == 8 ? bits : bits & ((uint64_t{1} << bytes * 8) - 1), bytes);
}

Operand Assembler::predicate(const Statement& s, const std::string& name) {
  const Operand* known = find(name);
  if (known == nullptr && !name.empty() && name[0] != '%')
    return constant(whole_number(s, name) != 0 ? kAllLanes : 0, 0);
  if (known == nullptr || known->bytes != 0) s.unknown("unknown predicate " + name);
  return *known;
}

Operand Assembler::result(const Statement& s, const std::string& name) {
  if (name == "_") return unused_;
  const Operand* known = find(name);
  if (known == nullptr) s.unknown("unknown register " + name);
  return *known;
}

std::vector<std::string> Assembler::items(const std::string& list) const {
  if (list.empty() || list.front() != '{') return {list};
  return split(std::string_view(list).substr(1, list.size() - 2));
}

Operand Assembler::address(const Statement& s, const std::string& text, Space space, int64_t& offset) {
  if (text.size() < 3 || text.front() != '[' || text.back() != ']') s.unknown("unknown address " + text);
  const std::string inner = text.substr(1, text.size() - 2);
  const size_t plus = inner.find('+');
  const std::string base = trimmed(inner.substr(0, plus));
  offset = plus == std::string::npos ? 0 : static_cast<int64_t>(whole_number(s, trimmed(inner.substr(plus + 1))));
  const auto variable = variables_.find(base);
  if (variable != variables_.end() && variable->second.space != space) s.unknown("the variable lies in another space");
  return value(s, base, 8);
}

void Assembler::jump_to(Instruction& instruction, const std::string& label) {
  instruction.target = static_cast<uint32_t>(jumps_.size());
  jumps_.emplace_back(static_cast<uint32_t>(program_.code.size()), label);
}

// ".reg .b32 %r<4>, %s", ".local .align 16 .b8 name[64]".
void Assembler::declare(const Line& line) {
  const Statement s(line);
  if (s.modifiers[0] == "pragma") return;
  if (s.modifiers[0] == "local") {
    const Declaration variable(s.text);
    const size_t begin = align_up(program_.local_bytes, variable.align);
    variables_[variable.name] = {Space::local, begin};
    program_.local_bytes = begin + variable.bytes;
    return;
  }
  std::smatch found;
  if (!std::regex_match(s.text, found, std::regex(R"(\.reg\s+\.(\w+)\s+(.*))"))) s.unknown("unknown directive");
  const uint8_t bytes = Type::parse(s, found[1]).bytes();
  for (const std::string& name : split(std::string(found[2]))) {
    const size_t open = name.find('<');
    if (open == std::string::npos) scopes_.back()[name] = place(bytes);
    const size_t count = open == std::string::npos ? 0 : std::stoull(name.substr(open + 1));
    for (size_t k = 0; k < count; ++k) scopes_.back()[name.substr(0, open) + std::to_string(k)] = place(bytes);
  }
}

void Assembler::add(const Line& line) {
  Statement s(line);
  Instruction instruction;
  instruction.line = s.line;
  instruction.text = s.text;
  if (!s.guard.empty()) {
    instruction.guarded = true;
    instruction.negated = s.negated;
    instruction.guard = predicate(s, s.guard);
  }
  const Decoder decode = decoder_of(s);
  if (decode == nullptr) s.unknown();
  decode(*this, s, instruction);
  if (!s.modifiers.empty() || instruction.run == nullptr) s.unknown();
  program_.code.push_back(std::move(instruction));
}

void Assembler::assemble(std::string_view body, int first_line) {
  for (const Line& line : lines_of(body, first_line)) {
    switch (line.kind) {
      case Line::Kind::open:
        scopes_.emplace_back();
        break;
      case Line::Kind::close:
        scopes_.pop_back();
        break;
      case Line::Kind::label:
        labels_[line.text] = static_cast<uint32_t>(program_.code.size());
        break;
      case Line::Kind::directive:
        declare(line);
        break;
      case Line::Kind::instruction:
        add(line);
    }
  }
  link();
}

void Assembler::link() {
  for (const auto& [at, label] : jumps_) {
    const auto found = labels_.find(label);
    if (found == labels_.end()) throw Error("the label " + label + " is missing");
    if (found->second >= program_.code.size()) throw Error("nothing follows the label " + label);
    program_.code[at].target = found->second;
  }
}

const Decoders& decoders() {
  static const Decoders all = [] {
    Decoders made;
    for (const auto add : {add_integer_decoders, add_comparison_decoders, add_conversion_decoders, add_data_decoders,
                           add_atomic_decoders, add_copy_decoders, add_control_decoders, add_exchange_decoders,
                           add_tensor_core_decoders})
      add(made);
    return made;
  }();
  return all;
}

const Decoders& real_decoders() {
  static const Decoders all = [] {
    Decoders made;
    add_real_decoders(made);
    return made;
  }();
  return all;
}

}  // namespace ptx
