// What the server refuses, how it holds its limits, and how it stops.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/server/server_fixture.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr grpc::StatusCode kInvalid = grpc::StatusCode::INVALID_ARGUMENT;

TEST_F(ServerTest, NamesTheHeadThatIsMissing) {
  std::vector<internal::Head> heads = testing::AllHeads();
  const auto without = [&heads](internal::HeadKind kind) {
    std::vector<internal::Head> out;
    for (const internal::Head& head : heads) {
      if (head.kind() != kind) out.push_back(head);
    }
    return out;
  };
  FakeModelOptions model;
  model.heads = without(internal::HEAD_KIND_RELEVANCE);
  Start("", model);
  const grpc::Status query = Refusal(RankOf("sofa", {"a"}));
  EXPECT_EQ(query.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(query.error_message(),
              AllOf(HasSubstr("no relevance head"), HasSubstr("interest")));
  v1::ScoreRequest history;
  *history.mutable_context()->add_history() = Event("a");
  *history.add_items() = Item("", "b");
  v1::ScoreResponse response;
  EXPECT_TRUE(Score(history, &response).ok());
}

TEST_F(ServerTest, RefusesBadRequestsAndNamesTheField) {
  Start(
      "limits { max_items: 10 max_history: 2 max_field_bytes: 100 "
      "max_attributes: 3 }");
  const v1::RankRequest good = RankOf("sofa", {"sofa"});
  std::vector<std::pair<v1::RankRequest, std::string>> cases;
  const auto add = [&](const std::string& text, auto change) {
    v1::RankRequest bad = good;
    change(bad);
    cases.emplace_back(std::move(bad), text);
  };
  add("items: at least one", [](auto& r) { r.clear_items(); });
  add("items: 11 > 10 (limits.max_items)", [](auto& r) {
    for (int i = 0; i < 10; ++i) *r.add_items() = Item("", "x");
  });
  add("context: a query, a history", [](auto& r) { r.clear_context(); });
  add("context.query: 101 bytes > 100 (limits.max_field_bytes)",
      [](auto& r) { r.mutable_context()->set_query(std::string(101, 'a')); });
  add("context.history: 3 > 2 (limits.max_history)", [](auto& r) {
    for (int i = 0; i < 3; ++i) {
      *r.mutable_context()->add_history() = Event("a");
    }
  });
  add("context.history[0].item.title: 200 bytes > 100", [](auto& r) {
    *r.mutable_context()->add_history() = Event(std::string(200, 'a'));
  });
  add("top_k: -1", [](auto& r) { r.set_top_k(-1); });
  add("personalization_weight: 1.5",
      [](auto& r) { r.set_personalization_weight(1.5); });
  add("personalization_weight: -0.5",
      [](auto& r) { r.set_personalization_weight(-0.5); });
  add("personalization_weight: nan", [](auto& r) {
    r.set_personalization_weight(std::numeric_limits<float>::quiet_NaN());
  });
  for (const auto& [request, text] : cases) {
    const grpc::Status status = Refusal(request);
    EXPECT_EQ(status.error_code(), kInvalid) << text;
    EXPECT_THAT(status.error_message(), HasSubstr(text));
  }
  EXPECT_THAT(engine_->batches(), IsEmpty());
  EXPECT_EQ(Counter(Method::kRank, absl::StatusCode::kInvalidArgument),
            cases.size());
}

TEST_F(ServerTest, OneBadItemNeverFailsTheCall) {
  Start("limits { max_field_bytes: 100 max_attributes: 3 }");
  v1::RankRequest request =
      RankOf("sofa", {"good", "long", "wide", "many", "empty", "also good"});
  request.mutable_items(1)->set_description(std::string(101, 'a'));
  for (int i = 0; i < 4; ++i) {
    request.mutable_items(2)->add_categories("c");
    (*request.mutable_items(3)->mutable_attributes())[absl::StrCat(i)] = "v";
  }
  request.mutable_items(4)->clear_title();
  v1::RankResponse response;
  ASSERT_TRUE(Rank(request, &response).ok());
  std::map<int, std::string> errors;
  for (const v1::ScoredItem& item : response.items()) {
    if (item.has_error()) {
      EXPECT_EQ(item.error().code(), kInvalid);
      errors[item.index()] = item.error().message();
    }
  }
  ASSERT_THAT(errors, SizeIs(4));
  EXPECT_THAT(errors[1], HasSubstr("items[1].description: 101 bytes > 100"));
  EXPECT_THAT(errors[2], HasSubstr("items[2].categories: 4 > 3"));
  EXPECT_THAT(errors[3], HasSubstr("items[3].attributes: 4 > 3"));
  EXPECT_THAT(errors[4], HasSubstr("items[4]"));
}

TEST_F(ServerTest, AnItemWithInvalidUtf8GetsAnErrorOfItsOwn) {
  Start();
  v1::RankRequest request = RankOf("sofa", {"good", "l@@g", "fine"});
  std::string bytes = request.SerializeAsString();
  bytes.replace(bytes.find("@@"), 2, "\xff\xfe");
  v1::RankResponse response;
  ASSERT_TRUE(Raw("Rank", bytes, &response).ok());
  ASSERT_EQ(response.items_size(), 3);
  const v1::ScoredItem& bad = response.items(2);
  EXPECT_EQ(bad.item_id(), "id1");
  EXPECT_EQ(bad.error().code(), kInvalid);
  EXPECT_EQ(bad.error().message(), "items[1].title: invalid UTF-8 at byte 1");

  v1::ClassifyRequest texts;
  texts.add_texts("@@");
  texts.add_texts("fine");
  bytes = texts.SerializeAsString();
  bytes.replace(bytes.find("@@"), 2, "\xff\xfe");
  v1::ClassifyResponse labels;
  ASSERT_TRUE(Raw("Classify", bytes, &labels).ok());
  EXPECT_EQ(labels.results(0).error().message(),
            "texts[0]: invalid UTF-8 at byte 0");
  EXPECT_EQ(labels.results(1).labels_size(), 2);
}

TEST_F(ServerTest, InvalidUtf8ElsewhereFailsTheCallAndNamesTheField) {
  Start();
  v1::RankRequest request = RankOf("so@@fa", {"good"});
  std::string bytes = request.SerializeAsString();
  bytes.replace(bytes.find("@@"), 2, "\xff\xfe");
  v1::RankResponse response;
  const grpc::Status status = Raw("Rank", bytes, &response);
  EXPECT_EQ(status.error_code(), kInvalid);
  EXPECT_EQ(status.error_message(), "context.query: invalid UTF-8 at byte 2");
}

TEST_F(ServerTest, RefusesBytesThatAreNoMessage) {
  Start();
  v1::RankResponse response;
  const grpc::Status status = Raw("Rank", "\xff\xff\xff\x01garbage", &response);
  EXPECT_EQ(status.error_code(), kInvalid);
  EXPECT_THAT(status.error_message(), HasSubstr("malformed message"));
}

TEST_F(ServerTest, RefusesMessagesAboveTheLimit) {
  Start("limits { max_message_bytes: 10000 }");
  EXPECT_EQ(Refusal(RankOf(std::string(20000, 'a'), {"x"})).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Refusal(RankOf("a", {"x"})).ok());
}

TEST_F(ServerTest, TakesRequestsInGzipWithinTheSameLimit) {
  Start("limits { max_message_bytes: 100000 }");
  for (const int size : {20000, 99000, 101000, 50000000}) {
    grpc::ClientContext context;
    context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    v1::RankRequest request = RankOf("sofa", {"good", "long"});
    request.mutable_items(1)->set_description(std::string(size, 'a'));
    v1::RankResponse response;
    const grpc::Status status = stub_->Rank(&context, request, &response);
    EXPECT_EQ(status.error_code(), size < 100000
                                       ? grpc::StatusCode::OK
                                       : grpc::StatusCode::RESOURCE_EXHAUSTED)
        << status.error_message();
    if (status.ok()) {
      EXPECT_EQ(response.items_size(), 2);
    } else {
      EXPECT_THAT(status.error_message(), HasSubstr("more than 100000 bytes"));
    }
  }
}

TEST_F(ServerTest, ScoresStayFiniteWhateverTheModelGives) {
  FakeModelOptions model;
  model.value = [](absl::Span<const int32_t> ids, int, int) {
    switch (ids.size() % 4) {
      case 0:
        return std::numeric_limits<float>::quiet_NaN();
      case 1:
        return 1e30f;
      case 2:
        return -1e30f;
      default:
        return std::numeric_limits<float>::infinity();
    }
  };
  Start("", model);
  v1::RankResponse response;
  ASSERT_TRUE(
      Rank(RankOf("q", {"a", "a b", "a b c", "a b c d"}), &response).ok());
  int errors = 0;
  for (const v1::ScoredItem& item : response.items()) {
    EXPECT_TRUE(item.score() >= 0 && item.score() <= 1);
    if (item.has_error()) {
      ++errors;
      EXPECT_EQ(item.error().code(), grpc::StatusCode::INTERNAL);
    }
  }
  EXPECT_EQ(errors, 2);
}

TEST_F(ServerTest, SendsRetryInfoWhenTheQueueIsFull) {
  Start(
      "batcher { max_batch_tokens: 10 max_queue_tokens: 20 "
      "short_call_tokens: -1 }");
  engine_->Hold();
  std::vector<std::thread> callers;
  for (int i = 0; i < 2; ++i) {
    callers.emplace_back([this] {
      v1::RankResponse response;
      EXPECT_TRUE(Rank(RankOf("q", {"sofa lamp"}), &response).ok());
    });
    // The queue has no room for both: the first must have left it.
    engine_->WaitForBatches(1);
  }
  // One runs, one waits.
  while (server_->metrics().batcher().queue_calls->Value() < 1) {
    std::this_thread::yield();
  }
  const grpc::Status status = Refusal(RankOf("q", ManyTitles(30)));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ASSERT_EQ(details.details_size(), 1);
  google::rpc::RetryInfo info;
  ASSERT_TRUE(details.details(0).UnpackTo(&info));
  EXPECT_GT(info.retry_delay().seconds() + info.retry_delay().nanos(), 0);
  EXPECT_EQ(server_->metrics().rejected(Rejection::kQueueFull).Value(), 1);
  engine_->Release();
  for (std::thread& caller : callers) caller.join();
}

TEST_F(ServerTest, RefusesMoreCallsAtOnceThanAllowed) {
  Start("limits { max_concurrent_calls: 1 }");
  engine_->Hold();
  std::thread caller([this] {
    v1::RankResponse response;
    EXPECT_TRUE(Rank(RankOf("q", {"sofa"}), &response).ok());
  });
  engine_->WaitForBatches(1);
  const grpc::Status status = Refusal(RankOf("q", {"lamp"}));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("limits.max_concurrent_calls"));
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.details_size(), 1);
  EXPECT_EQ(server_->metrics().rejected(Rejection::kTooManyCalls).Value(), 1);
  engine_->Release();
  caller.join();
  // Calls count for a moment longer: until the server knows that their answers
  // have left.
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (!Refusal(RankOf("q", {"lamp"})).ok() && absl::Now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_LT(absl::Now(), deadline);
}

TEST_F(ServerTest, DoesNotComputeForCallersThatGaveUp) {
  Start("batcher { max_queue_tokens: 20 short_call_tokens: -1 }");
  engine_->Hold();
  std::thread blocker([this] {
    v1::RankResponse response;
    EXPECT_TRUE(Rank(RankOf("q", {"blocker"}), &response).ok());
  });
  engine_->WaitForBatches(1);
  std::thread late([this] {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::seconds(1));
    v1::RankResponse response;
    EXPECT_EQ(stub_->Rank(&context, RankOf("q", {"a"}), &response).error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
  });
  grpc::ClientContext context;
  std::thread cancelled([this, &context] {
    v1::RankResponse response;
    EXPECT_EQ(stub_->Rank(&context, RankOf("q", {"b"}), &response).error_code(),
              grpc::StatusCode::CANCELLED);
  });
  while (server_->metrics().batcher().queue_calls->Value() < 2) {
    std::this_thread::yield();
  }
  context.TryCancel();
  cancelled.join();
  late.join();
  // They leave the queue as soon as somebody needs the room.
  std::thread needy([this] {
    grpc::Status status;
    do {
      status = Refusal(RankOf("q", ManyTitles(30)));
    } while (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_TRUE(status.ok());
  });
  while (Counter(Method::kRank, absl::StatusCode::kCancelled) +
             Counter(Method::kRank, absl::StatusCode::kDeadlineExceeded) <
         2) {
    std::this_thread::yield();
  }
  engine_->Release();
  blocker.join();
  needy.join();
  int sequences = 0;
  for (const Batch& batch : engine_->batches()) sequences += batch.sequences();
  EXPECT_EQ(sequences, 1 + 30);
}

TEST_F(ServerTest, GivesCallsWithoutADeadlineTheDefaultOne) {
  Start(
      "limits { default_deadline { nanos: 50000000 } } "
      "batcher { short_call_tokens: -1 }");
  engine_->Hold();
  std::thread blocker([this] {
    v1::RankResponse response;
    (void)Rank(RankOf("q", {"blocker"}), &response);
  });
  engine_->WaitForBatches(1);
  grpc::Status status;
  std::thread waiting(
      [this, &status] { status = Refusal(RankOf("q", {"waits"})); });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  engine_->Release();
  blocker.join();
  waiting.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(ServerTest, TimingsAddUp) {
  Start();
  v1::RankResponse response;
  ASSERT_TRUE(Rank(RankOf("q", ManyTitles(200)), &response).ok());
  const v1::Timings& timings = response.timings();
  const auto seconds = [](const google::protobuf::Duration& d) {
    return d.seconds() + d.nanos() * 1e-9;
  };
  EXPECT_GT(seconds(timings.tokenize()), 0);
  EXPECT_GT(seconds(timings.compute()), 0);
  EXPECT_GE(seconds(timings.total()) + 1e-6, seconds(timings.queue()) +
                                                 seconds(timings.tokenize()) +
                                                 seconds(timings.compute()));
}

TEST_F(ServerTest, AnswersWithTheVersionItBeganWithWhileAnotherSwapsIn) {
  Start();
  FakeEngine* const old_engine = engine_;
  old_engine->Hold();
  v1::RankResponse before;
  std::thread caller([this, &before] {
    EXPECT_TRUE(Rank(RankOf("q", {"sofa"}), &before).ok());
  });
  old_engine->WaitForBatches(1);
  ASSERT_TRUE(MakeFolders(registry_.File("shop/2")).ok());
  ASSERT_TRUE(WriteFile(registry_.File("shop/2/manifest.textproto"), "").ok());
  ASSERT_TRUE(WriteFile(registry_.File("shop/CURRENT"), "2\n").ok());
  server_->models().PollOnce();
  v1::ModelSpec two;
  two.set_version("2");
  EXPECT_TRUE(server_->models().Pin(two).ok());
  old_engine->Release();
  caller.join();
  EXPECT_EQ(before.model().version(), "1");
  v1::RankResponse after;
  ASSERT_TRUE(Rank(RankOf("q", {"sofa"}), &after).ok());
  EXPECT_EQ(after.model().version(), "2");
  v1::RankRequest old = RankOf("q", {"sofa"});
  old.mutable_model()->set_version("1");
  const grpc::Status status = Refusal(old);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("shop/2"));
}

TEST_F(ServerTest, StopLetsCallsInFlightEnd) {
  Start();
  engine_->Hold();
  grpc::Status status = grpc::Status::CANCELLED;
  std::thread caller(
      [this, &status] { status = Refusal(RankOf("q", {"sofa"})); });
  engine_->WaitForBatches(1);
  std::thread stopper([this] { server_->Stop(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  engine_->Release();
  stopper.join();
  caller.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(Refusal(RankOf("q", {"sofa"})).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, StopCancelsWhatOutlastsTheDrainTimeout) {
  Start("drain_timeout { nanos: 50000000 }");
  engine_->Hold();
  std::thread running([this] { (void)Refusal(RankOf("q", {"runs"})); });
  engine_->WaitForBatches(1);
  grpc::Status status;
  std::thread waiting(
      [this, &status] { status = Refusal(RankOf("q", {"waits"})); });
  while (server_->metrics().calls_in_flight().Value() < 2) {
    std::this_thread::yield();
  }
  std::thread stopper([this] { server_->Stop(); });
  waiting.join();
  EXPECT_FALSE(status.ok());
  engine_->Release();
  stopper.join();
  running.join();
  EXPECT_EQ(server_->metrics().calls_in_flight().Value(), 0);
}

TEST_F(ServerTest, AnEngineErrorIsTheServersFault) {
  Start();
  engine_->FailWhere(
      [](const Batch&) { return absl::InvalidArgumentError("id 5 > 4"); });
  const grpc::Status status = Refusal(RankOf("q", {"sofa"}));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), HasSubstr("id 5 > 4"));
}

TEST_F(ServerTest, RefusesAnAddressInUse) {
  Start();
  internal::ServerConfig config;
  config.set_registry(registry_.path());
  config.set_listen(absl::StrCat("127.0.0.1:", server_->port()));
  config.set_metrics_listen("off");
  ASSERT_TRUE(ResolveServerConfig(&config).ok());
  const auto other = Server::Start({.config = config});
  EXPECT_TRUE(absl::IsFailedPrecondition(other.status()));
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("in use"));
  config.set_listen("127.0.0.1:0");
  config.set_metrics_listen(
      absl::StrCat("127.0.0.1:", server_->metrics_port()));
  const auto metrics = Server::Start({.config = config});
  EXPECT_TRUE(absl::IsFailedPrecondition(metrics.status()));
  EXPECT_THAT(std::string(metrics.status().message()), HasSubstr("in use"));
}

}  // namespace
}  // namespace vitrine
