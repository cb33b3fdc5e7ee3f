#include "trainer/status_line.h"

#include <unistd.h>

namespace vitrine {
namespace {

constexpr int kBarCells = 24;
constexpr std::chrono::milliseconds kTerminalEvery(100);
constexpr std::chrono::seconds kLineEvery(10);
constexpr char kBackAndErase[] = "\r\033[K";

}  // namespace

StatusLine::StatusLine(std::FILE* out)
    : out_(out), terminal_(isatty(fileno(out)) != 0) {}

bool StatusLine::Due(bool last_of_all) {
  const auto now = std::chrono::steady_clock::now();
  const bool due = terminal_ ? last_of_all || now - last_ >= kTerminalEvery
                             : now - last_ >= kLineEvery;
  if (due) last_ = now;
  return due;
}

void StatusLine::Show(const std::string& text) {
  std::fprintf(out_, "%s%s%s", terminal_ ? kBackAndErase : "", text.c_str(),
               terminal_ ? "" : "\n");
  std::fflush(out_);
  shown_ = terminal_;
}

void StatusLine::Clear() {
  if (!shown_) return;
  std::fputs(kBackAndErase, out_);
  std::fflush(out_);
  shown_ = false;
}

std::string Bar(int64_t step, int64_t steps) {
  const auto full = static_cast<int>(kBarCells * step / steps);
  std::string bar;
  for (int i = 0; i < kBarCells; ++i) bar += i < full ? "█" : "░";
  return bar;
}

}  // namespace vitrine
