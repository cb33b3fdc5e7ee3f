#include "server/model_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/testing/fake_model.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ModelManagerTest : public ::testing::Test {
 protected:
  void AddVersion(const std::string& model, int64_t version) {
    const std::string folder =
        JoinPath(JoinPath(registry_.path(), model), absl::StrCat(version));
    ASSERT_TRUE(MakeFolders(folder).ok());
    ASSERT_TRUE(WriteFile(JoinPath(folder, "manifest.textproto"),
                          absl::StrCat("model: \"", model, "\"\n"))
                    .ok());
  }

  void SetCurrent(const std::string& model, absl::string_view text) {
    ASSERT_TRUE(
        WriteFile(JoinPath(JoinPath(registry_.path(), model), "CURRENT"), text)
            .ok());
  }

  std::string Current(const std::string& model) {
    const auto text =
        ReadFile(JoinPath(JoinPath(registry_.path(), model), "CURRENT"));
    return text.ok() ? *text : "";
  }

  ModelManagerOptions Options() {
    ModelManagerOptions options;
    options.registry = registry_.path();
    options.poll_interval = -absl::Seconds(1);
    options.now = [this] { return now_; };
    options.load = [this](const std::string& folder, const ServableOptions&)
        -> absl::StatusOr<std::shared_ptr<const ServableModel>> {
      const std::string version = folder.substr(folder.rfind('/') + 1);
      {
        MutexLock lock(mu_);
        loads_.push_back(version);
        if (broken_.count(version) > 0) {
          return absl::DataLossError(absl::StrCat("weights of ", version));
        }
      }
      FakeModel fake = NewFakeModel({.version = std::stoll(version)});
      MutexLock lock(mu_);
      models_[version] = fake.model;
      return fake.model;
    };
    return options;
  }

  static std::string VersionOf(const ModelManager& manager) {
    const auto pinned = manager.Pin({});
    return pinned.ok() ? (*pinned)->version : pinned.status().ToString();
  }

  std::string Exposed() {
    std::string out;
    for (const auto& family : metrics_.registry()->Collect()) {
      for (const auto& metric : family.metric) {
        absl::StrAppend(&out, family.name, "{");
        for (const auto& label : metric.label) {
          absl::StrAppend(&out, label.name, "=", label.value, " ");
        }
        absl::StrAppend(&out, "} ", metric.gauge.value + metric.counter.value,
                        "\n");
      }
    }
    return out;
  }

  TempFolder registry_;
  Metrics metrics_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
  Mutex mu_;
  std::vector<std::string> loads_;
  std::set<std::string> broken_;
  std::map<std::string, std::weak_ptr<const ServableModel>> models_;
};

TEST_F(ModelManagerTest, ServesTheNewestAndWritesCurrentWhereThereIsNone) {
  for (const int version : {1, 2, 10}) AddVersion("shop", version);
  ModelManager manager(Options(), metrics_);
  EXPECT_TRUE(absl::IsUnavailable(manager.Pin({}).status()));
  EXPECT_FALSE(manager.ready());
  ASSERT_TRUE(manager.LoadAll().ok());
  EXPECT_TRUE(manager.ready());
  EXPECT_EQ(VersionOf(manager), "10");
  EXPECT_EQ(std::stoi(Current("shop")), 10);
}

TEST_F(ModelManagerTest, ServesWhatCurrentNames) {
  for (const int version : {1, 2, 3}) AddVersion("shop", version);
  SetCurrent("shop", "2\n");
  ModelManager manager(Options(), metrics_);
  ASSERT_TRUE(manager.LoadAll().ok());
  EXPECT_EQ(VersionOf(manager), "2");
  EXPECT_THAT(loads_, ElementsAre("2"));
}

TEST_F(ModelManagerTest, FallsBackToOlderVersionsOnly) {
  for (const int version : {1, 2, 3, 4}) AddVersion("shop", version);
  SetCurrent("shop", "3");
  broken_ = {"3", "2"};
  ModelManager manager(Options(), metrics_);
  ASSERT_TRUE(manager.LoadAll().ok());
  EXPECT_EQ(VersionOf(manager), "1");
  EXPECT_THAT(loads_, ElementsAre("3", "2", "1"));
  EXPECT_EQ(Current("shop"), "3");
  EXPECT_THAT(Exposed(),
              HasSubstr("vitrine_model_load_failures_total{model=shop } 2"));
}

TEST_F(ModelManagerTest, ServesTheConfiguredVersionAndDoesNotFollowCurrent) {
  for (const int version : {1, 2}) AddVersion("shop", version);
  ModelManagerOptions options = Options();
  options.models.emplace_back().set_name("shop");
  options.models[0].set_version(1);
  ModelManager manager(options, metrics_);
  ASSERT_TRUE(manager.LoadAll().ok());
  EXPECT_EQ(VersionOf(manager), "1");
  EXPECT_EQ(Current("shop"), "");
  SetCurrent("shop", "2");
  manager.PollOnce();
  EXPECT_EQ(VersionOf(manager), "1");
}

TEST_F(ModelManagerTest, FailsToStartWhenNothingLoads) {
  for (const int version : {1, 2}) AddVersion("shop", version);
  broken_ = {"1", "2"};
  ModelManager manager(Options(), metrics_);
  const absl::Status status = manager.LoadAll();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()),
              ::testing::AllOf(HasSubstr("model shop"),
                               HasSubstr("version 2: weights of 2"),
                               HasSubstr("version 1: weights of 1")));
  EXPECT_FALSE(manager.ready());
}

TEST_F(ModelManagerTest, NeedsANameWhenTheRegistryHoldsSeveralModels) {
  AddVersion("a", 1);
  AddVersion("b", 1);
  ModelManager manager(Options(), metrics_);
  EXPECT_THAT(std::string(manager.LoadAll().message()), HasSubstr("a, b"));
  ModelManagerOptions options = Options();
  options.models.emplace_back().set_name("a");
  options.models.emplace_back().set_name("b");
  options.default_model = "b";
  ModelManager both(options, metrics_);
  ASSERT_TRUE(both.LoadAll().ok());
  EXPECT_EQ((*both.Pin({}))->name, "b");
  EXPECT_EQ(both.List()[0]->name, "b");
  v1::ModelSpec spec;
  spec.set_name("a");
  EXPECT_EQ((*both.Pin(spec))->name, "a");
}

TEST_F(ModelManagerTest, SaysWhatIsServedWhenAskedForSomethingElse) {
  AddVersion("shop", 7);
  ModelManager manager(Options(), metrics_);
  ASSERT_TRUE(manager.LoadAll().ok());
  v1::ModelSpec spec;
  spec.set_version("6");
  const absl::Status status = manager.Pin(spec).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()),
              ::testing::AllOf(HasSubstr("\"6\""), HasSubstr("shop/7")));
  spec.set_version("7");
  EXPECT_TRUE(manager.Pin(spec).ok());
  spec.set_name("nope");
  EXPECT_TRUE(absl::IsNotFound(manager.Pin(spec).status()));
}

TEST_F(ModelManagerTest, SwapsWhenCurrentChangesAndFreesTheOldWithItsLastUse) {
  AddVersion("shop", 1);
  ModelManager manager(Options(), metrics_);
  ASSERT_TRUE(manager.LoadAll().ok());
  auto pinned = manager.Pin({});
  ASSERT_TRUE(pinned.ok());
  AddVersion("shop", 2);
  manager.PollOnce();
  EXPECT_EQ(VersionOf(manager), "1") << "published is not activated";
  SetCurrent("shop", "2");
  manager.PollOnce();
  EXPECT_EQ(VersionOf(manager), "2");
  EXPECT_EQ((*pinned)->version, "1");
  EXPECT_FALSE(models_["1"].expired());
  EXPECT_THAT(Exposed(), HasSubstr("version=1"));
  pinned = absl::UnknownError("released");
  EXPECT_TRUE(models_["1"].expired());
  EXPECT_THAT(Exposed(), ::testing::Not(HasSubstr("version=1")));
  EXPECT_THAT(Exposed(), HasSubstr("vitrine_model_version{model=shop } 2"));
}

TEST_F(ModelManagerTest, KeepsServingTheOldVersionWhenTheNewOneFails) {
  AddVersion("shop", 1);
  ModelManager manager(Options(), metrics_);
  ASSERT_TRUE(manager.LoadAll().ok());
  AddVersion("shop", 2);
  SetCurrent("shop", "2");
  broken_ = {"2"};
  manager.PollOnce();
  EXPECT_EQ(VersionOf(manager), "1");
  EXPECT_THAT(Exposed(),
              HasSubstr("vitrine_model_load_failures_total{model=shop } 1"));
  // Not at every poll, but again later.
  manager.PollOnce();
  EXPECT_EQ(loads_.size(), 2);
  broken_.clear();
  now_ += absl::Minutes(1);
  manager.PollOnce();
  EXPECT_EQ(VersionOf(manager), "2");
}

TEST_F(ModelManagerTest, TriesAnotherVersionAtOnceAfterAFailure) {
  for (const int version : {1, 2, 3}) AddVersion("shop", version);
  SetCurrent("shop", "1");
  broken_ = {"2"};
  ModelManager manager(Options(), metrics_);
  ASSERT_TRUE(manager.LoadAll().ok());
  SetCurrent("shop", "2");
  manager.PollOnce();
  SetCurrent("shop", "3");
  manager.PollOnce();
  EXPECT_EQ(VersionOf(manager), "3");
}

TEST_F(ModelManagerTest, RollsBackToAVersionThatIsStillInUse) {
  for (const int version : {1, 2}) AddVersion("shop", version);
  SetCurrent("shop", "1");
  ModelManager manager(Options(), metrics_);
  ASSERT_TRUE(manager.LoadAll().ok());
  auto old = manager.Pin({});
  SetCurrent("shop", "2");
  manager.PollOnce();
  SetCurrent("shop", "1");
  manager.PollOnce();
  ASSERT_EQ(VersionOf(manager), "1");
  // The two loads of version 1 share their series.
  old = absl::UnknownError("released");
  const auto now = manager.Pin({});
  (*now)->metrics->tokens().Increment(5);
  EXPECT_THAT(Exposed(),
              HasSubstr("vitrine_tokens_total{model=shop version=1 } 5"));
}

TEST_F(ModelManagerTest, LivesWithACurrentThatIsNoNumber) {
  for (const int version : {1, 2}) AddVersion("shop", version);
  SetCurrent("shop", "two");
  ModelManager manager(Options(), metrics_);
  ASSERT_TRUE(manager.LoadAll().ok());
  EXPECT_EQ(VersionOf(manager), "2");
  EXPECT_EQ(Current("shop"), "two");
  manager.PollOnce();
  EXPECT_EQ(VersionOf(manager), "2");
}

TEST_F(ModelManagerTest, SwapsUnderLoadWithoutAFailedPin) {
  for (const int version : {1, 2}) AddVersion("shop", version);
  SetCurrent("shop", "1");
  ModelManagerOptions options = Options();
  options.poll_interval = absl::Milliseconds(1);
  options.now = &absl::Now;
  std::atomic<bool> stop{false};
  std::atomic<int> failed{0}, seen_two{0};
  {
    ModelManager manager(options, metrics_);
    ASSERT_TRUE(manager.LoadAll().ok());
    manager.StartPolling();
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        while (!stop) {
          const auto pinned = manager.Pin({});
          if (!pinned.ok()) {
            ++failed;
            continue;
          }
          if ((*pinned)->model->version() != (*pinned)->version) ++failed;
          if ((*pinned)->version == "2") ++seen_two;
        }
      });
    }
    for (int i = 0; i < 20; ++i) {
      const std::string want = i % 2 == 0 ? "2" : "1";
      SetCurrent("shop", want);
      while (VersionOf(manager) != want) std::this_thread::yield();
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(failed, 0);
  EXPECT_GT(seen_two, 0);
  EXPECT_TRUE(models_["1"].expired());
  EXPECT_TRUE(models_["2"].expired());
}

}  // namespace
}  // namespace vitrine
