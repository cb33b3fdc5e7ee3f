#pragma once

// Threads that share out the parts of one step of training.
//
// A small model's step is hundreds of short operations. Sharing out each of
// them costs more than it gains; so every worker takes sequences of its own
// through the whole network instead.

#include <functional>

#include "base/thread_pool.h"

namespace vitrine {

class Workers {
 public:
  // The caller's thread is one of the `count`.
  explicit Workers(int count);

  int count() const { return count_; }

  // Calls f(0) … f(n - 1), each once, several at a time and in no order;
  // returns when all have returned. Rethrows what the first of them threw. One
  // Run at a time.
  void Run(int n, const std::function<void(int)>& f);

 private:
  const int count_;
  ThreadPool pool_;
};

}  // namespace vitrine
