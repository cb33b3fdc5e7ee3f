// The client's calls of FeedbackService and AdminService.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "client/admin_client.h"
#include "client/client.h"
#include "tests/client/fake_learning_server.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;

std::unique_ptr<Client> NewClient(const FakeLearningServer& server) {
  auto client =
      Client::Create({.target = server.target(), .retry = {.max_attempts = 1}});
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

std::unique_ptr<AdminClient> NewAdminClient(const FakeLearningServer& server) {
  auto client = AdminClient::Create({.target = server.target()}, "the token");
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

TEST(FeedbackClientTest, RecordsABatch) {
  FakeLearningServer server;
  v1::RecordFeedbackRequest request;
  request.add_feedback()->set_feedback_id("a");
  const auto response = NewClient(server)->RecordFeedback(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->stored(), 1);
}

TEST(FeedbackClientTest, ImportsUntilThereIsNoMore) {
  FakeLearningServer server;
  int batch = 0;
  const auto response = NewClient(server)->ImportFeedback(
      [&batch](v1::ImportFeedbackRequest* request) -> absl::StatusOr<bool> {
        EXPECT_EQ(request->feedback_size(), 0);
        for (int i = 0; i <= batch; ++i) request->add_feedback();
        return ++batch <= 3;
      });
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->stored(), 1 + 2 + 3);
  EXPECT_THAT(server.batches(), ElementsAre(1, 2, 3));
}

TEST(FeedbackClientTest, AnErrorOfTheCallersEndsTheImport) {
  FakeLearningServer server;
  int batch = 0;
  const auto response = NewClient(server)->ImportFeedback(
      [&batch](v1::ImportFeedbackRequest* request) -> absl::StatusOr<bool> {
        if (++batch == 3) return absl::DataLossError("line 3");
        request->add_feedback();
        return true;
      });
  EXPECT_EQ(response.status(), absl::DataLossError("line 3"));
  EXPECT_THAT(server.batches(), ElementsAre(1, 1)) << "what was sent stays";
}

TEST(FeedbackClientTest, TheServersErrorEndsTheImportAndIsReturned) {
  FakeLearningServer server;
  server.EndImportsAfter(
      2, grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "read-only"));
  int64_t sent = 0;
  const auto response = NewClient(server)->ImportFeedback(
      [&sent](v1::ImportFeedbackRequest* request) -> absl::StatusOr<bool> {
        request->add_feedback()->set_feedback_id(std::string(10000, 'a'));
        return ++sent < 1000000;
      });
  EXPECT_EQ(response.status(), absl::FailedPreconditionError("read-only"));
  EXPECT_LT(sent, 1000000) << "nobody reads any more";
}

TEST(FeedbackClientTest, AnImportHasADeadline) {
  FakeLearningServer server;
  const auto response = NewClient(server)->ImportFeedback(
      [](v1::ImportFeedbackRequest*) -> absl::StatusOr<bool> {
        absl::SleepFor(absl::Milliseconds(20));
        return true;
      },
      {.timeout = absl::Milliseconds(200)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(response.status())) << response.status();
  EXPECT_TRUE(absl::IsInvalidArgument(
      NewClient(server)
          ->ImportFeedback([](auto*) { return false; },
                           {.timeout = absl::InfiniteDuration()})
          .status()));
}

TEST(AdminClientTest, SendsTheToken) {
  FakeLearningServer server;
  v1::StartTrainingRequest request;
  request.set_idempotency_key("k");
  const auto response = NewAdminClient(server)->StartTraining(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->job().id(), 7);
  EXPECT_EQ(response->job().idempotency_key(), "k");
  EXPECT_THAT(server.tokens(), ElementsAre("Bearer the token"));
}

TEST(AdminClientTest, TriesOnce) {
  FakeLearningServer server;
  server.set_start_status(
      grpc::Status(grpc::StatusCode::UNAVAILABLE, "the store is locked"));
  const auto response = NewAdminClient(server)->StartTraining({});
  EXPECT_EQ(response.status(), absl::UnavailableError("the store is locked"));
  EXPECT_EQ(server.tokens().size(), 1u);
}

TEST(AdminClientTest, WatchesAJobToItsEnd) {
  FakeLearningServer server;
  v1::WatchTrainingJobRequest request;
  request.set_id(1);
  std::vector<v1::TrainingJobState> states;
  const absl::Status status = NewAdminClient(server)->WatchTrainingJob(
      request, [&states](const v1::TrainingJob& job) {
        states.push_back(job.state());
        return true;
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(states, ElementsAre(v1::TRAINING_JOB_STATE_RUNNING,
                                  v1::TRAINING_JOB_STATE_SUCCEEDED));
  EXPECT_THAT(server.tokens(), ElementsAre("Bearer the token"));
  request.set_id(3);
  EXPECT_TRUE(absl::IsNotFound(NewAdminClient(server)->WatchTrainingJob(
      request, [](const v1::TrainingJob&) { return true; })));
}

TEST(AdminClientTest, StopsWatchingWhenAsked) {
  FakeLearningServer server;
  v1::WatchTrainingJobRequest request;
  request.set_id(2);
  int seen = 0;
  const absl::Status status = NewAdminClient(server)->WatchTrainingJob(
      request, [&seen](const v1::TrainingJob&) { return ++seen < 3; });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(seen, 3);
  while (!server.watch_cancelled()) absl::SleepFor(absl::Milliseconds(1));
}

}  // namespace
}  // namespace vitrine
