#include "client/load_generator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "tests/client/fake_server.h"

namespace vitrine {
namespace {

std::vector<AnyRequest> Requests(const std::string& json) {
  std::vector<AnyRequest> requests;
  requests.push_back(*ParseRequest(json, *FindMethod("Rank")));
  return requests;
}

std::vector<AnyRequest> ThreeItems() {
  return Requests(R"({"items": [{"id": "a"}, {"id": "b"}, {"id": "c"}]})");
}

LoadOptions Options(const FakeServer& server) {
  LoadOptions options;
  options.client.target = server.target();
  options.client.retry.max_attempts = 1;
  options.warmup = absl::ZeroDuration();
  options.duration = absl::Milliseconds(200);
  return options;
}

LoadReport Measure(
    const std::vector<AnyRequest>& requests, const LoadOptions& options,
    const std::function<bool()>& stop = [] { return false; }) {
  auto generator = NewLoadGenerator(requests, options);
  EXPECT_TRUE(generator.ok()) << generator.status();
  auto report = (*generator)->Run(stop, nullptr);
  EXPECT_TRUE(report.ok()) << report.status();
  return *std::move(report);
}

TEST(LoadGeneratorTest, SendsAsManyCallsAsAsked) {
  FakeServer server;
  LoadOptions options = Options(server);
  options.callers = 3;
  options.max_calls = 50;
  const LoadReport report = Measure(ThreeItems(), options);
  EXPECT_EQ(report.ok, 50);
  EXPECT_TRUE(report.errors.empty());
  EXPECT_EQ(report.latency.count(), 50);
  EXPECT_NEAR(report.calls, 50, 1e-6);
  EXPECT_NEAR(report.items, 150, 1e-6);
  EXPECT_EQ(report.server_compute, absl::Milliseconds(2));
  EXPECT_EQ(report.model_version, "7");
  EXPECT_EQ(server.ranked().size(), 50u);
}

TEST(LoadGeneratorTest, AClosedLoopHasNoMoreCallsInFlightThanCallers) {
  FakeServer server;
  std::atomic<int> in_flight = 0, most = 0;
  server.set_hook([&](int n, grpc::ServerContext*) {
    const int now = ++in_flight;
    int seen = most;
    while (now > seen && !most.compare_exchange_weak(seen, now)) {
    }
    // The first of each caller is held until all four are here.
    while (n < 4 && most < 4) absl::SleepFor(absl::Milliseconds(1));
    --in_flight;
    return grpc::Status::OK;
  });
  LoadOptions options = Options(server);
  options.callers = 4;
  options.max_calls = 40;
  Measure(ThreeItems(), options);
  EXPECT_EQ(most, 4);
}

TEST(LoadGeneratorTest, TakesRequestsInTurn) {
  FakeServer server;
  std::vector<AnyRequest> requests;
  for (const char* query : {"a", "b", "c"}) {
    requests.push_back(
        *ParseRequest(std::string(R"({"context":{"query":")") + query + "\"}}",
                      *FindMethod("Rank")));
  }
  LoadOptions options = Options(server);
  options.callers = 1;
  options.max_calls = 7;
  Measure(requests, options);
  std::string queries;
  for (const auto& request : server.ranked()) {
    queries += request.context().query();
  }
  EXPECT_EQ(queries, "abcabca");
}

TEST(LoadGeneratorTest, CountsErrorsByCodeAndItemsWithErrors) {
  FakeServer server;
  server.set_hook([](int n, grpc::ServerContext*) {
    return n % 2 == 0 ? FullStatus(1) : grpc::Status::OK;
  });
  LoadOptions options = Options(server);
  options.callers = 1;
  options.max_calls = 10;
  const LoadReport report = Measure(
      Requests(R"({"items": [{"title": "bad"}, {"title": "good"}]})"), options);
  EXPECT_EQ(report.ok, 5);
  EXPECT_EQ(report.errors.at(absl::StatusCode::kResourceExhausted), 5);
  EXPECT_EQ(report.item_errors, 5);
  EXPECT_EQ(RetryDelay(report.first_error), absl::Seconds(1));
}

TEST(LoadGeneratorTest, AnOpenLoopStartsCallsThatAStalledServerDelays) {
  FakeServer server;
  std::atomic<int> arrived = 0;
  // Nothing is answered before the 20th call is there: a closed loop of any
  // fewer callers would hang.
  server.set_hook([&](int, grpc::ServerContext*) {
    ++arrived;
    while (arrived < 20) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::OK;
  });
  LoadOptions options = Options(server);
  options.rate = 1000;
  options.poisson = false;
  options.max_calls = 20;
  const LoadReport report = Measure(ThreeItems(), options);
  EXPECT_EQ(report.ok, 20);
  EXPECT_EQ(report.start_lag.count(), 20);
}

TEST(LoadGeneratorTest, OpenLoopLatencyCountsFromWhenACallWasDue) {
  FakeServer server;
  server.set_hook([](int, grpc::ServerContext*) {
    absl::SleepFor(absl::Milliseconds(20));
    return grpc::Status::OK;
  });
  // One call may be out at a time, ten are due within 10 ms: the last waits
  // for nine others, which its latency must show.
  LoadOptions options = Options(server);
  options.rate = 1000;
  options.poisson = false;
  options.max_outstanding = 1;
  options.max_calls = 10;
  const LoadReport report = Measure(ThreeItems(), options);
  EXPECT_EQ(report.ok, 10);
  EXPECT_GE(report.latency.max(), absl::Milliseconds(10 * 20 - 10));
  EXPECT_GE(report.start_lag.max(), absl::Milliseconds(9 * 20 - 10));
}

TEST(LoadGeneratorTest, CallsThatCouldNotStartInTimeAreReported) {
  FakeServer server;
  server.set_hook([](int, grpc::ServerContext*) {
    absl::SleepFor(absl::Milliseconds(100));
    return grpc::Status::OK;
  });
  LoadOptions options = Options(server);
  options.rate = 1000;
  options.poisson = false;
  options.max_outstanding = 1;
  options.duration = absl::Milliseconds(150);
  const LoadReport report = Measure(ThreeItems(), options);
  EXPECT_EQ(report.ok + report.not_started, 149);
  EXPECT_GT(report.not_started, 140);
}

TEST(LoadGeneratorTest, PoissonArrivalsRepeatWithTheSeed) {
  LoadOptions options;
  std::vector<int64_t> calls;
  for (int run = 0; run < 2; ++run) {
    FakeServer server;
    options = Options(server);
    options.rate = 500;
    options.seed = 42;
    calls.push_back(Measure(ThreeItems(), options).ok);
  }
  EXPECT_EQ(calls[0], calls[1]);
  EXPECT_GT(calls[0], 50);
  EXPECT_LT(calls[0], 200);
}

TEST(LoadGeneratorTest, TheWarmUpIsSentButNotMeasured) {
  FakeServer server;
  LoadOptions options = Options(server);
  options.callers = 1;
  options.warmup = absl::Milliseconds(100);
  options.max_calls = 5;
  const LoadReport report = Measure(ThreeItems(), options);
  EXPECT_EQ(report.ok, 5);
  EXPECT_GT(server.ranked().size(), 5u);
}

TEST(LoadGeneratorTest, LongCallsCountByTheirShareOfTheWindow) {
  FakeServer server;
  server.set_hook([](int, grpc::ServerContext*) {
    absl::SleepFor(absl::Milliseconds(120));
    return grpc::Status::OK;
  });
  LoadOptions options = Options(server);
  options.callers = 1;
  options.duration = absl::Milliseconds(300);
  const LoadReport report = Measure(ThreeItems(), options);
  // One at a time, of 120 ms at least: the last ends after the window does,
  // and is answered, but counts by the part before.
  EXPECT_LE(report.calls, 300.0 / 120);
  EXPECT_GT(report.ok, report.calls);
  EXPECT_EQ(report.window, absl::Milliseconds(300));
}

TEST(LoadGeneratorTest, AStopCancelsWhatIsInFlight) {
  FakeServer server;
  std::atomic<int> cancelled = 0;
  server.set_hook([&](int n, grpc::ServerContext* context) {
    if (n < 4) return grpc::Status::OK;
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    ++cancelled;
    return grpc::Status::CANCELLED;
  });
  LoadOptions options = Options(server);
  options.callers = 2;
  options.duration = absl::Hours(1);
  const LoadReport report = Measure(
      ThreeItems(), options, [&] { return server.ranked().size() >= 6; });
  EXPECT_EQ(report.ok, 4);
  EXPECT_TRUE(report.errors.empty());
  EXPECT_LT(report.window, absl::Hours(1));
}

TEST(LoadGeneratorTest, AStopEndsASlowOpenLoop) {
  FakeServer server;
  LoadOptions options = Options(server);
  options.rate = 0.001;
  options.duration = absl::Hours(1);
  int asked = 0;
  EXPECT_EQ(Measure(ThreeItems(), options, [&] { return ++asked > 2; }).ok, 0);
}

TEST(LoadGeneratorTest, NobodyThereIsUnavailable) {
  LoadOptions options;
  {
    FakeServer server;
    options = Options(server);
  }
  options.client.timeout = absl::Milliseconds(200);
  auto generator = NewLoadGenerator(ThreeItems(), options);
  ASSERT_TRUE(generator.ok());
  EXPECT_TRUE(absl::IsUnavailable(
      (*generator)->Run([] { return false; }, nullptr).status()));
}

TEST(LoadGeneratorTest, RefusesOptionsThatMakeNoSense) {
  LoadOptions options;
  options.callers = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(
      NewLoadGenerator(ThreeItems(), options).status()));
  options = LoadOptions();
  options.rate = -1;
  EXPECT_TRUE(absl::IsInvalidArgument(
      NewLoadGenerator(ThreeItems(), options).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(NewLoadGenerator({}, LoadOptions()).status()));
}

TEST(LoadGeneratorTest, UsesEveryConnection) {
  FakeServer server;
  Mutex mu;
  std::vector<std::string> peers;
  server.set_hook([&](int, grpc::ServerContext* context) {
    MutexLock lock(mu);
    peers.push_back(context->peer());
    return grpc::Status::OK;
  });
  LoadOptions options = Options(server);
  options.connections = 3;
  options.callers = 3;
  options.max_calls = 9;
  Measure(ThreeItems(), options);
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  EXPECT_EQ(peers.size(), 3u);
}

TEST(ItemsOfTest, CountsWhatARequestBrings) {
  EXPECT_EQ(ItemsOf(*ThreeItems()[0].message), 3);
  EXPECT_EQ(ItemsOf(*ParseRequest(R"({"texts":["a","b"],"items":[{}]})",
                                  *FindMethod("Embed"))
                         ->message),
            3);
  EXPECT_EQ(
      ItemsOf(*ParseRequest(R"({"history":[{},{}]})", *FindMethod("interests"))
                   ->message),
      1);
}

}  // namespace
}  // namespace vitrine
