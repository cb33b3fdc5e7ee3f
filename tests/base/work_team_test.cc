#include "base/work_team.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "base/thread_pool.h"

namespace vitrine {
namespace {

TEST(WorkTeam, ItsLeaderAloneRunsEveryTask) {
  WorkTeam team;
  for (const int tasks : {0, 1, 7, 1000}) {
    std::vector<int> ran(tasks);
    EXPECT_TRUE(team.For(tasks,
                         [&](int task, int member) {
                           EXPECT_EQ(member, 0);
                           ++ran[task];
                           return absl::OkStatus();
                         })
                    .ok());
    EXPECT_EQ(ran, std::vector<int>(tasks, 1));
  }
}

// Each loop reads what the one before wrote, so that a task that ran twice, not
// at all, or before the loop before had ended, shows, to ThreadSanitizer too.
TEST(WorkTeam, HelpersTakeTasksOfLoopAfterLoop) {
  constexpr int kHelpers = 3, kLoops = 20000, kTasks = 7;
  WorkTeam team;
  std::vector<int> values(kTasks), next(kTasks);
  std::vector<int64_t> taken(kHelpers + 1);
  std::vector<std::thread> helpers;
  for (int member = 1; member <= kHelpers; ++member) {
    helpers.emplace_back([&, member] {
      // Again where it had nothing to do for long.
      while (!team.dissolved()) team.Help(member);
    });
  }
  for (int loop = 0; loop < kLoops; ++loop) {
    ASSERT_TRUE(team.For(kTasks,
                         [&](int task, int member) {
                           next[task] = values[(task + 1) % kTasks] + 1;
                           ++taken[member];
                           return absl::OkStatus();
                         })
                    .ok());
    values.swap(next);
    for (const int value : values) ASSERT_EQ(value, loop + 1);
  }
  team.Dissolve();
  for (std::thread& helper : helpers) helper.join();
  int64_t all = 0;
  for (const int64_t tasks : taken) all += tasks;
  EXPECT_EQ(all, int64_t{kLoops} * kTasks);
}

TEST(WorkTeam, ReturnsAnErrorAndGoesOn) {
  WorkTeam team;
  std::thread helper([&] {
    while (!team.dissolved()) team.Help(1);
  });
  std::atomic<int> ran{0};
  const absl::Status status = team.For(100, [&](int task, int) {
    ++ran;
    return task == 37 ? absl::InternalError("task 37") : absl::OkStatus();
  });
  EXPECT_EQ(status.message(), "task 37");
  EXPECT_EQ(ran, 100);
  EXPECT_TRUE(team.For(100, [&](int, int) { return absl::OkStatus(); }).ok());
  team.Dissolve();
  helper.join();
}

// The leader waits for a task that somebody has begun, however long it takes.
TEST(WorkTeam, WaitsForWhatAHelperHasBegun) {
  WorkTeam team;
  std::thread helper([&] {
    while (!team.dissolved()) team.Help(1);
  });
  for (const int ms : {0, 1, 20}) {
    std::atomic<bool> begun{false};
    bool finished = false;
    // The leader's task ends when the helper's has begun.
    ASSERT_TRUE(team.For(2,
                         [&](int, int member) {
                           if (member == 0) {
                             while (!begun) std::this_thread::yield();
                           } else {
                             begun = true;
                             std::this_thread::sleep_for(
                                 std::chrono::milliseconds(ms));
                             finished = true;
                           }
                           return absl::OkStatus();
                         })
                    .ok());
    EXPECT_TRUE(finished);
  }
  team.Dissolve();
  helper.join();
}

TEST(WorkTeam, HelpersLeaveWhenItsLastLoopIsTaken) {
  WorkTeam team;
  std::atomic<bool> left{false};
  std::thread helper([&] {
    team.Help(1);
    left = true;
  });
  // The leader's task ends when the helper has left, or has the other one.
  ASSERT_TRUE(team.For(
                      2,
                      [&](int, int member) {
                        while (member == 0 && !left) std::this_thread::yield();
                        return absl::OkStatus();
                      },
                      /*last=*/true)
                  .ok());
  helper.join();
  EXPECT_TRUE(team.dissolved());
  team.Help(1);  // returns
}

TEST(WorkTeam, AHelperThatSleepsIsWoken) {
  WorkTeam team;
  std::thread helper([&] {
    while (!team.dissolved()) team.Help(1);
  });
  for (int loop = 0; loop < 20; ++loop) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<bool> helped{false};
    ASSERT_TRUE(team.For(2,
                         [&](int, int member) {
                           if (member == 1) helped = true;
                           while (!helped) std::this_thread::yield();
                           return absl::OkStatus();
                         })
                    .ok());
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  team.Dissolve();
  helper.join();
}

// As an engine uses them: helpers of a pool come to teams that may have ended.
TEST(WorkTeam, HelpersThatComeLateFindItDissolved) {
  std::atomic<int64_t> ran{0};
  constexpr int kTeams = 2000;
  {
    ThreadPool pool("test", 2, 1 << 16);
    for (int t = 0; t < kTeams; ++t) {
      const auto team = std::make_shared<WorkTeam>();
      for (int member = 1; member <= 2; ++member) {
        ASSERT_TRUE(pool.Post([team, member] { team->Help(member); }));
      }
      int local = 0;  // gone when late helpers come
      std::vector<int> slots(5);
      ASSERT_TRUE(team->For(5,
                            [&](int task, int) {
                              slots[task] = 1;
                              return absl::OkStatus();
                            })
                      .ok());
      for (const int slot : slots) local += slot;
      team->Dissolve();
      ran += local;
    }
  }
  EXPECT_EQ(ran, 5 * kTeams);
}

}  // namespace
}  // namespace vitrine
