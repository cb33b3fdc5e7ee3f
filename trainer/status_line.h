#pragma once

// How far a long command is, for whoever looks: one line that is written over
// on a terminal, now and then a line of its own elsewhere.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace vitrine {

// For one thread.
class StatusLine {
 public:
  explicit StatusLine(std::FILE* out);
  ~StatusLine() { Clear(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  bool terminal() const { return terminal_; }

  // The time until the first one begins now.
  void Start() { last_ = std::chrono::steady_clock::now(); }
  // Whether it is time for one: ten times a second on a terminal, where the
  // last of all is always due, every ten seconds elsewhere.
  bool Due(bool last_of_all = false);
  void Show(const std::string& text);
  // Before something else is written.
  void Clear();

 private:
  std::FILE* const out_;
  const bool terminal_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

// A bar of which step / steps is full.
std::string Bar(int64_t step, int64_t steps);

}  // namespace vitrine
