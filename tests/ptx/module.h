#pragma once
// A text of PTX and its entries, each of which is assembled when it is first asked for.

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "ptx/program.h"

namespace ptx {

class Module {
 public:
  explicit Module(std::string_view text);

  std::vector<std::string> entries() const;
  const Program& program(const std::string& entry);
  // Of an entry, as the launches themselves count it: how often it was launched, and the instructions of its threads.
  struct Tally {
    std::atomic<uint64_t> launches{0}, instructions{0};
  };
  Tally& tally(const std::string& entry);

 private:
  struct Entry {
    std::string_view head, body;
    int line = 0;
    std::unique_ptr<Program> program;
    Tally tally;
  };
  struct Shared {
    size_t align = 1, bytes = 0;
    bool is_dynamic = false;
  };
  std::string text_;
  std::mutex mutex_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, Shared> shared_;

  void declare(std::string_view declaration, size_t end);
  Entry& entry(const std::string& name);
  void assemble(const std::string& name, Entry& entry);
};

}  // namespace ptx
