#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace vitrine {
namespace {

// Opens once; everybody who waits goes on.
class Gate {
 public:
  void Open() {
    MutexLock lock(mu_);
    open_ = true;
    opened_.NotifyAll();
  }
  void Wait() {
    MutexLock lock(mu_);
    while (!open_) opened_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar opened_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
};

TEST(ThreadPool, RunsEveryTaskThatItTook) {
  std::atomic<int> ran{0};
  {
    ThreadPool pool("test", 3, 10000);
    std::vector<std::thread> callers;
    for (int t = 0; t < 4; ++t) {
      callers.emplace_back([&] {
        for (int i = 0; i < 1000; ++i) EXPECT_TRUE(pool.Post([&] { ++ran; }));
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  EXPECT_EQ(ran, 4000);
}

TEST(ThreadPool, RefusesWhenItsQueueIsFull) {
  Gate started, release;
  std::atomic<int> ran{0};
  ThreadPool pool("test", 1, 2);
  ASSERT_TRUE(pool.Post([&] {
    started.Open();
    release.Wait();
    ++ran;
  }));
  started.Wait();
  EXPECT_TRUE(pool.Post([&] { ++ran; }));
  EXPECT_TRUE(pool.Post([&] { ++ran; }));
  EXPECT_FALSE(pool.Post([&] { ++ran; }));
  release.Open();
  pool.Stop();
  EXPECT_EQ(ran, 3);
}

TEST(ThreadPool, RefusesAfterStopAndStopsTwice) {
  ThreadPool pool("test", 2, 2);
  pool.Stop();
  EXPECT_FALSE(pool.Post([] {}));
  pool.Stop();
}

TEST(ThreadPool, TakesTasksThatCannotBeCopied) {
  Gate done;
  ThreadPool pool("test", 1, 1);
  auto value = std::make_unique<int>(7);
  int seen = 0;
  ASSERT_TRUE(pool.Post([&, value = std::move(value)] {
    seen = *value;
    done.Open();
  }));
  done.Wait();
  EXPECT_EQ(seen, 7);
}

TEST(Mutex, WaitUntilSaysWhenTheDeadlinePassed) {
  Mutex mu;
  CondVar never;
  MutexLock lock(mu);
  EXPECT_FALSE(never.WaitUntil(
      mu, std::chrono::steady_clock::now() + std::chrono::milliseconds(1)));
}

}  // namespace
}  // namespace vitrine
