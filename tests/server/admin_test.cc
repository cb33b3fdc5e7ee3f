// What the admin's listener does: whom it lets in, training jobs, versions, the
// audit trail.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "google/protobuf/descriptor.h"
#include "server/rpc.h"
#include "store/sql.h"
#include "tests/server/learning_fixture.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

using Stub = v1::AdminService::Stub;

constexpr grpc::StatusCode kInvalid = grpc::StatusCode::INVALID_ARGUMENT;

class AdminTest : public LearningTest {
 protected:
  // A version folder as the trainer leaves it; the loader reads nothing of it.
  void AddVersion(int64_t version, int64_t parent = 0) {
    const std::string folder = registry_.File(absl::StrCat("shop/", version));
    ASSERT_TRUE(MakeFolders(folder).ok());
    internal::Manifest manifest;
    manifest.set_model("shop");
    manifest.set_version(version);
    manifest.set_parent(parent);
    ASSERT_TRUE(testing::WriteManifest(folder, manifest).ok());
  }

  std::string Current() {
    const auto text = ReadFile(registry_.File("shop/CURRENT"));
    return text.ok() ? *text : text.status().ToString();
  }

  // What answers calls.
  std::string Serving() {
    v1::RankResponse response;
    const grpc::Status status = Rank(RankOf("q", {"sofa"}), &response);
    return status.ok() ? response.model().version() : status.error_message();
  }

  grpc::Status Activate(int64_t version,
                        v1::ActivateModelVersionResponse* response) {
    v1::ActivateModelVersionRequest request;
    request.set_version(version);
    return Admin(&Stub::ActivateModelVersion, request, response);
  }
  grpc::Status Activate(int64_t version) {
    v1::ActivateModelVersionResponse response;
    return Activate(version, &response);
  }
  grpc::Status Rollback(v1::RollbackModelResponse* response) {
    return Admin(&Stub::RollbackModel, v1::RollbackModelRequest(), response);
  }

  grpc::Status StartTraining(const v1::StartTrainingRequest& request,
                             v1::StartTrainingResponse* response) {
    return Admin(&Stub::StartTraining, request, response);
  }
  // Queues one; its number.
  int64_t QueueJob() {
    v1::StartTrainingResponse response;
    const grpc::Status status = StartTraining({}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.job().id();
  }

  // "action version detail" of all events, the oldest first.
  std::vector<std::string> Events() {
    v1::ListAuditEventsResponse response;
    EXPECT_TRUE(
        Admin(&Stub::ListAuditEvents, v1::ListAuditEventsRequest(), &response)
            .ok());
    std::vector<std::string> out;
    for (const v1::AuditEvent& event : response.events()) {
      out.push_back(absl::StrCat(event.action(), " ", event.version(), " ",
                                 event.detail()));
    }
    return out;
  }

  // A job as its worker leaves it that has published `version`.
  void Publish(int64_t version, int64_t parent) {
    AddVersion(version, parent);
    const std::unique_ptr<Database> database = OpenStore();
    JobStore jobs(*database);
    v1::TrainingJob job;
    job.set_model("shop");
    ASSERT_TRUE(jobs.Create(job).ok());
    const auto claimed = jobs.Claim({.worker = "w"});
    ASSERT_TRUE(claimed.ok() && claimed->has_value());
    job = **claimed;
    job.set_state(v1::TRAINING_JOB_STATE_SUCCEEDED);
    job.set_result_version(version);
    ASSERT_TRUE(jobs.Finish(job, "w").ok());
  }

  double LoadFailures() {
    return server_->metrics().load_failures("shop").Value();
  }

  // A call of any method without its message's fields.
  static grpc::Status CallEmpty(const std::shared_ptr<grpc::Channel>& channel,
                                const std::string& service,
                                const std::string& method,
                                const std::string& authorization) {
    grpc::ClientContext context;
    if (!authorization.empty()) {
      context.AddMetadata("authorization", authorization);
    }
    grpc::ByteBuffer response;
    return CallRaw(channel, service, method, "", &context, &response);
  }
};

std::vector<std::string> MethodsOf(const std::string& service) {
  std::vector<std::string> out;
  const auto* const descriptor =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(
          service);
  for (int i = 0; i < descriptor->method_count(); ++i) {
    out.push_back(descriptor->method(i)->name());
  }
  return out;
}

TEST_F(AdminTest, NobodyIsLetInWithoutTheToken) {
  StartLearning();
  const std::vector<std::string> methods = MethodsOf("vitrine.v1.AdminService");
  ASSERT_THAT(methods, SizeIs(10));
  const std::string token = kToken;
  for (const std::string& method : methods) {
    for (const std::string& given :
         {std::string(), token, absl::StrCat("Basic ", token),
          std::string("Bearer"), std::string("Bearer "),
          absl::StrCat("Bearer ", token.substr(1)),
          absl::StrCat("Bearer ", token.substr(0, 15)),
          absl::StrCat("Bearer ", token, "0"),
          std::string("Bearer 0123456789abcdeF")}) {
      const grpc::Status status =
          CallEmpty(admin_channel_, "vitrine.v1.AdminService", method, given);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED)
          << method << " with \"" << given << "\"";
      EXPECT_THAT(status.error_message(), Not(HasSubstr(token)));
    }
    EXPECT_NE(CallEmpty(admin_channel_, "vitrine.v1.AdminService", method,
                        absl::StrCat("Bearer ", token))
                  .error_code(),
              grpc::StatusCode::UNAUTHENTICATED)
        << method;
  }
  EXPECT_EQ(Counter(Method::kRollbackModel, absl::StatusCode::kUnauthenticated),
            9);
}

TEST_F(AdminTest, EachServiceIsOnItsOwnListenerOnly) {
  StartLearning();
  const std::string bearer = absl::StrCat("bearer ", kToken);
  for (const std::string& method : MethodsOf("vitrine.v1.AdminService")) {
    EXPECT_EQ(CallEmpty(channel_, "vitrine.v1.AdminService", method, bearer)
                  .error_code(),
              grpc::StatusCode::UNIMPLEMENTED)
        << method;
  }
  for (const char* service :
       {"vitrine.v1.InferenceService", "vitrine.v1.FeedbackService"}) {
    for (const std::string& method : MethodsOf(service)) {
      EXPECT_EQ(CallEmpty(admin_channel_, service, method, bearer).error_code(),
                grpc::StatusCode::UNIMPLEMENTED)
          << method;
    }
  }
}

TEST_F(AdminTest, WithoutAStoreVersionsCanBeActivatedButNothingTrained) {
  ASSERT_TRUE(WriteFile(folder_.File("token"), kToken).ok());
  AddVersion(1);
  AddVersion(2);
  ASSERT_TRUE(WriteFile(registry_.File("shop/CURRENT"), "1").ok());
  Start(absl::StrCat("admin { listen: '127.0.0.1:0' token_file: '",
                     folder_.File("token"), "' }"));
  admin_ = v1::AdminService::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->admin_port()),
                          grpc::InsecureChannelCredentials()));
  v1::StartTrainingResponse started;
  EXPECT_EQ(StartTraining({}, &started).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  grpc::ClientContext context;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", kToken));
  v1::WatchTrainingJobRequest watch;
  watch.set_id(1);
  EXPECT_EQ(admin_->WatchTrainingJob(&context, watch)->Finish().error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(Activate(2).ok());
  EXPECT_EQ(Serving(), "2");
}

TEST_F(AdminTest, QueuesAJobFromWhatThereIs) {
  StartLearning();
  v1::RecordFeedbackResponse recorded;
  ASSERT_TRUE(Record({Judgement("a"), Judgement("b")}, &recorded).ok());
  v1::StartTrainingRequest request;
  request.mutable_recipe()->set_epochs(3);
  request.set_dry_run(true);
  v1::StartTrainingResponse response;
  const grpc::Status status = StartTraining(request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_FALSE(response.existed());
  v1::GetTrainingJobRequest get;
  get.set_id(response.job().id());
  v1::GetTrainingJobResponse got;
  ASSERT_TRUE(Admin(&Stub::GetTrainingJob, get, &got).ok());
  const v1::TrainingJob& job = got.job();
  EXPECT_EQ(job.DebugString(), response.job().DebugString());
  EXPECT_EQ(job.model(), "shop");
  EXPECT_EQ(job.state(), v1::TRAINING_JOB_STATE_QUEUED);
  EXPECT_EQ(job.base_version(), 1) << "the one that serves";
  EXPECT_EQ(job.label_watermark(), 2) << "all labels";
  EXPECT_EQ(job.recipe().epochs(), 3);
  EXPECT_TRUE(job.dry_run());
  EXPECT_EQ(job.created_by(), "admin 127.0.0.1");
  EXPECT_THAT(Events(), ElementsAre("job.queued 0 "));
}

TEST_F(AdminTest, RefusesBadTrainingsAndNamesTheField) {
  StartLearning();
  v1::RecordFeedbackResponse recorded;
  ASSERT_TRUE(Record({Judgement("a")}, &recorded).ok());
  std::vector<std::pair<v1::StartTrainingRequest, std::string>> cases;
  const auto add = [&cases](const std::string& text, auto change) {
    v1::StartTrainingRequest request;
    change(request);
    cases.emplace_back(std::move(request), text);
  };
  const auto recipe = [&add](const std::string& text, auto change) {
    add(absl::StrCat("recipe.", text),
        [&](auto& r) { change(*r.mutable_recipe()); });
  };
  const auto task = [&recipe](const std::string& text, auto change) {
    recipe(absl::StrCat("tasks[1]", text), [&](auto& r) {
      r.add_tasks()->set_kind(v1::TRAINING_TASK_KIND_INTEREST);
      change(*r.add_tasks());
    });
  };
  const auto rule = [&recipe](const std::string& text, auto change) {
    recipe(absl::StrCat("gate.rules[0]", text), [&](auto& r) {
      v1::GateRule& rule = *r.mutable_gate()->add_rules();
      rule.set_metric("ndcg@10");
      rule.set_bound(0.5);
      change(rule);
    });
  };
  const double nan = std::nan("");

  add("idempotency_key: 129 bytes > 128",
      [](auto& r) { r.set_idempotency_key(std::string(129, 'k')); });
  add("idempotency_key: \"a\\x00\\x62\" holds a NUL",
      [](auto& r) { r.set_idempotency_key(std::string("a\0b", 3)); });
  add("base_version: -1 is negative", [](auto& r) { r.set_base_version(-1); });
  add("label_watermark: -1 is negative",
      [](auto& r) { r.set_label_watermark(-1); });
  add("label_watermark: 2 lies in the future; the newest label is number 1",
      [](auto& r) { r.set_label_watermark(2); });
  recipe("tasks: 65 is not in [0, 64]", [](auto& r) {
    for (int i = 0; i < 65; ++i) r.add_tasks();
  });
  recipe("epochs: -1 is not in", [](auto& r) { r.set_epochs(-1); });
  recipe("learning_rate: 1.5 is not in",
         [](auto& r) { r.set_learning_rate(1.5); });
  recipe("learning_rate: nan is not in",
         [nan](auto& r) { r.set_learning_rate(nan); });
  recipe("head_learning_rate: -1 is not in",
         [](auto& r) { r.set_head_learning_rate(-1); });
  recipe("batch_size: -1 is not in", [](auto& r) { r.set_batch_size(-1); });
  recipe("schedule: \"steep\" is neither",
         [](auto& r) { r.set_schedule("steep"); });
  recipe("freeze: \"-1\" is neither", [](auto& r) { r.set_freeze("-1"); });
  recipe("freeze: \"all\" is neither", [](auto& r) { r.set_freeze("all"); });
  recipe("patience: -1 is not in", [](auto& r) { r.set_patience(-1); });
  recipe("validation_share: 0.95 is not in",
         [](auto& r) { r.set_validation_share(0.95); });
  recipe("replay_share: 1.5 is not in",
         [](auto& r) { r.set_replay_share(1.5); });
  recipe("relevance_loss: 9 is unknown", [](auto& r) {
    r.set_relevance_loss(static_cast<v1::RelevanceLoss>(9));
  });
  recipe("temperature: -1 is not in", [](auto& r) { r.set_temperature(-1); });
  recipe("weight_decay: -1 is not in", [](auto& r) { r.set_weight_decay(-1); });
  recipe("dropout: 1 is not in", [](auto& r) { r.set_dropout(1); });
  task(".kind: 0 is unknown", [](auto&) {});
  task(".kind: 9 is unknown",
       [](auto& t) { t.set_kind(static_cast<v1::TrainingTaskKind>(9)); });
  task(".head: is needed for classification",
       [](auto& t) { t.set_kind(v1::TRAINING_TASK_KIND_CLASSIFICATION); });
  task(".head: \"Mood!\" is not of the form", [](auto& t) {
    t.set_kind(v1::TRAINING_TASK_KIND_CLASSIFICATION);
    t.set_head("Mood!");
  });
  task(".weight: -1 is not in", [](auto& t) {
    t.set_kind(v1::TRAINING_TASK_KIND_RELEVANCE);
    t.set_weight(-1);
  });
  task(": the head interest is there twice",
       [](auto& t) { t.set_kind(v1::TRAINING_TASK_KIND_INTEREST); });
  task(": the head interest is there twice", [](auto& t) {
    t.set_kind(v1::TRAINING_TASK_KIND_INTEREST);
    t.set_head("interest");
  });
  rule(".metric: is empty", [](auto& r) { r.clear_metric(); });
  rule(".head: \"A\" is not of the form", [](auto& r) { r.set_head("A"); });
  rule(": asks for nothing", [](auto& r) { r.clear_bound(); });
  rule(".bound: nan is not in", [nan](auto& r) { r.set_bound(nan); });
  rule(".min_change: nan is not in", [nan](auto& r) { r.set_min_change(nan); });
  rule(".evidence: 9 is unknown",
       [](auto& r) { r.set_evidence(static_cast<v1::GateEvidence>(9)); });
  recipe("gate.confidence: 1 is not in",
         [](auto& r) { r.mutable_gate()->set_confidence(1); });
  recipe("gate.resamples: -1 is not in",
         [](auto& r) { r.mutable_gate()->set_resamples(-1); });
  recipe("gate.max_latency_ratio: nan is not in",
         [nan](auto& r) { r.mutable_gate()->set_max_latency_ratio(nan); });
  recipe("gate.min_validation_rows: -1 is not in",
         [](auto& r) { r.mutable_gate()->set_min_validation_rows(-1); });
  for (const auto& [request, text] : cases) {
    v1::StartTrainingResponse response;
    const grpc::Status status = StartTraining(request, &response);
    EXPECT_EQ(status.error_code(), kInvalid) << text;
    EXPECT_THAT(status.error_message(), HasSubstr(text));
  }

  v1::StartTrainingRequest request;
  v1::StartTrainingResponse response;
  request.set_base_version(7);
  grpc::Status status = StartTraining(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(),
            "base_version: model shop has no version 7");
  request.clear_base_version();
  request.set_model("shoes");
  status = StartTraining(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("\"shoes\""));
  EXPECT_THAT(Events(), IsEmpty());
}

TEST_F(AdminTest, TheSameKeyIsTheSameJob) {
  StartLearning();
  v1::RecordFeedbackResponse recorded;
  ASSERT_TRUE(Record({Judgement("a")}, &recorded).ok());
  v1::StartTrainingRequest request;
  request.set_idempotency_key("nightly");
  request.mutable_recipe()->set_epochs(3);
  v1::StartTrainingResponse first, again;
  ASSERT_TRUE(StartTraining(request, &first).ok());
  // Labels that came since do not make it another request, nor does the
  // default model by its name.
  ASSERT_TRUE(Record({Judgement("b")}, &recorded).ok());
  request.set_model("shop");
  ASSERT_TRUE(StartTraining(request, &again).ok());
  EXPECT_TRUE(again.existed());
  EXPECT_EQ(again.job().id(), first.job().id());
  EXPECT_EQ(again.job().label_watermark(), 1);
  request.mutable_recipe()->set_epochs(4);
  const grpc::Status other = StartTraining(request, &again);
  EXPECT_EQ(other.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(other.error_message(), HasSubstr("nightly"));
  EXPECT_THAT(Events(), SizeIs(1));
}

TEST_F(AdminTest, ListsJobsByPages) {
  StartLearning();
  for (int i = 0; i < 5; ++i) QueueJob();
  v1::ListTrainingJobsRequest request;
  request.set_page_size(2);
  std::vector<int64_t> ids;
  int pages = 0;
  do {
    v1::ListTrainingJobsResponse response;
    ASSERT_TRUE(Admin(&Stub::ListTrainingJobs, request, &response).ok());
    for (const v1::TrainingJob& job : response.jobs()) ids.push_back(job.id());
    request.set_page_token(response.next_page_token());
    ++pages;
  } while (!request.page_token().empty() && pages < 10);
  EXPECT_THAT(ids, ElementsAre(5, 4, 3, 2, 1));
  EXPECT_EQ(pages, 3);
  v1::ListTrainingJobsResponse response;
  request.set_page_token("x");
  EXPECT_EQ(Admin(&Stub::ListTrainingJobs, request, &response).error_message(),
            "page_token: \"x\" is not of an answer of this server");
  request.clear_page_token();
  for (const int bad : {-1, 1001}) {
    request.set_page_size(bad);
    EXPECT_EQ(
        Admin(&Stub::ListTrainingJobs, request, &response).error_message(),
        absl::StrCat("page_size: ", bad, " is not in [0, 1000]"));
  }
  request.clear_page_size();
  request.set_model("shoes");
  ASSERT_TRUE(Admin(&Stub::ListTrainingJobs, request, &response).ok());
  EXPECT_THAT(response.jobs(), IsEmpty());
}

TEST_F(AdminTest, CancelsWhatHasNotEnded) {
  StartLearning();
  v1::CancelTrainingJobRequest request;
  v1::CancelTrainingJobResponse response;
  const auto cancel = [&](int64_t id) {
    request.set_id(id);
    return Admin(&Stub::CancelTrainingJob, request, &response);
  };
  EXPECT_EQ(cancel(99).error_code(), grpc::StatusCode::NOT_FOUND);

  const int64_t queued = QueueJob();
  ASSERT_TRUE(cancel(queued).ok());
  EXPECT_EQ(response.job().state(), v1::TRAINING_JOB_STATE_CANCELLED);
  EXPECT_TRUE(cancel(queued).ok()) << "again is the same";

  const int64_t running = QueueJob();
  const std::unique_ptr<Database> database = OpenStore();
  JobStore jobs(*database);
  v1::TrainingJob job = **jobs.Claim({.worker = "w"});
  ASSERT_TRUE(cancel(running).ok());
  EXPECT_EQ(response.job().state(), v1::TRAINING_JOB_STATE_RUNNING);
  EXPECT_TRUE(response.job().cancel_requested());
  EXPECT_TRUE(*jobs.Renew(job, "w", absl::Seconds(30)));
  job.set_state(v1::TRAINING_JOB_STATE_FAILED);
  ASSERT_TRUE(jobs.Finish(job, "w").ok());
  const grpc::Status late = cancel(running);
  EXPECT_EQ(late.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(late.error_message(), HasSubstr("failed"));
}

TEST_F(AdminTest, ALockedDatabaseIsUnavailable) {
  StartLearning("", "lock_timeout { nanos: 50000000 }");
  const std::unique_ptr<Database> other = OpenStore();
  ASSERT_TRUE(other->sql()
                  .Write([&](SqlConnection&) {
                    v1::StartTrainingResponse response;
                    EXPECT_EQ(StartTraining({}, &response).error_code(),
                              grpc::StatusCode::UNAVAILABLE);
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_GT(QueueJob(), 0);
}

class WatchTest : public AdminTest {
 protected:
  struct Stream {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::WatchTrainingJobResponse>> reader;

    // The job's next state; unspecified at the end.
    v1::TrainingJobState Next() {
      v1::WatchTrainingJobResponse response;
      if (!reader->Read(&response)) return v1::TRAINING_JOB_STATE_UNSPECIFIED;
      return response.job().state();
    }
  };

  std::unique_ptr<Stream> Watch(int64_t id) {
    auto stream = std::make_unique<Stream>();
    stream->context.AddMetadata("authorization",
                                absl::StrCat("Bearer ", kToken));
    v1::WatchTrainingJobRequest request;
    request.set_id(id);
    stream->reader = admin_->WatchTrainingJob(&stream->context, request);
    return stream;
  }
};

TEST_F(WatchTest, SeesEachStateToTheEnd) {
  StartLearning();
  const int64_t id = QueueJob();
  const auto first = Watch(id);
  const auto second = Watch(id);
  const std::unique_ptr<Database> database = OpenStore();
  JobStore jobs(*database);
  EXPECT_EQ(first->Next(), v1::TRAINING_JOB_STATE_QUEUED);
  EXPECT_EQ(second->Next(), v1::TRAINING_JOB_STATE_QUEUED);
  v1::TrainingJob job = **jobs.Claim({.worker = "w"});
  EXPECT_EQ(first->Next(), v1::TRAINING_JOB_STATE_RUNNING);
  EXPECT_EQ(second->Next(), v1::TRAINING_JOB_STATE_RUNNING);
  job.mutable_progress()->set_step(7);
  ASSERT_TRUE(jobs.Renew(job, "w", absl::Seconds(30)).ok());
  v1::WatchTrainingJobResponse response;
  ASSERT_TRUE(first->reader->Read(&response));
  EXPECT_EQ(response.job().progress().step(), 7);
  ASSERT_TRUE(jobs.SetEvaluating(id, "w").ok());
  EXPECT_EQ(first->Next(), v1::TRAINING_JOB_STATE_EVALUATING);
  job.set_state(v1::TRAINING_JOB_STATE_REJECTED);
  job.add_rejections("worse");
  ASSERT_TRUE(jobs.Finish(job, "w").ok());
  ASSERT_TRUE(first->reader->Read(&response));
  EXPECT_EQ(response.job().state(), v1::TRAINING_JOB_STATE_REJECTED);
  EXPECT_THAT(response.job().rejections(), ElementsAre("worse"));
  EXPECT_EQ(first->Next(), v1::TRAINING_JOB_STATE_UNSPECIFIED);
  EXPECT_TRUE(first->reader->Finish().ok());
  // One that has ended is shown once.
  const auto late = Watch(id);
  EXPECT_EQ(late->Next(), v1::TRAINING_JOB_STATE_REJECTED);
  EXPECT_EQ(late->Next(), v1::TRAINING_JOB_STATE_UNSPECIFIED);
  EXPECT_TRUE(late->reader->Finish().ok());
}

TEST_F(WatchTest, RefusesJobsThatAreNotThere) {
  StartLearning();
  const auto unknown = Watch(99)->reader->Finish();
  EXPECT_EQ(unknown.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(unknown.error_message(), HasSubstr("99"));
  const auto none = Watch(0)->reader->Finish();
  EXPECT_EQ(none.error_code(), kInvalid);
  EXPECT_THAT(none.error_message(), HasSubstr("id: 0"));
}

TEST_F(WatchTest, ACallerThatGoesLeavesNothingBehind) {
  StartLearning();
  const auto watch = Watch(QueueJob());
  EXPECT_EQ(watch->Next(), v1::TRAINING_JOB_STATE_QUEUED);
  watch->context.TryCancel();
  EXPECT_EQ(watch->reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually(
      [this] { return server_->metrics().calls_in_flight().Value() == 0; }));
  EXPECT_EQ(Counter(Method::kWatchTrainingJob, absl::StatusCode::kCancelled),
            1);
}

TEST_F(WatchTest, StopEndsItSoon) {
  StartLearning("drain_timeout { seconds: 100 }");
  const auto watch = Watch(QueueJob());
  EXPECT_EQ(watch->Next(), v1::TRAINING_JOB_STATE_QUEUED);
  const absl::Time start = absl::Now();
  server_->Stop();
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
  EXPECT_EQ(watch->reader->Finish().error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST_F(AdminTest, ListsAndShowsVersions) {
  for (const int version : {1, 2}) {
    ASSERT_TRUE(
        testing::WriteTinyModel(registry_.File(absl::StrCat("shop/", version)),
                                {.heads = testing::AllHeads(),
                                 .model_name = "shop",
                                 .version = version})
            .ok());
  }
  const std::string folder = registry_.File("shop/2");
  auto manifest = ReadManifestFile(folder + "/manifest.textproto");
  ASSERT_TRUE(manifest.ok());
  manifest->set_parent(1);
  manifest->set_description("nightly");
  manifest->set_job(12);
  manifest->set_label_watermark(345);
  manifest->set_data_digest("d1");
  manifest->set_seed(7);
  manifest->set_recipe("epochs: 3");
  internal::Metric& metric = *manifest->add_metrics();
  metric.set_head("relevance");
  metric.set_name("ndcg@10");
  metric.set_value(0.9);
  metric.set_before(0.8);
  metric.set_change_low(0.05);
  metric.set_change_high(0.15);
  internal::Metric& unknown_before = *manifest->add_metrics();
  unknown_before.set_name("rmse");
  unknown_before.set_before(std::nan(""));
  unknown_before.set_lower_is_better(true);
  internal::LabelScore& score = *manifest->add_label_scores();
  score.set_label("positive");
  score.set_rows(9);
  ASSERT_TRUE(testing::WriteManifest(folder, *manifest).ok());
  ASSERT_TRUE(WriteFile(registry_.File("shop/CURRENT"), "1").ok());
  ASSERT_TRUE(MakeFolders(registry_.File("shop/.staging-7")).ok());
  StartLearning();

  v1::ListModelVersionsResponse list;
  grpc::Status status =
      Admin(&Stub::ListModelVersions, v1::ListModelVersionsRequest(), &list);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_THAT(list.versions(), SizeIs(2));
  EXPECT_EQ(list.versions(0).version(), 2);
  EXPECT_FALSE(list.versions(0).serving());
  EXPECT_FALSE(list.versions(0).current());
  EXPECT_EQ(list.versions(1).version(), 1);
  EXPECT_TRUE(list.versions(1).serving());
  EXPECT_TRUE(list.versions(1).current());
  EXPECT_THAT(list.versions(0).metrics(), IsEmpty());

  v1::GetModelVersionRequest request;
  v1::GetModelVersionResponse shown;
  request.set_version(2);
  ASSERT_TRUE(Admin(&Stub::GetModelVersion, request, &shown).ok());
  const v1::RegisteredVersion& version = shown.version();
  EXPECT_EQ(version.model(), "shop");
  EXPECT_EQ(version.parent(), 1);
  EXPECT_EQ(version.description(), "nightly");
  EXPECT_EQ(version.created_by(), "tiny_model");
  EXPECT_EQ(version.job(), 12);
  EXPECT_EQ(version.label_watermark(), 345);
  EXPECT_EQ(version.data_digest(), "d1");
  EXPECT_EQ(version.seed(), 7u);
  EXPECT_EQ(version.recipe(), "epochs: 3");
  EXPECT_THAT(version.heads(), ElementsAre("relevance", "recommendation",
                                           "interest", "sentiment"));
  EXPECT_GT(version.size_bytes(), 10000);
  ASSERT_THAT(version.metrics(), SizeIs(2));
  EXPECT_EQ(version.metrics(0).value(), 0.9);
  EXPECT_EQ(version.metrics(0).before(), 0.8);
  EXPECT_EQ(version.metrics(0).change_low(), 0.05);
  EXPECT_EQ(version.metrics(0).change_high(), 0.15);
  EXPECT_FALSE(version.metrics(1).has_before());
  EXPECT_FALSE(version.metrics(1).has_change_low());
  EXPECT_TRUE(version.metrics(1).lower_is_better());
  ASSERT_THAT(version.label_reports(), SizeIs(1));
  EXPECT_EQ(version.label_reports(0).label(), "positive");
  EXPECT_EQ(version.label_reports(0).rows(), 9);

  request.set_version(0);
  ASSERT_TRUE(Admin(&Stub::GetModelVersion, request, &shown).ok());
  EXPECT_EQ(shown.version().version(), 1) << "the one in service";
  request.set_version(7);
  status = Admin(&Stub::GetModelVersion, request, &shown);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "model shop has no version 7");
  request.set_model("shoes");
  EXPECT_EQ(Admin(&Stub::GetModelVersion, request, &shown).error_code(),
            grpc::StatusCode::NOT_FOUND);

  // A damaged manifest hides nothing but itself.
  ASSERT_TRUE(WriteFile(folder + "/manifest.textproto", "model: {").ok());
  ASSERT_TRUE(
      Admin(&Stub::ListModelVersions, v1::ListModelVersionsRequest(), &list)
          .ok());
  ASSERT_THAT(list.versions(), SizeIs(2));
  EXPECT_EQ(list.versions(0).version(), 2);
  EXPECT_THAT(list.versions(0).description(),
              AllOf(HasSubstr("cannot be read"), HasSubstr("manifest")));
  EXPECT_TRUE(list.versions(1).serving());
}

TEST_F(AdminTest, ActivatesAndRollsBack) {
  AddVersion(1);
  AddVersion(2, /*parent=*/1);
  ASSERT_TRUE(WriteFile(registry_.File("shop/CURRENT"), "1").ok());
  StartLearning();
  v1::ActivateModelVersionResponse activated;
  ASSERT_TRUE(Activate(2, &activated).ok());
  EXPECT_EQ(activated.model(), "shop");
  EXPECT_EQ(activated.version(), 2);
  EXPECT_EQ(activated.previous(), 1);
  EXPECT_GE(activated.took().nanos(), 0);
  EXPECT_EQ(Serving(), "2");
  EXPECT_EQ(Current(), "2\n");
  v1::RollbackModelResponse back;
  ASSERT_TRUE(Rollback(&back).ok());
  EXPECT_EQ(back.version(), 1);
  EXPECT_EQ(back.previous(), 2);
  EXPECT_EQ(Serving(), "1");
  EXPECT_EQ(Current(), "1\n");
  const grpc::Status orphan = Rollback(&back);
  EXPECT_EQ(orphan.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(orphan.error_message(), "model shop: version 1 has no parent");
  EXPECT_THAT(Events(), ElementsAre("model.activated 2 was 1",
                                    "model.rolled_back 1 was 2"));
}

TEST_F(AdminTest, RollbackToAParentThatIsGoneSaysSo) {
  AddVersion(2, /*parent=*/1);
  ASSERT_TRUE(WriteFile(registry_.File("shop/CURRENT"), "2").ok());
  StartLearning();
  std::filesystem::remove_all(registry_.File("shop/1"));
  v1::RollbackModelResponse back;
  const grpc::Status status = Rollback(&back);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "model shop has no version 1");
  EXPECT_EQ(Serving(), "2");
  EXPECT_THAT(Events(), ElementsAre("model.activation_failed 1 model shop has "
                                    "no version 1"));
}

TEST_F(AdminTest, WhatCannotBeActivatedLeavesTheOldOneServing) {
  StartLearning();
  AddVersion(3);
  ASSERT_TRUE(MakeFolders(registry_.File("shop/.staging-4")).ok());
  ASSERT_TRUE(MakeFolders(registry_.File("shop/5")).ok());  // no manifest yet
  on_load_ = [](int64_t version) {
    return version == 3
               ? absl::DataLossError("model.safetensors: SHA-256 differs")
               : absl::OkStatus();
  };
  const grpc::Status corrupt = Activate(3);
  EXPECT_EQ(corrupt.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(corrupt.error_message(),
            "model shop: version 3: model.safetensors: SHA-256 differs; "
            "version 1 goes on serving");
  EXPECT_EQ(LoadFailures(), 1);
  for (const int unknown : {4, 5, 99}) {
    const grpc::Status status = Activate(unknown);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_EQ(status.error_message(),
              absl::StrCat("model shop has no version ", unknown));
  }
  for (const int none : {0, -1}) {
    const grpc::Status status = Activate(none);
    EXPECT_EQ(status.error_code(), kInvalid);
    EXPECT_EQ(status.error_message(),
              absl::StrCat("version: ", none, " is no version"));
  }
  EXPECT_EQ(Serving(), "1");
  EXPECT_EQ(Current(), "1\n");
  const std::vector<std::string> events = Events();
  ASSERT_THAT(events, SizeIs(4));
  EXPECT_THAT(events[0], AllOf(HasSubstr("model.activation_failed 3"),
                               HasSubstr("SHA-256 differs")));
}

TEST_F(AdminTest, AVersionFixedByTheConfigurationStays) {
  AddVersion(1);
  AddVersion(2);
  StartLearning("models { name: 'shop' version: 1 }");
  const grpc::Status status = Activate(2);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("fixed to version 1"));
  EXPECT_EQ(Serving(), "1");
}

TEST_F(AdminTest, CallsInFlightEndOnTheVersionTheyBeganWith) {
  StartLearning();
  AddVersion(2);
  FakeEngine* const old_engine = engine_;
  const std::weak_ptr<const ServableModel> old =
      (*server_->models().Pin({}))->model;
  old_engine->Hold();
  v1::RankResponse before;
  std::thread caller([this, &before] {
    EXPECT_TRUE(Rank(RankOf("q", {"sofa"}), &before).ok());
  });
  old_engine->WaitForBatches(1);
  EXPECT_TRUE(Activate(2).ok());
  EXPECT_EQ((*server_->models().Pin({}))->version, "2");
  EXPECT_FALSE(old.expired());
  old_engine->Release();
  caller.join();
  EXPECT_EQ(before.model().version(), "1");
  EXPECT_TRUE(Eventually([&old] { return old.expired(); }));
}

TEST_F(AdminTest, StopDuringASlowLoadChangesNothing) {
  StartLearning("drain_timeout { seconds: 100 }");
  AddVersion(2);
  absl::Notification loading, go_on;
  on_load_ = [&](int64_t) {
    loading.Notify();
    go_on.WaitForNotification();
    return absl::OkStatus();
  };
  grpc::Status status;
  std::thread caller([&] { status = Activate(2); });
  loading.WaitForNotification();
  const absl::Time start = absl::Now();
  server_->Stop();
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
  caller.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the server is stopping");
  go_on.Notify();
  engine_ = nullptr;  // goes with the server
  server_.reset();
  EXPECT_EQ(Current(), "1\n");
}

TEST_F(AdminTest, ActivatesByPolicyWhatAJobPublishes) {
  AddVersion(1);
  StartLearning("models { name: 'shop' activation: ACTIVATION_AUTOMATIC }");
  server_->models().PollOnce();
  EXPECT_EQ(Serving(), "1");
  Publish(2, 1);
  server_->models().PollOnce();
  EXPECT_EQ(Serving(), "2");
  EXPECT_EQ(Current(), "2\n");
  EXPECT_EQ(Events().back(), "model.activated 2 by policy");
  // What an admin then does stands.
  v1::RollbackModelResponse back;
  ASSERT_TRUE(Rollback(&back).ok());
  server_->models().PollOnce();
  EXPECT_EQ(Serving(), "1");
  Publish(3, 1);
  ASSERT_TRUE(Activate(2).ok());  // before the server has looked for version 3
  server_->models().PollOnce();
  EXPECT_EQ(Serving(), "2");
}

TEST_F(AdminTest, AFailedActivationByPolicyIsSettled) {
  AddVersion(1);
  StartLearning("models { name: 'shop' activation: ACTIVATION_AUTOMATIC }");
  int loads = 0;
  on_load_ = [&loads](int64_t version) {
    ++loads;
    return version == 2 ? absl::DataLossError("torn") : absl::OkStatus();
  };
  Publish(2, 1);
  server_->models().PollOnce();
  server_->models().PollOnce();
  EXPECT_EQ(loads, 1);
  EXPECT_EQ(Serving(), "1");
  EXPECT_EQ(Current(), "1\n");
  EXPECT_THAT(Events().back(),
              AllOf(HasSubstr("model.activation_failed 2"), HasSubstr("torn")));
  EXPECT_EQ(LoadFailures(), 1);
  Publish(3, 1);
  server_->models().PollOnce();
  EXPECT_EQ(Serving(), "3");
}

TEST_F(AdminTest, FollowsTheAuditTrail) {
  StartLearning();
  for (int i = 0; i < 4; ++i) QueueJob();
  v1::ListAuditEventsRequest request;
  v1::ListAuditEventsResponse response;
  const auto ids = [&] {
    EXPECT_TRUE(Admin(&Stub::ListAuditEvents, request, &response).ok());
    std::vector<int64_t> out;
    for (const v1::AuditEvent& event : response.events()) {
      out.push_back(event.id());
    }
    return out;
  };
  request.set_page_size(2);
  EXPECT_THAT(ids(), ElementsAre(3, 4)) << "the newest";
  EXPECT_EQ(response.events(0).actor(), "admin 127.0.0.1");
  EXPECT_EQ(response.events(0).action(), "job.queued");
  EXPECT_EQ(response.events(0).job(), 3);
  EXPECT_GT(response.events(0).time().seconds(), 0);
  request.set_after(1);
  EXPECT_THAT(ids(), ElementsAre(2, 3)) << "the next";
  request.set_after(4);
  EXPECT_THAT(ids(), IsEmpty());
  request.set_after(0);
  EXPECT_THAT(ids(), ElementsAre(1, 2)) << "from the first";
  request.clear_after();
  request.set_model("shoes");
  EXPECT_THAT(ids(), IsEmpty());
  request.set_after(-1);
  EXPECT_EQ(Admin(&Stub::ListAuditEvents, request, &response).error_message(),
            "after: -1 is negative");
}

TEST(PeerHostTest, IsTheAddressWithoutKindAndPort) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"ipv4:10.0.0.7:5123", "10.0.0.7"},
      {"ipv6:[::1]:5123", "::1"},
      {"ipv6:%5B2001:db8::1%5D:5123", "2001:db8::1"},
      {"unix:/run/vitrine.sock", "unix:/run/vitrine.sock"},
      {"", ""},
      {"ipv4:", ""},
  };
  for (const auto& [peer, host] : cases) EXPECT_EQ(PeerHost(peer), host);
}

}  // namespace
}  // namespace vitrine
