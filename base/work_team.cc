#include "base/work_team.h"

#include <chrono>
#include <thread>
#include <utility>

namespace vitrine {
namespace {

// What is waited for is some microseconds of another thread's work.
constexpr int kSpins = 2000;
// Then a leader gives its core to others, who may be what it waits for, before
// it sleeps.
constexpr std::chrono::microseconds kYieldFor(500);
// A helper sleeps until there is something to do. Where it is so often too
// late, the leader has the core that it would need.
constexpr int kMaxWokenInVain = 3;

constexpr uint64_t kLast = uint64_t{1} << 63;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int TasksOf(uint64_t open) { return static_cast<int>(open & 0xffffffff); }
bool Dissolved(uint64_t open) {
  return (open & kLast) != 0 && TasksOf(open) == 0;
}

}  // namespace

bool WorkTeam::TakeTasks(int member) {
  bool any = false;
  uint64_t open = open_.load(std::memory_order_acquire);
  while (TasksOf(open) > 0) {
    if (!open_.compare_exchange_weak(open, open - 1,
                                     std::memory_order_acq_rel)) {
      continue;
    }
    any = true;
    // The loop goes on until this task is done, so its body is there.
    absl::Status status = (*body_)(tasks_ - TasksOf(open), member);
    if (!status.ok()) {
      const MutexLock lock(mu_);
      error_.Update(std::move(status));
    }
    done_.fetch_add(1, std::memory_order_release);
    done_.notify_one();
    open = open_.load(std::memory_order_acquire);
  }
  return any;
}

absl::Status WorkTeam::For(int tasks, Body body, bool last) {
  body_ = &body;
  tasks_ = tasks;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t loop = (open_.load(std::memory_order_relaxed) >> 32) + 1;
  open_.store(
      (last ? kLast : 0) | (loop << 32 & ~kLast) | static_cast<uint32_t>(tasks),
      std::memory_order_release);
  open_.notify_all();
  TakeTasks(/*member=*/0);

  const auto all_done = [&] {
    return done_.load(std::memory_order_acquire) == tasks;
  };
  for (int spins = 0; spins < kSpins && !all_done(); ++spins) Pause();
  if (!all_done()) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point latest = Clock::now() + kYieldFor;
    while (!all_done() && Clock::now() < latest) std::this_thread::yield();
    for (int done; (done = done_.load(std::memory_order_acquire)) < tasks;) {
      done_.wait(done);
    }
  }
  const MutexLock lock(mu_);
  return std::exchange(error_, absl::OkStatus());
}

void WorkTeam::Dissolve() {
  open_.store(kLast);
  open_.notify_all();
}

bool WorkTeam::dissolved() const { return Dissolved(open_.load()); }

void WorkTeam::Help(int member) {
  int woken_in_vain = 0;
  while (true) {
    const bool any = TakeTasks(member);
    if (any) woken_in_vain = 0;
    uint64_t open = open_.load(std::memory_order_acquire);
    for (int spins = 0; spins < kSpins && TasksOf(open) == 0; ++spins) {
      if (Dissolved(open)) return;
      Pause();
      open = open_.load(std::memory_order_acquire);
    }
    if (TasksOf(open) > 0) continue;
    if (!any && ++woken_in_vain > kMaxWokenInVain) return;
    if (!Dissolved(open)) open_.wait(open);
  }
}

}  // namespace vitrine
