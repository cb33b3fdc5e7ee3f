#include "server/model_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
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
      if (on_load_ != nullptr) on_load_();
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
  std::function<void()> on_load_;
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

// As tests of one thread wait for another.
class Gate {
 public:
  void Open() {
    MutexLock lock(mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Wait() {
    MutexLock lock(mu_);
    while (!open_) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
};

class ActivationTest : public ModelManagerTest {
 protected:
  // Serves version 1 of three.
  void Start(ModelManagerOptions options) {
    for (const int version : {1, 2, 3}) AddVersion("shop", version);
    SetCurrent("shop", "1");
    manager_ = std::make_unique<ModelManager>(std::move(options), metrics_);
    ASSERT_TRUE(manager_->LoadAll().ok());
    manager_->StartPolling();
  }

  std::unique_ptr<ModelManager> manager_;
};

TEST_F(ActivationTest, SwapsWritesCurrentAndFreesTheOldVersion) {
  Start(Options());
  const auto activated = manager_->Activate("", 3);
  ASSERT_TRUE(activated.ok()) << activated.status();
  EXPECT_EQ(activated->version, 3);
  EXPECT_EQ(activated->previous, 1);
  EXPECT_EQ(VersionOf(*manager_), "3");
  EXPECT_EQ(Current("shop"), "3\n");
  EXPECT_TRUE(models_["1"].expired());
  EXPECT_THAT(Exposed(), HasSubstr("vitrine_model_version{model=shop } 3"));
  EXPECT_THAT(Exposed(), HasSubstr("vitrine_model_swaps_total{model=shop } 2"));
  // Older ones, too.
  ASSERT_TRUE(manager_->Activate("shop", 2).ok());
  EXPECT_EQ(VersionOf(*manager_), "2");
}

TEST_F(ActivationTest, TheVersionInServiceIsNotLoadedAgainButWrittenDown) {
  Start(Options());
  SetCurrent("shop", "2");
  const auto activated = manager_->Activate("shop", 1);
  ASSERT_TRUE(activated.ok()) << activated.status();
  EXPECT_EQ(activated->previous, 1);
  EXPECT_THAT(loads_, ElementsAre("1"));
  EXPECT_EQ(Current("shop"), "1\n");
}

TEST_F(ActivationTest, RefusesUnknownModelsAndVersions) {
  Start(Options());
  const absl::Status version = manager_->Activate("shop", 9).status();
  EXPECT_TRUE(absl::IsNotFound(version));
  EXPECT_EQ(version.message(), "model shop has no version 9");
  EXPECT_TRUE(absl::IsNotFound(manager_->Activate("shoes", 1).status()));
}

TEST_F(ActivationTest, AVersionThatDoesNotLoadLeavesTheOldOne) {
  broken_ = {"2"};
  Start(Options());
  const absl::Status status = manager_->Activate("shop", 2).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_EQ(status.message(),
            "model shop: version 2: weights of 2; version 1 goes on serving");
  EXPECT_EQ(VersionOf(*manager_), "1");
  EXPECT_EQ(Current("shop"), "1");
  EXPECT_THAT(Exposed(),
              HasSubstr("vitrine_model_load_failures_total{model=shop } 1"));
  // Another try is another load: it may have been mended.
  broken_.clear();
  EXPECT_TRUE(manager_->Activate("shop", 2).ok());
}

TEST_F(ActivationTest, ACurrentThatCannotBeWrittenLeavesTheOldOne) {
  Start(Options());
  const std::string current = JoinPath(registry_.path(), "shop/CURRENT");
  std::filesystem::remove(current);
  ASSERT_TRUE(MakeFolders(current + "/in the way").ok());
  const absl::Status status = manager_->Activate("shop", 2).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()),
              ::testing::AllOf(HasSubstr("CURRENT cannot be written: "),
                               HasSubstr("version 1 goes on serving")));
  EXPECT_EQ(VersionOf(*manager_), "1");
  EXPECT_TRUE(models_["2"].expired());
  EXPECT_THAT(Exposed(),
              HasSubstr("vitrine_model_load_failures_total{model=shop } 1"));
  EXPECT_THAT(Exposed(), HasSubstr("vitrine_model_version{model=shop } 1"));
}

TEST_F(ActivationTest, AVersionThatDoesNotWarmUpIsRefused) {
  ModelManagerOptions options = Options();
  std::vector<std::string> warmed;
  options.warm_up = [&warmed](const ServableModel& model) {
    warmed.push_back(model.version());
    return model.version() == "2" ? absl::InternalError("too long a batch")
                                  : absl::OkStatus();
  };
  Start(options);
  EXPECT_THAT(std::string(manager_->Activate("shop", 2).status().message()),
              HasSubstr("warm-up: too long a batch"));
  EXPECT_EQ(VersionOf(*manager_), "1");
  EXPECT_TRUE(manager_->Activate("shop", 3).ok());
  EXPECT_THAT(warmed, ElementsAre("1", "2", "3"));
}

TEST_F(ActivationTest, LoadsBesideServingOnWhatItLeavesOfTheCores) {
  ModelManagerOptions options = Options();
  std::vector<int> policies;
  options.warm_up = [&policies](const ServableModel&) {
    policies.push_back(sched_getscheduler(0));  // this thread's
    return absl::OkStatus();
  };
  const int own = sched_getscheduler(0);
  Start(options);
  ASSERT_TRUE(manager_->Activate("shop", 2).ok());
  EXPECT_THAT(policies, ElementsAre(own, SCHED_IDLE))
      << "at the start nobody is served yet";
  EXPECT_EQ(sched_getscheduler(0), own);
}

TEST_F(ActivationTest, SeveralAtOnceAreDoneOneAfterAnother) {
  std::atomic<int> loading{0}, most{0}, failed{0};
  on_load_ = [&] {
    const int now = ++loading;
    if (now > most) most = now;
    std::this_thread::yield();
    --loading;
  };
  Start(Options());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        const int64_t version = (t + i) % 3 + 1;
        const auto activated = manager_->Activate("shop", version);
        if (!activated.ok() || activated->version != version) ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(most, 1);
  EXPECT_EQ(Current("shop"), VersionOf(*manager_) + "\n");
}

TEST_F(ActivationTest, OneThatIsStoppedChangesNothing) {
  Start(Options());
  Gate loading, go_on;
  on_load_ = [&] {
    loading.Open();
    go_on.Wait();
  };
  absl::Status under_way, waiting;
  std::thread first(
      [&] { under_way = manager_->Activate("shop", 2).status(); });
  loading.Wait();
  std::thread second([&] { waiting = manager_->Activate("shop", 3).status(); });
  manager_->StopActivations();
  first.join();
  second.join();
  EXPECT_TRUE(absl::IsUnavailable(under_way)) << under_way;
  EXPECT_TRUE(absl::IsUnavailable(waiting)) << waiting;
  EXPECT_TRUE(absl::IsUnavailable(manager_->Activate("shop", 2).status()));
  go_on.Open();
  manager_.reset();
  EXPECT_EQ(Current("shop"), "1");
  EXPECT_THAT(loads_, ElementsAre("1", "2"));
}

TEST_F(ActivationTest, ThePolicyIsToldHowItWent) {
  ModelManagerOptions options = Options();
  options.models.emplace_back().set_name("shop");
  options.models[0].set_activation(internal::ACTIVATION_AUTOMATIC);
  int64_t next = 2;
  options.next_version = [&next](const std::string& model) {
    EXPECT_EQ(model, "shop");
    return std::exchange(next, 0);
  };
  std::vector<std::string> told;
  options.on_next_version = [&told](const std::string& model, int64_t version,
                                    const absl::Status& status) {
    told.push_back(absl::StrCat(model, " ", version, " ",
                                absl::StatusCodeToString(status.code())));
  };
  broken_ = {"2"};
  Start(options);
  manager_->PollOnce();
  EXPECT_EQ(VersionOf(*manager_), "1");
  EXPECT_EQ(Current("shop"), "1");
  next = 3;
  manager_->PollOnce();
  EXPECT_EQ(VersionOf(*manager_), "3");
  EXPECT_EQ(Current("shop"), "3\n");
  manager_->PollOnce();
  EXPECT_THAT(told, ElementsAre("shop 2 FAILED_PRECONDITION", "shop 3 OK"));
  // A stop is not held against a version.
  broken_.clear();
  manager_->StopActivations();
  next = 2;
  manager_->PollOnce();
  EXPECT_THAT(told, ::testing::SizeIs(2));
  EXPECT_EQ(VersionOf(*manager_), "3");
}

TEST_F(ActivationTest, ThePolicyLeavesOtherModelsAlone) {
  ModelManagerOptions options = Options();
  options.next_version = [](const std::string&) -> int64_t {
    ADD_FAILURE() << "its activation is manual";
    return 2;
  };
  Start(options);
  manager_->PollOnce();
  EXPECT_EQ(VersionOf(*manager_), "1");
}

}  // namespace
}  // namespace vitrine
