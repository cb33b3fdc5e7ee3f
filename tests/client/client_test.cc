#include "client/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "client/channel.h"
#include "tests/client/fake_server.h"

namespace vitrine {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Client> MakeClient(const std::string& target,
                                   int max_attempts = 1) {
  ClientOptions options;
  options.target = target;
  options.retry.max_attempts = max_attempts;
  options.retry.initial_backoff = absl::Milliseconds(5);
  options.retry.max_backoff = absl::Milliseconds(20);
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Create(options);
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

v1::RankRequest TwoItems() {
  v1::RankRequest request;
  request.mutable_context()->set_query("sofa");
  request.add_items()->set_id("a");
  request.add_items()->set_id("b");
  return request;
}

TEST(ClientTest, SendsTheRequestAndReturnsTheAnswer) {
  FakeServer server;
  const auto response = MakeClient(server.target())->Rank(TwoItems());
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->model().version(), "7");
  ASSERT_EQ(response->items_size(), 2);
  EXPECT_EQ(response->items(1).item_id(), "b");
  ASSERT_EQ(server.ranked().size(), 1u);
  EXPECT_EQ(server.ranked()[0].context().query(), "sofa");
}

TEST(ClientTest, KeepsCodeMessageAndDetailsOfAnError) {
  FakeServer server;
  server.set_hook([](int, grpc::ServerContext*) { return FullStatus(3); });
  const auto response = MakeClient(server.target())->Rank(TwoItems());
  EXPECT_EQ(response.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(response.status().message(), "the queue is full");
  EXPECT_EQ(RetryDelay(response.status()), absl::Seconds(3));
}

TEST(ClientTest, AnErrorWithoutDetailsHasNoRetryDelay) {
  FakeServer server;
  const auto response =
      MakeClient(server.target())->Classify(v1::ClassifyRequest());
  EXPECT_TRUE(absl::IsNotFound(response.status())) << response.status();
  EXPECT_EQ(RetryDelay(response.status()), std::nullopt);
  EXPECT_EQ(RetryDelay(absl::OkStatus()), std::nullopt);
}

TEST(ClientTest, DamagedDetailsLoseOnlyThemselves) {
  const absl::Status status = ToAbslStatus(
      grpc::Status(grpc::StatusCode::ABORTED, "why", "\xff\xff not a proto"));
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(status.message(), "why");
}

TEST(ClientTest, TriesAgainWhenTheServerIsFullOrUnavailable) {
  FakeServer server;
  server.set_hook([](int n, grpc::ServerContext*) {
    if (n == 0) return FullStatus(0);
    if (n == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "loading");
    return grpc::Status::OK;
  });
  const auto response = MakeClient(server.target(), 4)->Rank(TwoItems());
  EXPECT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(server.ranked().size(), 3u);
}

TEST(ClientTest, GivesUpAfterTheLastAttempt) {
  FakeServer server;
  server.set_hook([](int, grpc::ServerContext*) { return FullStatus(1); });
  const auto response = MakeClient(server.target(), 3)->Rank(TwoItems());
  EXPECT_EQ(RetryDelay(response.status()), absl::Seconds(1));
  EXPECT_EQ(server.ranked().size(), 3u);
}

TEST(ClientTest, DoesNotRepeatWhatTheCallerGotWrong) {
  FakeServer server;
  server.set_hook([](int, grpc::ServerContext*) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no query");
  });
  const auto response = MakeClient(server.target(), 4)->Rank(TwoItems());
  EXPECT_TRUE(absl::IsInvalidArgument(response.status()));
  EXPECT_EQ(server.ranked().size(), 1u);
}

TEST(ClientTest, TriesALargeRequestAgainToo) {
  FakeServer server;
  server.set_hook([](int n, grpc::ServerContext*) {
    return n == 0 ? FullStatus(0) : grpc::Status::OK;
  });
  v1::RankRequest request = TwoItems();
  request.mutable_items(0)->set_description(std::string(2 << 20, 'x'));
  const auto response = MakeClient(server.target(), 3)->Rank(request);
  EXPECT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(server.ranked().size(), 2u);
}

TEST(ClientTest, EveryCallHasADeadline) {
  FakeServer server;
  const auto client = MakeClient(server.target());
  ASSERT_TRUE(client->Rank(TwoItems()).ok());
  ASSERT_TRUE(client->Rank(TwoItems(), {.timeout = absl::Seconds(100)}).ok());
  const std::vector<absl::Duration> left = server.time_left();
  // On the wire gRPC rounds up, by less than 2%.
  EXPECT_LE(left[0], absl::Seconds(10.2));
  EXPECT_GT(left[0], absl::ZeroDuration());
  EXPECT_LE(left[1], absl::Seconds(102));
  EXPECT_GT(left[1], absl::Seconds(10.2));
}

TEST(ClientTest, ADeadlineEndsTheCallOnBothSides) {
  FakeServer server;
  std::atomic<bool> cancelled = false;
  server.set_hook([&](int, grpc::ServerContext* context) {
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    cancelled = true;
    return grpc::Status::CANCELLED;
  });
  const auto response =
      MakeClient(server.target())
          ->Rank(TwoItems(), {.timeout = absl::Milliseconds(50)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(response.status())) << response.status();
  while (!cancelled) absl::SleepFor(absl::Milliseconds(1));
}

TEST(ClientTest, RefusesATimeoutThatIsNone) {
  FakeServer server;
  const auto client = MakeClient(server.target());
  for (const absl::Duration timeout :
       {absl::InfiniteDuration(), absl::Seconds(-1)}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        client->Rank(TwoItems(), {.timeout = timeout}).status()));
  }
}

TEST(ClientTest, ThreadsShareOneClient) {
  FakeServer server;
  const auto client = MakeClient(server.target());
  std::atomic<int> ok = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) ok += client->Rank(TwoItems()).ok();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ok, 160);
}

TEST(ClientTest, TellsHealthOfServiceAndServer) {
  FakeServer server;
  const auto client = MakeClient(server.target());
  EXPECT_EQ(*client->CheckHealth(), Health::kServing);
  EXPECT_EQ(*client->CheckHealth(kInferenceService), Health::kServing);
  server.server().GetHealthCheckService()->SetServingStatus(false);
  EXPECT_EQ(*client->CheckHealth(kInferenceService), Health::kNotServing);
  EXPECT_TRUE(absl::IsNotFound(client->CheckHealth("no.such").status()));
}

TEST(ClientTest, NobodyThereIsUnavailable) {
  std::string target;
  {
    FakeServer server;
    target = server.target();
  }
  const auto response = MakeClient(target)->Rank(TwoItems());
  EXPECT_TRUE(absl::IsUnavailable(response.status())) << response.status();
}

TEST(ClientTest, ADeadlineBetweenTwoTriesToConnectIsUnavailable) {
  ClientOptions options;
  {
    FakeServer server;
    options.target = server.target();
  }
  options.retry.initial_backoff = absl::Seconds(100);
  options.retry.max_backoff = absl::Seconds(100);
  const auto client = Client::Create(options);
  const auto response =
      (*client)->Rank(TwoItems(), {.timeout = absl::Milliseconds(50)});
  EXPECT_TRUE(absl::IsUnavailable(response.status())) << response.status();
}

TEST(ClientTest, CompressedRequestsArrive) {
  FakeServer server;
  const auto client =
      Client::Create({.target = server.target(), .compress = true});
  v1::RankRequest request = TwoItems();
  request.mutable_items(0)->set_title(std::string(100000, 'x'));
  ASSERT_TRUE((*client)->Rank(request).ok());
  EXPECT_EQ(server.ranked()[0].items(0).title().size(), 100000u);
}

TEST(ClientTest, AnAnswerAboveTheLimitIsAnError) {
  FakeServer server;
  const auto client = Client::Create({.target = server.target(),
                                      .retry = {.max_attempts = 1},
                                      .max_response_bytes = 20});
  v1::RankRequest request = TwoItems();
  request.mutable_items(0)->set_id("a long id that comes back");
  EXPECT_EQ((*client)->Rank(request).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(ClientOptionsTest, ErrorsNameTheOption) {
  const std::pair<ClientOptions, const char*> cases[] = {
      {{.target = ""}, "target"},
      {{.timeout = absl::InfiniteDuration()}, "timeout: inf"},
      {{.timeout = absl::ZeroDuration()}, "timeout: 0"},
      {{.retry = {.max_attempts = 0}}, "retry.max_attempts: 0"},
      {{.retry = {.max_attempts = 6}}, "retry.max_attempts: 6"},
      {{.retry = {.initial_backoff = absl::Seconds(9)}}, "retry: back-offs"},
      {{.retry = {.multiplier = 0}}, "retry.multiplier: 0"},
      {{.max_response_bytes = 0}, "max_response_bytes: 0"},
      {{.ca_file = "ca.pem"}, "ca_file"},
      {{.tls = true, .key_file = "key.pem"}, "key_file"},
  };
  for (const auto& [options, message] : cases) {
    const absl::Status status = Client::Create(options).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(ClientOptionsTest, AMissingPemFileIsNamed) {
  const absl::Status status =
      Client::Create({.tls = true, .ca_file = "/no/such/ca.pem"}).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("/no/such/ca.pem"));
}

TEST(ClientOptionsTest, RetryPolicyBecomesAServiceConfig) {
  const std::string config = RetryServiceConfig(
      {.max_attempts = 3, .initial_backoff = absl::Milliseconds(50)});
  EXPECT_THAT(config, HasSubstr(R"("maxAttempts":3)"));
  EXPECT_THAT(config, HasSubstr(R"("initialBackoff":"0.05s")"));
  EXPECT_THAT(config, HasSubstr(R"("maxBackoff":"2s")"));
}

}  // namespace
}  // namespace vitrine
