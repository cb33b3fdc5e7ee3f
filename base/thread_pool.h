#pragma once

// A fixed number of threads and one bounded queue of tasks.
// The pool owns its threads; the destructor runs what is queued and joins.

#include <cstddef>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "base/mutex.h"

namespace vitrine {

class ThreadPool {
 public:
  // Thread names are "<name>-<n>", cut to what the kernel allows.
  ThreadPool(const std::string& name, int threads, size_t max_queued);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Any thread. False, and the task is not taken, when the queue is full or
  // Stop was called.
  [[nodiscard]] bool Post(absl::AnyInvocable<void()>&& task);

  // Takes no more, runs what is queued, joins. May be called twice.
  void Stop();

 private:
  void Work();

  const size_t max_queued_;

  Mutex mu_;
  CondVar wake_;
  std::deque<absl::AnyInvocable<void()>> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::vector<std::thread> threads_;  // last: its threads use the rest
};

}  // namespace vitrine
