#pragma once

// Loops that one thread leads and others help with while they have time. The
// leader waits for nobody who has not begun: it does alone what nobody takes.
// Made for loops of microseconds, so whoever waits spins at first.

#include <atomic>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "base/mutex.h"

namespace vitrine {

class WorkTeam {
 public:
  // `member`: 0 is the leader, else what the helper gave to Help.
  using Body = absl::FunctionRef<absl::Status(int task, int member)>;

  WorkTeam() = default;
  WorkTeam(const WorkTeam&) = delete;
  WorkTeam& operator=(const WorkTeam&) = delete;

  // The leader: runs tasks 0 to tasks - 1, each once, begun in this order, and
  // returns when all are done; an error of one of them if there is any. With
  // `last` the team is dissolved once all are taken.
  absl::Status For(int tasks, Body body, bool last = false);
  // The leader: helpers leave.
  void Dissolve();

  // A helper: takes tasks of loop after loop, until the team is dissolved or
  // others are too fast for it.
  void Help(int member);
  // There will be nothing more to take.
  bool dissolved() const;

 private:
  // Takes what there is; true if there was something.
  bool TakeTasks(int member);

  // Whether it is the last loop, 1 bit; its number, 31 bits; its tasks that
  // nobody has taken, 32 bits. So a task is taken of the loop that was looked
  // at or not at all.
  alignas(64) std::atomic<uint64_t> open_{0};
  alignas(64) std::atomic<int> done_{0};  // tasks of this loop
  // Of this loop, while its tasks are not done.
  const Body* body_ = nullptr;
  int tasks_ = 0;

  Mutex mu_;
  absl::Status error_ ABSL_GUARDED_BY(mu_);  // the loop's first
};

}  // namespace vitrine
