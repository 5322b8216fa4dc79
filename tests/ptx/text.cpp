#include "ptx/text.h"

#include <algorithm>
#include <cctype>
#include <regex>

namespace ptx {
namespace {

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

size_t end_of_line(std::string_view text, size_t at) { return std::min(text.find('\n', at), text.size()); }

bool is_source_line(std::string_view text, size_t at) {
  return text.substr(at, 5) == ".loc\t" || text.substr(at, 5) == ".loc " || text.substr(at, 6) == ".file\t" ||
         text.substr(at, 6) == ".file ";
}

bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$'; }

}  // namespace

std::string without_comments(std::string_view text) {
  std::string kept;
  kept.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    if (text.substr(at, 2) == "//" || is_source_line(text, at)) {
      at = end_of_line(text, at);
    } else if (text.substr(at, 2) == "/*") {
      const size_t end = std::min(text.find("*/", at), text.size() - 2) + 2;
      kept.append(static_cast<size_t>(
                      std::count(text.begin() + static_cast<long>(at), text.begin() + static_cast<long>(end), '\n')),
                  '\n');
      at = end;
    } else {
      kept += text[at++];
    }
  }
  return kept;
}

std::string trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return std::string(text);
}

size_t closing(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t at = open; at < text.size(); ++at) {
    if (std::string_view("{[(").find(text[at]) != std::string_view::npos) ++depth;
    if (std::string_view("}])").find(text[at]) != std::string_view::npos && --depth == 0) return at;
  }
  throw Error("a bracket is not closed: " + std::string(text.substr(open, 80)));
}

std::vector<std::string> split(std::string_view list) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t at = 0; at < list.size(); ++at) {
    if (std::string_view("{[(").find(list[at]) != std::string_view::npos) at = closing(list, at);
    if (at < list.size() && list[at] == ',') {
      parts.push_back(trimmed(list.substr(begin, at - begin)));
      begin = at + 1;
    }
  }
  if (const std::string last = trimmed(list.substr(begin)); !last.empty()) parts.push_back(last);
  return parts;
}

Declaration::Declaration(const std::string& text) {
  static const std::regex form(
      R"(\.[busf](8|16|32|64)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)\s*(\[\s*(\d*)\s*\])?\s*$)");
  static const std::regex aligned(R"(\.align\s+(\d+)\s+\.[busf]\d+\s+[\w$]+)");
  std::smatch found;
  if (!std::regex_search(text, found, form)) throw Error("unknown declaration: " + text.substr(0, 200));
  const bool is_array = found[3].matched;
  has_no_size = is_array && found[4].length() == 0;
  align = std::stoull(found[1]) / 8;
  bytes = align * (has_no_size ? 0 : is_array ? std::stoull(found[4]) : 1);
  name = found[2];
  if (std::regex_search(text, found, aligned)) align = std::stoull(found[1]);
}

std::vector<Line> lines_of(std::string_view body, int line) {
  std::vector<Line> lines;
  for (size_t at = 0; at < body.size();) {
    const char c = body[at];
    if (is_space(c) || c == ';') {
      line += c == '\n';
      ++at;
      continue;
    }
    if (c == '{' || c == '}') {
      lines.push_back({c == '{' ? Line::Kind::open : Line::Kind::close, {}, line});
      ++at;
      continue;
    }
    size_t end = at;
    while (end < body.size() && is_name(body[end])) ++end;
    if (end > at && end < body.size() && body[end] == ':' && body.substr(end, 2) != "::") {
      lines.push_back({Line::Kind::label, std::string(body.substr(at, end - at)), line});
      at = end + 1;
      continue;
    }
    end = body.find(';', at);
    if (end == std::string_view::npos) throw Error("line " + std::to_string(line) + ": a statement does not end");
    const std::string_view text = body.substr(at, end - at);
    lines.push_back({c == '.' ? Line::Kind::directive : Line::Kind::instruction, trimmed(text), line});
    line += static_cast<int>(std::count(text.begin(), text.end(), '\n'));
    at = end + 1;
  }
  return lines;
}

Statement::Statement(const Line& source) : text(source.text), line(source.number) {
  std::replace_if(text.begin(), text.end(), is_space, ' ');
  std::string_view rest = text;
  const auto word = [&rest] {
    const std::string first(rest.substr(0, rest.find(' ')));
    rest.remove_prefix(first.size());
    rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
    return first;
  };
  if (rest.front() == '@') {
    guard = word().substr(1);
    negated = guard.front() == '!';
    if (negated) guard.erase(0, 1);
  }
  const std::string opcode = word();
  for (size_t at = 0; at <= opcode.size();) {
    const size_t end = std::min(opcode.find('.', at), opcode.size());
    (at == 0 ? name : modifiers.emplace_back()) = opcode.substr(at, end - at);
    at = end + 1;
  }
  operands = split(rest);
}

bool Statement::take(std::string_view modifier) {
  const auto found = std::find(modifiers.begin(), modifiers.end(), modifier);
  if (found == modifiers.end()) return false;
  modifiers.erase(found);
  return true;
}

std::string Statement::take_one(std::initializer_list<std::string_view> choices) {
  for (const std::string_view choice : choices)
    if (take(choice)) return std::string(choice);
  return {};
}

std::string Statement::take_last() {
  if (modifiers.empty()) unknown();
  const std::string last = modifiers.back();
  modifiers.pop_back();
  return last;
}

const std::string& Statement::operand(size_t k) const {
  if (k >= operands.size()) unknown("an operand is missing");
  return operands[k];
}

void Statement::expect_operands(size_t least, size_t most) const {
  if (operands.size() < least || operands.size() > most) unknown("this number of operands is unknown");
}

void Statement::unknown(const std::string& why) const {
  throw Error("line " + std::to_string(line) + ": " + why + ": " + text);
}

}  // namespace ptx
