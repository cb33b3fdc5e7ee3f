#include "server/label_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "store/sql.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Outcomes = std::vector<LabelStore::Outcome>;

// Set once; not absl's, which ThreadSanitizer cannot see through.
class Event {
 public:
  void Set() {
    MutexLock lock(mu_);
    set_ = true;
    changed_.NotifyAll();
  }
  void Wait() {
    MutexLock lock(mu_);
    while (!set_) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool set_ ABSL_GUARDED_BY(mu_) = false;
};

class LabelWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto database = Database::Open({.url = "sqlite:" + folder_.File("s.db"),
                                    .lock_timeout = absl::Milliseconds(50)});
    ASSERT_TRUE(database.ok()) << database.status();
    database_ = *std::move(database);
    store_ = std::make_unique<LabelStore>(*database_);
  }

  // Entries that live as long as the test, with ids from "<prefix>0" on.
  std::vector<const v1::Feedback*> Entries(const std::string& prefix,
                                           int count) {
    std::vector<const v1::Feedback*> out;
    MutexLock lock(mu_);
    for (int i = 0; i < count; ++i) {
      entries_.push_back(std::make_unique<v1::Feedback>());
      entries_.back()->set_feedback_id(absl::StrCat(prefix, i));
      out.push_back(entries_.back().get());
    }
    return out;
  }

  // What became of `entries`, when that is known.
  static absl::StatusOr<Outcomes> Write(
      LabelWriter& writer, std::vector<const v1::Feedback*> entries) {
    absl::StatusOr<Outcomes> result = absl::UnknownError("");
    Event done;
    const absl::Status taken = writer.Submit(
        "shop", std::move(entries), [&](absl::StatusOr<Outcomes> outcomes) {
          result = std::move(outcomes);
          done.Set();
        });
    if (!taken.ok()) return taken;
    done.Wait();
    return result;
  }

  // Stores one entry and returns while its callback keeps the writer's thread
  // until `go_on` is set.
  void HoldUp(LabelWriter& writer, Event& go_on) {
    Event busy;
    ASSERT_TRUE(writer
                    .Submit("shop", Entries("a", 1),
                            [&](absl::StatusOr<Outcomes>) {
                              busy.Set();
                              go_on.Wait();
                            })
                    .ok());
    busy.Wait();
  }

  uint64_t Commits() {
    for (const auto& family : metrics_.registry()->Collect()) {
      if (family.name == "vitrine_feedback_commit_seconds") {
        return family.metric[0].histogram.sample_count;
      }
    }
    return 0;
  }

  int64_t OnDisk(const std::string& model = "shop") {
    return *store_->Count(model, 0, INT64_MAX);
  }

  absl::Status Pragma(const std::string& pragma) {
    return database_->sql().Write([&](SqlConnection& connection) {
      return connection.Query("pragma " + pragma, 1).status();
    });
  }

  TempFolder folder_;
  std::unique_ptr<Database> database_;
  std::unique_ptr<LabelStore> store_;
  Metrics metrics_;
  Mutex mu_;
  std::vector<std::unique_ptr<v1::Feedback>> entries_ ABSL_GUARDED_BY(mu_);
};

TEST_F(LabelWriterTest, TellsEachGroupWhatBecameOfItsEntries) {
  LabelWriter writer(*store_, 100, metrics_);
  const auto first = Write(writer, Entries("a", 2));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_THAT(*first, ElementsAre(LabelStore::Outcome::kStored,
                                  LabelStore::Outcome::kStored));
  EXPECT_EQ(OnDisk(), 2);
  const auto second = Write(writer, Entries("a", 3));
  ASSERT_TRUE(second.ok());
  EXPECT_THAT(*second, ElementsAre(LabelStore::Outcome::kDuplicate,
                                   LabelStore::Outcome::kDuplicate,
                                   LabelStore::Outcome::kStored));
}

TEST_F(LabelWriterTest, WhatWaitsGoesIntoOneTransactionByModel) {
  LabelWriter writer(*store_, 100000, metrics_);
  Event go_on;
  ASSERT_NO_FATAL_FAILURE(HoldUp(writer, go_on));
  std::atomic<int> stored{0}, duplicates{0};
  const auto submit = [&](const std::string& model, const std::string& prefix,
                          int count) {
    EXPECT_TRUE(
        writer
            .Submit(model, Entries(prefix, count),
                    [&, count](absl::StatusOr<Outcomes> outcomes) {
                      ASSERT_TRUE(outcomes.ok());
                      EXPECT_EQ(outcomes->size(), static_cast<size_t>(count));
                      for (const LabelStore::Outcome outcome : *outcomes) {
                        ++(outcome == LabelStore::Outcome::kStored
                               ? stored
                               : duplicates);
                      }
                    })
            .ok());
  };
  submit("shop", "b", 3);
  submit("shop", "c", 2);
  submit("shop", "b", 4);  // three of them again, in the same transaction
  submit("other", "b", 3);
  submit("shop", "big", 3000);
  submit("shop", "bigger", 3000);  // not with the one before: too many
  EXPECT_EQ(metrics_.feedback_waiting().Value(), 3 + 2 + 4 + 3 + 6000);
  go_on.Set();
  writer.Stop();
  EXPECT_EQ(Commits(), 1 + 4);
  EXPECT_EQ(stored, 3 + 2 + 1 + 3 + 6000);
  EXPECT_EQ(duplicates, 3);
  EXPECT_EQ(OnDisk("shop"), 1 + 6 + 6000);
  EXPECT_EQ(OnDisk("other"), 3);
  EXPECT_EQ(metrics_.feedback_waiting().Value(), 0);
}

TEST_F(LabelWriterTest, TakesNoMoreThanMayWait) {
  LabelWriter writer(*store_, 10, metrics_);
  Event busy, go_on;
  ASSERT_TRUE(writer
                  .Submit("shop", Entries("a", 30),
                          [&](absl::StatusOr<Outcomes>) {
                            busy.Set();
                            go_on.Wait();
                          })
                  .ok())
      << "it found none waiting";
  busy.Wait();
  const auto nothing = [](absl::StatusOr<Outcomes>) {};
  EXPECT_TRUE(writer.Submit("shop", Entries("b", 9), nothing).ok())
      << "what is committed waits no more";
  const absl::Status full = writer.Submit(
      "shop", Entries("c", 2),
      [](absl::StatusOr<Outcomes>) { FAIL() << "it was not taken"; });
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(std::string(full.message()),
              HasSubstr("9 entries wait to be committed; with 2 more: > 10"));
  EXPECT_TRUE(full.GetPayload("type.googleapis.com/google.rpc.RetryInfo"));
  EXPECT_TRUE(writer.Submit("shop", Entries("d", 1), nothing).ok());
  go_on.Set();
  writer.Stop();
  EXPECT_EQ(OnDisk(), 40);
}

TEST_F(LabelWriterTest, StopWritesWhatWaitsAndTakesNoMore) {
  LabelWriter writer(*store_, 100, metrics_);
  Event go_on;
  ASSERT_NO_FATAL_FAILURE(HoldUp(writer, go_on));
  std::atomic<bool> told{false};
  ASSERT_TRUE(writer
                  .Submit("shop", Entries("b", 1),
                          [&](absl::StatusOr<Outcomes> outcomes) {
                            told = outcomes.ok();
                          })
                  .ok());
  std::thread stopper([&writer] { writer.Stop(); });
  go_on.Set();
  stopper.join();
  EXPECT_TRUE(told);
  EXPECT_EQ(OnDisk(), 2);
  EXPECT_TRUE(absl::IsUnavailable(
      writer.Submit("shop", Entries("c", 1), [](absl::StatusOr<Outcomes>) {})));
  writer.Stop();
}

TEST_F(LabelWriterTest, ALockedDatabaseIsUnavailableAndAnotherTryStores) {
  LabelWriter writer(*store_, 100, metrics_);
  auto other = Database::Open({.url = "sqlite:" + folder_.File("s.db")});
  ASSERT_TRUE(other.ok());
  const auto entries = Entries("a", 2);
  ASSERT_TRUE((*other)
                  ->sql()
                  .Write([&](SqlConnection&) {
                    EXPECT_TRUE(
                        absl::IsUnavailable(Write(writer, entries).status()));
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_EQ(OnDisk(), 0);
  EXPECT_TRUE(Write(writer, entries).ok());
  EXPECT_EQ(OnDisk(), 2);
}

// SQLite's own limit of pages gives the error that a full disk gives.
TEST_F(LabelWriterTest, AFullDiskLosesNothingAndSaysWhenToComeAgain) {
  LabelWriter writer(*store_, 100000, metrics_);
  ASSERT_TRUE(Write(writer, Entries("a", 10)).ok());
  ASSERT_TRUE(Pragma("max_page_count = 40").ok());
  const auto entries = Entries("b", 4000);
  const absl::Status full = Write(writer, entries).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_TRUE(full.GetPayload("type.googleapis.com/google.rpc.RetryInfo"));
  EXPECT_EQ(OnDisk(), 10);
  ASSERT_TRUE(Pragma("max_page_count = 1000000").ok());
  EXPECT_TRUE(Write(writer, entries).ok());
  EXPECT_EQ(OnDisk(), 4010);
}

// As a file without write permission, which root would not notice.
TEST_F(LabelWriterTest, AReadOnlyDatabaseIsAFailedPrecondition) {
  LabelWriter writer(*store_, 100, metrics_);
  ASSERT_TRUE(database_->sql()
                  .Write([](SqlConnection& connection) {
                    return connection.Execute("pragma query_only = 1").status();
                  })
                  .ok());
  const auto entries = Entries("a", 2);
  const absl::Status status = Write(writer, entries).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(OnDisk(), 0);
}

TEST_F(LabelWriterTest, AnyThreadMaySubmit) {
  LabelWriter writer(*store_, 100000, metrics_);
  std::atomic<int> stored{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const auto outcomes =
            Write(writer, Entries(absl::StrCat(t, "-", i, "-"), 3));
        if (outcomes.ok()) stored += static_cast<int>(outcomes->size());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(stored, 240);
  EXPECT_EQ(OnDisk(), 240);
}

}  // namespace
}  // namespace vitrine
