#include "ptx/module.h"

#include <algorithm>
#include <regex>

#include "ptx/assembler.h"

namespace ptx {
namespace {

bool mentions(std::string_view body, const std::string& name) {
  for (size_t at = body.find(name); at != std::string_view::npos; at = body.find(name, at + 1)) {
    const char next = at + name.size() < body.size() ? body[at + name.size()] : ' ';
    if (std::isalnum(static_cast<unsigned char>(next)) == 0 && next != '_' && next != '$') return true;
  }
  return false;
}

std::array<unsigned, 3> threads(const std::string& head, const std::string& directive) {
  std::smatch found;
  if (!std::regex_search(head, found,
                         std::regex(R"(\.)" + directive + R"(\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?)")))
    return {};
  const auto number = [&found](size_t k) { return found[k].matched ? static_cast<unsigned>(std::stoul(found[k])) : 1; };
  return {number(1), number(2), number(3)};
}

}  // namespace

Module::Module(std::string_view text) : text_(without_comments(text)) {
  const std::string_view all = text_;
  for (size_t at = 0;;) {
    at = all.find_first_not_of(" \t\r\n;", at);
    if (at == std::string_view::npos) break;
    size_t end = at;
    while (end < all.size() && all[end] != ';' && all[end] != '{')
      end = all[end] == '(' || all[end] == '[' ? closing(all, end) + 1 : end + 1;
    // These end with their line.
    if (const std::string_view rest = all.substr(at);
        rest.starts_with(".version") || rest.starts_with(".target") || rest.starts_with(".address_size"))
      end = std::min(all.find('\n', at), all.size());
    declare(all.substr(at, end - at), end);
    at = end < all.size() && all[end] == '{' ? closing(all, end) + 1 : end + 1;
  }
}

// `end` is where the body begins, if there is one. Global variables are what compilers leave of names that they looked
// up; an instruction that uses one is not known.
void Module::declare(std::string_view declared, size_t end) {
  const std::string head(declared);
  std::smatch found;
  if (std::regex_search(head, found, std::regex(R"(\.entry\s+([\w$]+))"))) {
    Entry& entry = entries_[found[1]];
    entry.head = declared;
    entry.body = std::string_view(text_).substr(end + 1, closing(text_, end) - end - 1);
    entry.line = 1 + static_cast<int>(std::count(text_.begin(), text_.begin() + static_cast<long>(end), '\n'));
  } else if (std::regex_search(head, std::regex(R"(\.shared\s)"))) {
    const Declaration variable(head);
    shared_[variable.name] = {variable.align, variable.bytes, variable.has_no_size};
  } else if (!std::regex_search(head,
                                std::regex(R"(^(\.visible\s+)?\.(version|target|address_size|section|global)\b)"))) {
    throw Error("unknown declaration: " + head.substr(0, 200));
  }
}

std::vector<std::string> Module::entries() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

Module::Entry& Module::entry(const std::string& name) {
  const auto found = entries_.find(name);
  if (found == entries_.end()) throw Error("there is no entry " + name);
  return found->second;
}

Module::Tally& Module::tally(const std::string& name) { return entry(name).tally; }

const Program& Module::program(const std::string& name) {
  Entry& asked = entry(name);
  const std::lock_guard lock(mutex_);
  if (asked.program == nullptr) assemble(name, asked);
  return *asked.program;
}

void Module::assemble(const std::string& name, Entry& entry) {
  auto program = std::make_unique<Program>();
  program->name = name;
  const std::string head(entry.head);
  program->most_threads = threads(head, "maxntid");
  program->required_threads = threads(head, "reqntid");
  Variables variables;
  const size_t open = head.find('(');
  if (open != std::string::npos) {
    for (const std::string& text : split(std::string_view(head).substr(open + 1, closing(head, open) - open - 1))) {
      const Declaration parameter(text);
      const size_t offset = align_up(program->parameter_bytes, parameter.align);
      program->parameters.push_back({parameter.name, offset, parameter.bytes});
      program->parameter_bytes = offset + parameter.bytes;
      variables[parameter.name] = {Space::param, offset};
    }
  }
  // What a launch asks for lies behind the variables of a known size.
  for (const bool dynamic : {false, true}) {
    for (const auto& [variable, shared] : shared_) {
      if (shared.is_dynamic != dynamic || !mentions(entry.body, variable)) continue;
      const size_t begin = align_up(program->static_shared, shared.align);
      variables[variable] = {Space::shared, kSharedBegin + begin};
      program->static_shared = begin + shared.bytes;
    }
  }
  Assembler(*program, variables).assemble(entry.body, entry.line);
  entry.program = std::move(program);
}

}  // namespace ptx
