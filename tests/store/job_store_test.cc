#include "store/job_store.h"

#include <algorithm>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/mutex.h"
#include "tests/store/store_fixture.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A lease of zero has run out when it begins: no test needs to wait for one.
constexpr absl::Duration kRunOut = absl::ZeroDuration();
constexpr absl::Duration kLong = absl::Hours(1);

v1::TrainingJob Wanted(const std::string& key = "",
                       const std::string& model = "shop") {
  v1::TrainingJob job;
  job.set_model(model);
  job.mutable_recipe()->set_epochs(3);
  job.set_base_version(2);
  job.set_label_watermark(77);
  job.set_idempotency_key(key);
  job.set_created_by("admin 10.0.0.7");
  return job;
}

class JobStoreTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    if (database_ != nullptr) store_ = std::make_unique<JobStore>(*database_);
  }

  int64_t Create(const v1::TrainingJob& wanted = Wanted()) {
    const auto created = store_->Create(wanted);
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->job.id() : -1;
  }

  // The id claimed; 0: none.
  int64_t Claim(const std::string& worker, absl::Duration lease = kLong,
                int max_attempts = 10) {
    const auto job = store_->Claim(
        {.worker = worker, .lease = lease, .max_attempts = max_attempts});
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() && job->has_value() ? (*job)->id() : 0;
  }

  v1::TrainingJob Get(int64_t id) {
    const auto job = store_->Get(id);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(v1::TrainingJob());
  }

  absl::Status Finish(int64_t id, const std::string& worker,
                      v1::TrainingJobState state, int64_t version = 0) {
    v1::TrainingJob job;
    job.set_id(id);
    job.set_state(state);
    job.set_result_version(version);
    return store_->Finish(job, worker);
  }

  // "actor action" of all events.
  std::vector<std::string> Trail() {
    std::vector<std::string> trail;
    const auto events = store_->ListAudit("", 0, 1000);
    EXPECT_TRUE(events.ok()) << events.status();
    for (const v1::AuditEvent& event : *events) {
      trail.push_back(absl::StrCat(event.actor(), " ", event.action()));
    }
    return trail;
  }

  std::unique_ptr<JobStore> store_;
};
INSTANTIATE_STORE_TEST(JobStoreTest);

TEST_P(JobStoreTest, QueuesAJob) {
  const auto created = store_->Create(Wanted("key"));
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_FALSE(created->existed);
  const v1::TrainingJob job = Get(created->job.id());
  EXPECT_EQ(job.SerializeAsString(), created->job.SerializeAsString());
  EXPECT_EQ(job.model(), "shop");
  EXPECT_EQ(job.state(), v1::TRAINING_JOB_STATE_QUEUED);
  EXPECT_EQ(job.recipe().epochs(), 3);
  EXPECT_EQ(job.base_version(), 2);
  EXPECT_EQ(job.label_watermark(), 77);
  EXPECT_EQ(job.idempotency_key(), "key");
  EXPECT_EQ(job.created_by(), "admin 10.0.0.7");
  EXPECT_NEAR(job.created().seconds(), absl::ToUnixSeconds(absl::Now()), 60);
  EXPECT_FALSE(job.has_started());
  EXPECT_EQ(job.attempts(), 0);
  EXPECT_GT(job.revision(), 0);
  EXPECT_THAT(Trail(), ElementsAre("admin 10.0.0.7 job.queued"));
}

TEST_P(JobStoreTest, SameKeyReturnsTheJobThatIsThere) {
  const int64_t id = Create(Wanted("key"));
  v1::TrainingJob again = Wanted("key");
  again.set_created_by("admin 10.0.0.8");
  const auto same = store_->Create(again);
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_TRUE(same->existed);
  EXPECT_EQ(same->job.id(), id);
  EXPECT_EQ(same->job.created_by(), "admin 10.0.0.7");

  again.set_label_watermark(78);
  const auto other = store_->Create(again);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(other.status().message()),
              HasSubstr(absl::StrCat("training job ", id)));

  EXPECT_NE(Create(Wanted("key", "other")), id);  // a key is its model's
  EXPECT_NE(Create(Wanted("")), Create(Wanted("")));
}

// The watermark was filled in by the server, and has risen since.
TEST_P(JobStoreTest, RequestsAreComparedAsTheyCame) {
  v1::StartTrainingRequest asked;
  asked.set_idempotency_key("key");
  asked.mutable_recipe()->set_epochs(3);
  const auto first = store_->Create(Wanted("key"), &asked);
  ASSERT_TRUE(first.ok()) << first.status();
  v1::TrainingJob later = Wanted("key");
  later.set_label_watermark(500);
  asked.set_model("shop");  // said or not, it is the same model
  const auto again = store_->Create(later, &asked);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->existed);
  EXPECT_EQ(again->job.label_watermark(), 77);
  asked.mutable_recipe()->set_epochs(4);
  EXPECT_EQ(store_->Create(later, &asked).status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST_P(JobStoreTest, CreateIfIdleWaitsForTheEndOfTheModelsJobs) {
  const auto first = store_->CreateIfIdle(Wanted());
  ASSERT_TRUE(first.ok() && first->has_value()) << first.status();
  EXPECT_FALSE(store_->CreateIfIdle(Wanted())->has_value());
  EXPECT_TRUE(store_->CreateIfIdle(Wanted("", "other"))->has_value());
  ASSERT_EQ(Claim("w"), (*first)->id());
  EXPECT_FALSE(store_->CreateIfIdle(Wanted())->has_value());
  ASSERT_TRUE(store_->SetEvaluating((*first)->id(), "w").ok());
  EXPECT_FALSE(store_->CreateIfIdle(Wanted())->has_value());
  ASSERT_TRUE(
      Finish((*first)->id(), "w", v1::TRAINING_JOB_STATE_REJECTED).ok());
  EXPECT_TRUE(store_->CreateIfIdle(Wanted())->has_value());
}

TEST_P(JobStoreTest, ServersAtOnceCreateOneAutomaticJob) {
  std::vector<std::thread> servers;
  Mutex mu;
  int made = 0;
  for (int i = 0; i < 8; ++i) {
    servers.emplace_back([&] {
      const auto job = store_->CreateIfIdle(Wanted());
      EXPECT_TRUE(job.ok()) << job.status();
      MutexLock lock(mu);
      made += job.ok() && job->has_value();
    });
  }
  for (std::thread& server : servers) server.join();
  EXPECT_EQ(made, 1);
}

TEST_P(JobStoreTest, ListsTheNewestFirst) {
  const int64_t a = Create(), b = Create(Wanted("", "other")), c = Create();
  const auto ids = [this](const std::string& model, int64_t before, int limit) {
    std::vector<int64_t> ids;
    const auto jobs = store_->List(model, before, limit);
    for (const auto& job : *jobs) ids.push_back(job.id());
    return ids;
  };
  EXPECT_THAT(ids("", 0, 10), ElementsAre(c, b, a));
  EXPECT_THAT(ids("", 0, 2), ElementsAre(c, b));
  EXPECT_THAT(ids("", b, 2), ElementsAre(a));
  EXPECT_THAT(ids("shop", 0, 10), ElementsAre(c, a));
  EXPECT_THAT(ids("none", 0, 10), IsEmpty());
}

TEST_P(JobStoreTest, GetOfAnUnknownIdIsNotFound) {
  EXPECT_EQ(store_->Get(7).status(),
            absl::NotFoundError("there is no training job 7"));
  EXPECT_TRUE(absl::IsNotFound(store_->Cancel(7, "admin").status()));
  EXPECT_TRUE(absl::IsNotFound(store_->SetEvaluating(7, "w")));
}

TEST_P(JobStoreTest, RunsAJobFromQueueToPublishedVersion) {
  const int64_t id = Create();
  const auto claimed = store_->Claim({.worker = "host:1", .lease = kLong});
  ASSERT_TRUE(claimed.ok() && claimed->has_value()) << claimed.status();
  EXPECT_EQ((*claimed)->state(), v1::TRAINING_JOB_STATE_RUNNING);
  EXPECT_EQ((*claimed)->worker(), "host:1");
  EXPECT_EQ((*claimed)->attempts(), 1);
  EXPECT_TRUE((*claimed)->has_started());
  EXPECT_EQ(Get(id).SerializeAsString(), (*claimed)->SerializeAsString());

  v1::TrainingJob job = **claimed;
  job.mutable_progress()->set_step(10);
  job.set_training_rows(900);
  job.set_validation_rows(100);
  job.set_data_digest("abc");
  job.set_state(v1::TRAINING_JOB_STATE_FAILED);  // not Renew's to change
  EXPECT_EQ(*store_->Renew(job, "host:1", kLong), false);
  const v1::TrainingJob renewed = Get(id);
  EXPECT_EQ(renewed.state(), v1::TRAINING_JOB_STATE_RUNNING);
  EXPECT_EQ(renewed.progress().step(), 10);
  EXPECT_EQ(renewed.training_rows(), 900);
  EXPECT_EQ(renewed.data_digest(), "abc");
  EXPECT_EQ(renewed.revision(), (*claimed)->revision() + 1);
  // No news: no revision. What it does not say stays.
  v1::TrainingJob bare;
  bare.set_id(id);
  EXPECT_TRUE(store_->Renew(bare, "host:1", kLong).ok());
  EXPECT_EQ(Get(id).SerializeAsString(), renewed.SerializeAsString());

  ASSERT_TRUE(store_->SetEvaluating(id, "host:1").ok());
  ASSERT_TRUE(store_->SetEvaluating(id, "host:1").ok());
  EXPECT_EQ(Get(id).state(), v1::TRAINING_JOB_STATE_EVALUATING);

  job.set_state(v1::TRAINING_JOB_STATE_SUCCEEDED);
  job.set_result_version(3);
  job.add_metrics()->set_name("ndcg@10");
  ASSERT_TRUE(store_->Finish(job, "host:1").ok());
  const v1::TrainingJob ended = Get(id);
  EXPECT_EQ(ended.state(), v1::TRAINING_JOB_STATE_SUCCEEDED);
  EXPECT_EQ(ended.result_version(), 3);
  EXPECT_EQ(ended.metrics_size(), 1);
  EXPECT_EQ(ended.validation_rows(), 100);
  EXPECT_TRUE(ended.has_finished());
  EXPECT_GT(ended.revision(), renewed.revision());

  EXPECT_EQ(Claim("host:2"), 0);
  EXPECT_THAT(Trail(), ElementsAre("admin 10.0.0.7 job.queued",
                                   "worker host:1 job.running",
                                   "worker host:1 job.evaluating",
                                   "worker host:1 job.succeeded"));
  const auto last = store_->ListAudit("shop", -1, 1);
  ASSERT_EQ(last->size(), 1u);
  EXPECT_EQ(last->front().job(), id);
  EXPECT_EQ(last->front().version(), 3);
}

TEST_P(JobStoreTest, FinishTwiceIsOnce) {
  const int64_t id = Create();
  ASSERT_EQ(Claim("w"), id);
  ASSERT_TRUE(Finish(id, "w", v1::TRAINING_JOB_STATE_SUCCEEDED, 3).ok());
  const std::string ended = Get(id).SerializeAsString();
  EXPECT_TRUE(Finish(id, "w", v1::TRAINING_JOB_STATE_SUCCEEDED, 4).ok());
  EXPECT_EQ(Get(id).SerializeAsString(), ended);
  EXPECT_TRUE(absl::IsAborted(Finish(id, "w", v1::TRAINING_JOB_STATE_FAILED)));
  EXPECT_TRUE(
      absl::IsAborted(Finish(id, "x", v1::TRAINING_JOB_STATE_SUCCEEDED)));
  EXPECT_TRUE(
      absl::IsInvalidArgument(Finish(id, "w", v1::TRAINING_JOB_STATE_QUEUED)));
}

TEST_P(JobStoreTest, RejectionsAndErrorsAreInTheJobAndTheTrail) {
  const int64_t id = Create();
  ASSERT_EQ(Claim("w"), id);
  v1::TrainingJob job;
  job.set_id(id);
  job.set_state(v1::TRAINING_JOB_STATE_REJECTED);
  job.add_rejections("ndcg@10 fell");
  job.add_rejections("too slow");
  ASSERT_TRUE(store_->Finish(job, "w").ok());
  EXPECT_EQ(Get(id).rejections_size(), 2);
  EXPECT_EQ(store_->ListAudit("", -1, 1)->front().detail(),
            "ndcg@10 fell; too slow");
}

TEST_P(JobStoreTest, ALeaseThatRanOutIsTakenOver) {
  const int64_t id = Create();
  ASSERT_EQ(Claim("old", kRunOut), id);
  const auto started = Get(id).started();
  ASSERT_EQ(Claim("new"), id);
  EXPECT_EQ(Claim("third"), 0);
  const v1::TrainingJob job = Get(id);
  EXPECT_EQ(job.worker(), "new");
  EXPECT_EQ(job.attempts(), 2);
  EXPECT_EQ(job.started().SerializeAsString(), started.SerializeAsString());

  const absl::Status lost = store_->Renew(job, "old", kLong).status();
  EXPECT_TRUE(absl::IsAborted(lost));
  EXPECT_THAT(std::string(lost.message()), HasSubstr("running, new"));
  EXPECT_TRUE(absl::IsAborted(store_->SetEvaluating(id, "old")));
  EXPECT_TRUE(absl::IsAborted(store_->Release(id, "old")));
  EXPECT_TRUE(
      absl::IsAborted(Finish(id, "old", v1::TRAINING_JOB_STATE_SUCCEEDED, 9)));
  EXPECT_EQ(Get(id).SerializeAsString(), job.SerializeAsString());
  EXPECT_TRUE(store_->Renew(job, "new", kLong).ok());
  EXPECT_THAT(Trail(),
              ElementsAre("admin 10.0.0.7 job.queued", "worker old job.running",
                          "worker new job.taken_over"));
}

TEST_P(JobStoreTest, AnEvaluatingJobIsTakenOverAsRunning) {
  const int64_t id = Create();
  ASSERT_EQ(Claim("old"), id);
  ASSERT_TRUE(store_->SetEvaluating(id, "old").ok());
  EXPECT_EQ(Claim("new"), 0);
  ASSERT_TRUE(store_->Renew(Get(id), "old", kRunOut).ok());
  ASSERT_EQ(Claim("new"), id);
  EXPECT_EQ(Get(id).state(), v1::TRAINING_JOB_STATE_RUNNING);
}

TEST_P(JobStoreTest, RenewingKeepsALease) {
  const int64_t id = Create();
  ASSERT_EQ(Claim("w", kRunOut), id);
  ASSERT_TRUE(store_->Renew(Get(id), "w", kLong).ok());
  EXPECT_EQ(Claim("other"), 0);
}

TEST_P(JobStoreTest, ClaimsTheOldestOfItsModels) {
  const int64_t a = Create(), b = Create(Wanted("", "other")), c = Create();
  const auto other = store_->Claim(
      {.worker = "w", .models = {"third", "other"}, .lease = kLong});
  ASSERT_TRUE(other.ok() && other->has_value());
  EXPECT_EQ((*other)->id(), b);
  EXPECT_FALSE(
      store_->Claim({.worker = "w", .models = {"other"}})->has_value());
  EXPECT_EQ(Claim("w"), a);
  EXPECT_EQ(Claim("w"), c);
  EXPECT_EQ(Claim("w"), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Claim({}).status()));
}

TEST_P(JobStoreTest, ClaimsFromManyThreadsGiveEachJobToOne) {
  constexpr int kJobs = 40, kWorkers = 8;
  for (int i = 0; i < kJobs; ++i) Create();
  const std::unique_ptr<Database> other = Open();
  Mutex mu;
  std::map<int64_t, int> taken;
  std::vector<std::thread> workers;
  for (int w = 0; w < kWorkers; ++w) {
    workers.emplace_back([&, w] {
      JobStore store(w % 2 == 0 ? *database_ : *other);
      const std::string worker = absl::StrCat("w", w);
      while (true) {
        const auto job = store.Claim({.worker = worker, .lease = kLong});
        ASSERT_TRUE(job.ok()) << job.status();
        if (!job->has_value()) return;
        EXPECT_EQ((*job)->worker(), worker);
        MutexLock lock(mu);
        ++taken[(*job)->id()];
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  EXPECT_EQ(taken.size(), size_t{kJobs});
  for (const auto& [id, times] : taken) EXPECT_EQ(times, 1) << id;
  EXPECT_EQ(Trail().size(), size_t{2 * kJobs});
}

TEST_P(JobStoreTest, AQueuedJobIsCancelledAtOnce) {
  const int64_t id = Create();
  const auto job = store_->Cancel(id, "admin 10.0.0.9");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), v1::TRAINING_JOB_STATE_CANCELLED);
  EXPECT_TRUE(job->has_finished());
  EXPECT_EQ(Claim("w"), 0);
  const auto again = store_->Cancel(id, "admin 10.0.0.9");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), job->SerializeAsString());
  EXPECT_THAT(Trail(), ElementsAre("admin 10.0.0.7 job.queued",
                                   "admin 10.0.0.9 job.cancelled"));
}

TEST_P(JobStoreTest, ARunningJobIsMarkedAndItsWorkerHears) {
  for (const bool evaluating : {false, true}) {
    const int64_t id = Create();
    ASSERT_EQ(Claim("w"), id);
    ASSERT_TRUE(!evaluating || store_->SetEvaluating(id, "w").ok());
    const auto state = Get(id).state();
    const auto job = store_->Cancel(id, "admin");
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->state(), state);
    EXPECT_TRUE(job->cancel_requested());
    EXPECT_EQ(store_->Cancel(id, "admin")->revision(), job->revision());
    EXPECT_EQ(*store_->Renew(Get(id), "w", kLong), true);
    ASSERT_TRUE(Finish(id, "w", v1::TRAINING_JOB_STATE_CANCELLED).ok());
    EXPECT_EQ(Get(id).state(), v1::TRAINING_JOB_STATE_CANCELLED);
  }
  const std::vector<std::string> trail = Trail();
  EXPECT_EQ(
      std::count(trail.begin(), trail.end(), "admin job.cancel_requested"), 2);
}

TEST_P(JobStoreTest, CancelAfterTheEndNamesTheState) {
  for (const auto state :
       {v1::TRAINING_JOB_STATE_SUCCEEDED, v1::TRAINING_JOB_STATE_REJECTED,
        v1::TRAINING_JOB_STATE_FAILED}) {
    const int64_t id = Create();
    ASSERT_EQ(Claim("w"), id);
    ASSERT_TRUE(Finish(id, "w", state).ok());
    const absl::Status status = store_->Cancel(id, "admin").status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(StateName(state)));
  }
}

TEST_P(JobStoreTest, AMarkedJobWhoseWorkerIsGoneIsCancelled) {
  const int64_t gone = Create(), released = Create(), next = Create();
  ASSERT_EQ(Claim("dead", kRunOut), gone);
  ASSERT_TRUE(store_->Cancel(gone, "admin").ok());
  ASSERT_EQ(Claim("w"), released);
  EXPECT_EQ(Get(gone).state(), v1::TRAINING_JOB_STATE_CANCELLED);
  ASSERT_TRUE(store_->Cancel(released, "admin").ok());
  ASSERT_TRUE(store_->Release(released, "w").ok());
  EXPECT_EQ(Get(released).state(), v1::TRAINING_JOB_STATE_CANCELLED);
  EXPECT_EQ(Claim("w"), next);
}

TEST_P(JobStoreTest, AReleasedJobIsForWhoeverComesNext) {
  const int64_t id = Create();
  ASSERT_EQ(Claim("first"), id);
  v1::TrainingJob progress = Get(id);
  progress.mutable_progress()->set_step(5);
  ASSERT_TRUE(store_->Renew(progress, "first", kLong).ok());
  ASSERT_TRUE(store_->Release(id, "first").ok());
  EXPECT_EQ(Get(id).state(), v1::TRAINING_JOB_STATE_QUEUED);
  EXPECT_EQ(Get(id).worker(), "");
  EXPECT_EQ(Get(id).attempts(), 0);
  EXPECT_TRUE(absl::IsAborted(store_->SetEvaluating(id, "first")));
  ASSERT_EQ(Claim("second"), id);
  EXPECT_EQ(Get(id).attempts(), 1);
  EXPECT_EQ(Get(id).progress().step(), 5);
  EXPECT_THAT(
      Trail(),
      ElementsAre("admin 10.0.0.7 job.queued", "worker first job.running",
                  "worker first job.released", "worker second job.running"));
}

TEST_P(JobStoreTest, AJobThatEndsItsWorkersIsGivenUp) {
  const int64_t id = Create(), next = Create();
  ASSERT_EQ(Claim("a", kRunOut, 2), id);
  ASSERT_EQ(Claim("b", kRunOut, 2), id);
  ASSERT_EQ(Claim("c", kLong, 2), next);
  EXPECT_EQ(Get(id).state(), v1::TRAINING_JOB_STATE_FAILED);
  EXPECT_THAT(Get(id).error(), HasSubstr("after 2 attempts; the last was b"));
  EXPECT_TRUE(Get(id).has_finished());
}

TEST_P(JobStoreTest, EachVersionIsActivatedByPolicyOnce) {
  EXPECT_EQ(*store_->NextForActivation("shop"), 0);
  const auto publish = [this](int64_t version, const std::string& model) {
    const int64_t id = Create(Wanted("", model));
    ASSERT_EQ(Claim("w"), id);
    ASSERT_TRUE(
        Finish(id, "w", v1::TRAINING_JOB_STATE_SUCCEEDED, version).ok());
  };
  const auto settle = [this](int64_t version, const std::string& server) {
    v1::AuditEvent event;
    event.set_actor(server);
    event.set_action("model.activated");
    event.set_model("shop");
    event.set_version(version);
    ASSERT_TRUE(store_->SettleActivation("shop", version, event).ok());
  };
  publish(0, "shop");  // a dry run
  EXPECT_EQ(*store_->NextForActivation("shop"), 0);
  publish(3, "shop");
  publish(4, "shop");
  publish(9, "other");
  EXPECT_EQ(*store_->NextForActivation("shop"), 4);
  EXPECT_EQ(*store_->NextForActivation("shop"), 4);  // until it is settled
  settle(4, "s1");
  EXPECT_EQ(*store_->NextForActivation("shop"), 0);  // 3 is passed over
  settle(4, "s2");                                   // had been told of it, too
  settle(3, "s2");
  EXPECT_EQ(*store_->NextForActivation("shop"), 0);
  publish(5, "shop");
  EXPECT_EQ(*store_->NextForActivation("shop"), 5);
  EXPECT_EQ(*store_->NextForActivation("other"), 9);
  std::vector<std::string> activated;
  for (const std::string& event : Trail()) {
    if (event.find("model.activated") != std::string::npos) {
      activated.push_back(event);
    }
  }
  EXPECT_THAT(activated, ElementsAre("s1 model.activated"));
}

TEST_P(JobStoreTest, AnAdminsChoiceStandsUntilAnotherVersionIsPublished) {
  v1::AuditEvent event;
  event.set_actor("admin");
  event.set_action("model.rolled_back");
  event.set_model("shop");
  event.set_version(2);
  ASSERT_TRUE(store_->SettleActivations("shop", event).ok());  // of nothing
  const auto publish = [this](int64_t version) {
    const int64_t id = Create();
    ASSERT_EQ(Claim("w"), id);
    ASSERT_TRUE(
        Finish(id, "w", v1::TRAINING_JOB_STATE_SUCCEEDED, version).ok());
  };
  publish(3);
  publish(4);
  EXPECT_EQ(*store_->NextForActivation("shop"), 4);
  ASSERT_TRUE(store_->SettleActivations("shop", event).ok());
  EXPECT_EQ(*store_->NextForActivation("shop"), 0);
  ASSERT_TRUE(store_->SettleActivations("shop", event).ok());
  publish(5);
  EXPECT_EQ(*store_->NextForActivation("shop"), 5);
  const std::vector<std::string> trail = Trail();
  EXPECT_EQ(std::count(trail.begin(), trail.end(), "admin model.rolled_back"),
            3);
}

TEST_P(JobStoreTest, ListsAuditEvents) {
  for (int i = 1; i <= 5; ++i) {
    v1::AuditEvent event;
    event.set_actor("server");
    event.set_action("model.activated");
    event.set_model(i == 3 ? "other" : "shop");
    event.set_version(i);
    event.set_detail("it's \"it\" :x");
    ASSERT_TRUE(store_->Audit(event).ok());
  }
  const auto versions = [this](const std::string& model, int64_t after,
                               int limit) {
    std::vector<int64_t> versions;
    const auto events = store_->ListAudit(model, after, limit);
    for (const auto& event : *events) versions.push_back(event.version());
    return versions;
  };
  EXPECT_THAT(versions("", 0, 10), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(versions("shop", 0, 3), ElementsAre(1, 2, 4));
  EXPECT_THAT(versions("", -1, 2), ElementsAre(4, 5));
  EXPECT_THAT(versions("shop", -1, 3), ElementsAre(2, 4, 5));
  const auto events = store_->ListAudit("", 0, 10);
  EXPECT_THAT(versions("", (*events)[2].id(), 10), ElementsAre(4, 5));
  EXPECT_EQ((*events)[0].actor(), "server");
  EXPECT_EQ((*events)[0].action(), "model.activated");
  EXPECT_EQ((*events)[0].detail(), "it's \"it\" :x");
  EXPECT_NEAR((*events)[0].time().seconds(), absl::ToUnixSeconds(absl::Now()),
              60);
}

TEST_P(JobStoreTest, TheAuditTrailIsAppendOnly) {
  Create();
  const auto before = store_->ListAudit("", 0, 10);
  ASSERT_EQ(before->size(), 1u);
  std::vector<std::string> attempts = {"update audit set actor = 'nobody'",
                                       "delete from audit"};
  if (GetParam() == SqlDialect::kSqlite) {
    attempts.push_back(
        "insert or replace into audit select id, time_us, 'nobody', action, "
        "model, job, version, detail from audit");
  } else {
    attempts.push_back("truncate audit");
  }
  for (const std::string& attempt : attempts) {
    const absl::Status status = Execute(attempt);
    EXPECT_THAT(std::string(status.message()), HasSubstr("append-only"))
        << attempt;
  }
  const auto after = store_->ListAudit("", 0, 10);
  ASSERT_EQ(after->size(), 1u);
  EXPECT_EQ(after->front().SerializeAsString(),
            before->front().SerializeAsString());
}

TEST(JobState, NamesAndEnds) {
  EXPECT_EQ(StateName(v1::TRAINING_JOB_STATE_QUEUED), "queued");
  EXPECT_EQ(StateName(v1::TRAINING_JOB_STATE_CANCELLED), "cancelled");
  EXPECT_FALSE(IsFinal(v1::TRAINING_JOB_STATE_EVALUATING));
  EXPECT_TRUE(IsFinal(v1::TRAINING_JOB_STATE_REJECTED));
}

}  // namespace
}  // namespace vitrine
