#include "server/batcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <latch>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "google/rpc/error_details.pb.h"
#include "tests/testing/fake_engine.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kRetryInfo[] = "type.googleapis.com/google.rpc.RetryInfo";

class FakeClock {
 public:
  std::function<absl::Time()> function() {
    return [this] { return absl::FromUnixMicros(micros_); };
  }
  absl::Time now() const { return absl::FromUnixMicros(micros_); }
  void Advance(absl::Duration d) { micros_ += absl::ToInt64Microseconds(d); }

 private:
  std::atomic<int64_t> micros_{1000000000};
};

// What came of one call; waits for it.
class Result {
 public:
  Batcher::Done done() {
    return [this](absl::StatusOr<EngineResult> result) {
      MutexLock lock(mu_);
      EXPECT_FALSE(set_) << "called back twice";
      result_ = std::move(result);
      set_ = true;
      changed_.NotifyAll();
    };
  }
  bool ready() {
    MutexLock lock(mu_);
    return set_;
  }
  absl::StatusOr<EngineResult>& Wait() {
    MutexLock lock(mu_);
    while (!set_) changed_.Wait(mu_);
    return result_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool set_ = false;
  absl::StatusOr<EngineResult> result_;
};

Encoding Sequence(int length, int id) {
  Encoding out;
  out.ids.assign(length, id);
  out.segment_ids.assign(length, 0);
  return out;
}

// `count` sequences of `length` tokens, all of `id`, for head 0.
EngineCall Call(std::shared_ptr<const Engine> engine, int count, int length,
                int id) {
  EngineCall call;
  call.engine = std::move(engine);
  for (int i = 0; i < count; ++i) {
    call.sequences.push_back(Sequence(length, id));
    call.heads.push_back(1);
  }
  return call;
}

// How many sequences of a batch begin with `id`.
int CountId(const Batch& batch, int id) {
  int count = 0;
  for (int s = 0; s < batch.sequences(); ++s) {
    if (batch.ids[batch.offsets[s]] == id) ++count;
  }
  return count;
}

class BatcherTest : public ::testing::Test {
 protected:
  BatcherOptions Options() {
    BatcherOptions options;
    options.max_batch_tokens = 100;
    options.max_queue_tokens = 100000;
    options.now = clock_.function();
    return options;
  }

  // Occupies the batcher's thread with a one-token batch until Release.
  void Block(Batcher& batcher) {
    engine_->Hold();
    const size_t before = engine_->batches().size();
    ASSERT_TRUE(batcher.Submit(Call(engine_, 1, 1, 99), blocker_.done()).ok());
    engine_->WaitForBatches(before + 1);
  }

  FakeClock clock_;
  Result blocker_;
  std::shared_ptr<FakeEngine> engine_ =
      std::make_shared<FakeEngine>(std::vector<int>{1, 2});
};

TEST_F(BatcherTest, GivesEachSequenceItsOwnOutputsInTheCallsOrder) {
  Batcher batcher(Options());
  EngineCall call;
  call.engine = engine_;
  for (const int length : {30, 2, 70, 2, 55}) {
    call.sequences.push_back(Sequence(length, length));
    call.heads.push_back(length == 70 ? 3 : length == 55 ? 2 : 1);
  }
  Result result;
  ASSERT_TRUE(batcher.Submit(std::move(call), result.done()).ok());
  ASSERT_TRUE(result.Wait().ok());
  const Outputs& outputs = result.Wait()->outputs;
  EXPECT_THAT(outputs.Of(0), ElementsAre(900));
  EXPECT_THAT(outputs.Of(1), ElementsAre(4));
  EXPECT_THAT(outputs.Of(2), ElementsAre(4900, 5900, 6000));
  EXPECT_THAT(outputs.Of(3), ElementsAre(4));
  EXPECT_THAT(outputs.Of(4), ElementsAre(4025, 4125));
}

TEST_F(BatcherTest, KeepsBatchesUnderTheTokenBudget) {
  Batcher batcher(Options());
  Block(batcher);
  Result result;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 50, 30, 1), result.done()).ok());
  engine_->Release();
  ASSERT_TRUE(result.Wait().ok());
  const std::vector<Batch> batches = engine_->batches();
  for (const Batch& batch : batches) EXPECT_LE(batch.tokens(), 100);
  // Three of 30 fit: 17 batches beside the blocker's.
  EXPECT_EQ(batches.size(), 1 + 17);
}

TEST_F(BatcherTest, RunsASequenceLongerThanTheBudgetAlone) {
  Batcher batcher(Options());
  Block(batcher);
  Result small, large;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1, 10, 1), small.done()).ok());
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1, 500, 2), large.done()).ok());
  engine_->Release();
  EXPECT_TRUE(small.Wait().ok());
  EXPECT_TRUE(large.Wait().ok());
  const std::vector<Batch> batches = engine_->batches();
  ASSERT_EQ(batches.size(), 3);
  EXPECT_EQ(batches[2].sequences(), 1);
}

TEST_F(BatcherTest, ServesOneItemInTheNextBatchDespiteAThousandWaiting) {
  Batcher batcher(Options());
  Block(batcher);
  Result large, small;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1000, 10, 1), large.done()).ok());
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1, 10, 2), small.done()).ok());
  engine_->Release();
  ASSERT_TRUE(small.Wait().ok());
  ASSERT_TRUE(large.Wait().ok());
  const std::vector<Batch> batches = engine_->batches();
  EXPECT_EQ(CountId(batches[1], 2), 1);
  // And the rest of that batch is not wasted.
  EXPECT_EQ(batches[1].tokens(), 100);
}

TEST_F(BatcherTest, RunsAShortCallBesideTheBatchThatRuns) {
  BatcherOptions options = Options();
  options.max_short_tokens = 30;
  Batcher batcher(options);
  engine_->Hold();
  Result large, larger, small;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1000, 10, 1), large.done()).ok());
  engine_->WaitForBatches(1);
  ASSERT_TRUE(batcher.Submit(Call(engine_, 4, 10, 2), larger.done()).ok());
  ASSERT_TRUE(batcher.Submit(Call(engine_, 3, 10, 3), small.done()).ok());
  // The first batch is still held.
  engine_->WaitForBatches(2);
  const Batch beside = engine_->batches()[1];
  EXPECT_EQ(CountId(beside, 3), 3);
  EXPECT_EQ(beside.sequences(), 3) << "nothing of the longer ones";
  engine_->Release();
  for (Result* result : {&large, &larger, &small}) {
    ASSERT_TRUE(result->Wait().ok());
  }
  EXPECT_THAT(small.Wait()->outputs.Of(2), ElementsAre(30));
}

// Holds back the one batch that begins with id 1, and nothing else.
class GateEngine : public FakeEngine {
 public:
  using FakeEngine::FakeEngine;
  absl::StatusOr<Outputs> Run(const Batch& batch) const override {
    if (batch.ids[0] == 1) {
      entered.count_down();
      leave.wait();
    }
    return FakeEngine::Run(batch);
  }
  mutable std::latch entered{1}, leave{1};
};

TEST_F(BatcherTest, ShortCallsBesideABatchShareBatchesOfFewTokens) {
  const auto engine = std::make_shared<GateEngine>(std::vector<int>{1});
  BatcherOptions options = Options();
  options.max_short_tokens = 30;
  Batcher batcher(options);
  Result large;
  ASSERT_TRUE(batcher.Submit(Call(engine, 1, 1000, 1), large.done()).ok());
  engine->entered.wait();
  std::vector<std::unique_ptr<Result>> results;
  for (int i = 0; i < 10; ++i) {
    results.push_back(std::make_unique<Result>());
    ASSERT_TRUE(
        batcher.Submit(Call(engine, 1, 12, 2), results.back()->done()).ok());
  }
  for (auto& result : results) ASSERT_TRUE(result->Wait().ok());
  EXPECT_FALSE(large.ready());
  int sequences = 0;
  for (const Batch& batch : engine->batches()) {
    EXPECT_LE(batch.tokens(), 30);
    sequences += batch.sequences();
  }
  EXPECT_EQ(sequences, 10);
  engine->leave.count_down();
  EXPECT_TRUE(large.Wait().ok());
}

TEST_F(BatcherTest, LargeBatchesHoldOnlyTheShortCallsThatMakeMoreThanABatch) {
  const auto engine = std::make_shared<GateEngine>(std::vector<int>{1});
  BatcherOptions options = Options();
  options.max_short_tokens = 30;
  Batcher batcher(options);
  Result large, running, next, after, excess;
  engine->Hold();
  ASSERT_TRUE(batcher.Submit(Call(engine, 50, 10, 2), large.done()).ok());
  engine->WaitForBatches(1);
  ASSERT_TRUE(batcher.Submit(Call(engine, 1, 12, 1), running.done()).ok());
  engine->entered.wait();
  // Their thread is busy. Of these the first two are left to it.
  ASSERT_TRUE(batcher.Submit(Call(engine, 1, 12, 3), next.done()).ok());
  ASSERT_TRUE(batcher.Submit(Call(engine, 1, 12, 3), after.done()).ok());
  ASSERT_TRUE(batcher.Submit(Call(engine, 1, 12, 4), excess.done()).ok());
  engine->Release();
  ASSERT_TRUE(large.Wait().ok());
  ASSERT_TRUE(excess.Wait().ok());
  engine->leave.count_down();
  for (Result* result : {&running, &next, &after}) {
    ASSERT_TRUE(result->Wait().ok());
  }
  for (const Batch& batch : engine->batches()) {
    if (CountId(batch, 3) > 0) EXPECT_EQ(CountId(batch, 2), 0);
  }
  EXPECT_EQ(CountId(engine->batches()[1], 4), 1);
}

TEST_F(BatcherTest, ShortCallsWaitTheirTurnOnADeviceThatIsNoCpu) {
  class CudaEngine : public FakeEngine {
   public:
    using FakeEngine::FakeEngine;
    std::string device() const override { return "cuda"; }
  };
  engine_ = std::make_shared<CudaEngine>(std::vector<int>{1});
  BatcherOptions options = Options();
  options.max_short_tokens = 30;
  Batcher batcher(options);
  Block(batcher);
  Result large, small;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1000, 10, 1), large.done()).ok());
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1, 10, 2), small.done()).ok());
  engine_->Release();
  ASSERT_TRUE(small.Wait().ok());
  ASSERT_TRUE(large.Wait().ok());
  const Batch next = engine_->batches()[1];
  EXPECT_EQ(CountId(next, 2), 1);
  EXPECT_EQ(next.tokens(), 100) << "with others";
}

TEST_F(BatcherTest, SharesABatchByTokensNotBySequences) {
  Batcher batcher(Options());
  Block(batcher);
  Result longs, shorts;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 100, 25, 1), longs.done()).ok());
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1000, 5, 2), shorts.done()).ok());
  engine_->Release();
  ASSERT_TRUE(longs.Wait().ok());
  ASSERT_TRUE(shorts.Wait().ok());
  const std::vector<Batch> batches = engine_->batches();
  int of_longs = 0, of_shorts = 0;
  for (size_t b = 1; b <= 20; ++b) {
    of_longs += 25 * CountId(batches[b], 1);
    of_shorts += 5 * CountId(batches[b], 2);
  }
  EXPECT_NEAR(of_longs, 1000, 50);
  EXPECT_NEAR(of_shorts, 1000, 50);
}

TEST_F(BatcherTest, LetsEveryoneThroughWithinOneTurnWhenManyWait) {
  Batcher batcher(Options());
  Block(batcher);
  std::vector<std::unique_ptr<Result>> results;
  for (int i = 0; i < 30; ++i) {
    results.push_back(std::make_unique<Result>());
    ASSERT_TRUE(batcher
                    .Submit(Call(engine_, i == 29 ? 1 : 20, 10, i),
                            results.back()->done())
                    .ok());
  }
  engine_->Release();
  for (auto& result : results) ASSERT_TRUE(result->Wait().ok());
  // 30 calls of 10 tokens each: three batches of 100 reach them all.
  std::set<int> served;
  const std::vector<Batch> batches = engine_->batches();
  for (size_t b = 1; b <= 3; ++b) {
    for (int s = 0; s < batches[b].sequences(); ++s) {
      served.insert(batches[b].ids[batches[b].offsets[s]]);
    }
  }
  EXPECT_EQ(served.size(), 30);
}

TEST_F(BatcherTest, TakesSequencesOfLikeLengthTogether) {
  Batcher batcher(Options());
  Block(batcher);
  Result one, two;
  for (Result* result : {&one, &two}) {
    EngineCall call;
    call.engine = engine_;
    for (int i = 0; i < 20; ++i) {
      call.sequences.push_back(Sequence(i % 2 == 0 ? 5 : 25, 1));
      call.heads.push_back(1);
    }
    ASSERT_TRUE(batcher.Submit(std::move(call), result->done()).ok());
  }
  engine_->Release();
  ASSERT_TRUE(one.Wait().ok());
  ASSERT_TRUE(two.Wait().ok());
  // 20 of 25 tokens, 20 of 5: 5 batches of one kind, 1 of the other.
  const std::vector<Batch> batches = engine_->batches();
  ASSERT_EQ(batches.size(), 1 + 6);
  for (size_t b = 1; b <= 5; ++b) EXPECT_EQ(batches[b].sequences(), 4);
  EXPECT_EQ(batches[6].sequences(), 20);
}

TEST_F(BatcherTest, NeverMixesVersions) {
  const auto other = std::make_shared<FakeEngine>(std::vector<int>{1});
  Batcher batcher(Options());
  Block(batcher);
  Result a, b;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 40, 10, 1), a.done()).ok());
  ASSERT_TRUE(batcher.Submit(Call(other, 40, 10, 2), b.done()).ok());
  engine_->Release();
  ASSERT_TRUE(a.Wait().ok());
  ASSERT_TRUE(b.Wait().ok());
  for (const Batch& batch : engine_->batches()) {
    EXPECT_EQ(CountId(batch, 2), 0);
  }
  for (const Batch& batch : other->batches()) {
    EXPECT_EQ(CountId(batch, 1), 0);
  }
  EXPECT_EQ(other->batches().size(), 4);
}

TEST_F(BatcherTest, DropsCallsWhoseDeadlinePassedBeforeTheyRan) {
  Batcher batcher(Options());
  Block(batcher);
  Result late, in_time;
  EngineCall call = Call(engine_, 5, 10, 1);
  call.deadline = clock_.now() + absl::Seconds(1);
  ASSERT_TRUE(batcher.Submit(std::move(call), late.done()).ok());
  EngineCall other = Call(engine_, 5, 10, 2);
  other.deadline = clock_.now() + absl::Seconds(3);
  ASSERT_TRUE(batcher.Submit(std::move(other), in_time.done()).ok());
  clock_.Advance(absl::Seconds(2));
  engine_->Release();
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.Wait().status()));
  EXPECT_TRUE(in_time.Wait().ok());
  for (const Batch& batch : engine_->batches()) {
    EXPECT_EQ(CountId(batch, 1), 0) << "compute for nobody";
  }
  EXPECT_EQ(batcher.queued_tokens(), 0);
}

TEST_F(BatcherTest, DropsCancelledCallsBeforeTheyRun) {
  Batcher batcher(Options());
  Block(batcher);
  Result result;
  const auto cancelled = std::make_shared<std::atomic<bool>>(false);
  EngineCall call = Call(engine_, 5, 10, 1);
  call.cancelled = cancelled;
  ASSERT_TRUE(batcher.Submit(std::move(call), result.done()).ok());
  *cancelled = true;
  engine_->Release();
  EXPECT_TRUE(absl::IsCancelled(result.Wait().status()));
  for (const Batch& batch : engine_->batches()) {
    EXPECT_EQ(CountId(batch, 1), 0);
  }
}

TEST_F(BatcherTest, StopsWorkingForACallCancelledHalfWay) {
  Batcher batcher(Options());
  Result result;
  const auto cancelled = std::make_shared<std::atomic<bool>>(false);
  EngineCall call = Call(engine_, 100, 10, 1);
  call.cancelled = cancelled;
  engine_->Hold();
  ASSERT_TRUE(batcher.Submit(std::move(call), result.done()).ok());
  engine_->WaitForBatches(1);
  *cancelled = true;
  engine_->Release();
  EXPECT_TRUE(absl::IsCancelled(result.Wait().status()));
  EXPECT_EQ(engine_->batches().size(), 1);
}

TEST_F(BatcherTest, RefusesWhatTheQueueHasNoRoomForAndSaysWhenToRetry) {
  BatcherOptions options = Options();
  options.max_queue_tokens = 100;
  Batcher batcher(options);
  Block(batcher);
  Result first, refused;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 9, 10, 1), first.done()).ok());
  const absl::Status status =
      batcher.Submit(Call(engine_, 2, 10, 2), refused.done());
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("90 tokens wait, 20 more would exceed 100"));
  google::rpc::RetryInfo info;
  ASSERT_TRUE(status.GetPayload(kRetryInfo).has_value());
  ASSERT_TRUE(
      info.ParseFromString(std::string(*status.GetPayload(kRetryInfo))));
  EXPECT_GT(
      info.retry_delay().seconds() * 1000000000LL + info.retry_delay().nanos(),
      0);
  engine_->Release();
  EXPECT_TRUE(first.Wait().ok());
  EXPECT_FALSE(refused.ready());
  ASSERT_TRUE(batcher.Submit(Call(engine_, 2, 10, 2), refused.done()).ok());
  EXPECT_TRUE(refused.Wait().ok());
}

TEST_F(BatcherTest, CallsThatGaveUpMakeRoomAtOnce) {
  BatcherOptions options = Options();
  options.max_queue_tokens = 100;
  Batcher batcher(options);
  Block(batcher);
  Result dead, next;
  const auto cancelled = std::make_shared<std::atomic<bool>>(false);
  EngineCall call = Call(engine_, 10, 10, 1);
  call.cancelled = cancelled;
  ASSERT_TRUE(batcher.Submit(std::move(call), dead.done()).ok());
  EXPECT_FALSE(batcher.Submit(Call(engine_, 1, 10, 2), next.done()).ok());
  *cancelled = true;
  EXPECT_TRUE(batcher.Submit(Call(engine_, 1, 10, 2), next.done()).ok());
  EXPECT_TRUE(absl::IsCancelled(dead.Wait().status()));
  engine_->Release();
  EXPECT_TRUE(next.Wait().ok());
}

TEST_F(BatcherTest, EstimatesTheRetryDelayFromTheRateItMeasured) {
  BatcherOptions options = Options();
  options.max_queue_tokens = 1000;
  // A batch of 100 tokens takes a second.
  Batcher batcher(options);
  Block(batcher);
  Result warm, waiting, refused;
  clock_.Advance(absl::Milliseconds(10));  // 1 token: 100 a second
  engine_->Release();
  ASSERT_TRUE(blocker_.Wait().ok());
  engine_->Hold();
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1, 100, 1), warm.done()).ok());
  engine_->WaitForBatches(2);
  ASSERT_TRUE(batcher.Submit(Call(engine_, 10, 100, 1), waiting.done()).ok());
  const absl::Status status =
      batcher.Submit(Call(engine_, 2, 100, 1), refused.done());
  google::rpc::RetryInfo info;
  ASSERT_TRUE(status.GetPayload(kRetryInfo).has_value());
  ASSERT_TRUE(
      info.ParseFromString(std::string(*status.GetPayload(kRetryInfo))));
  // 200 tokens have to go first.
  EXPECT_EQ(info.retry_delay().seconds(), 2);
  engine_->Release();
  EXPECT_TRUE(waiting.Wait().ok());
}

TEST_F(BatcherTest, AdmitsACallLargerThanTheQueueWhenNothingWaits) {
  BatcherOptions options = Options();
  options.max_queue_tokens = 100;
  Batcher batcher(options);
  Result result;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 500, 10, 1), result.done()).ok());
  EXPECT_TRUE(result.Wait().ok());
}

TEST_F(BatcherTest, OneCallsBadSequenceDoesNotFailItsNeighbours) {
  engine_->FailWhere([](const Batch& batch) {
    return CountId(batch, 13) > 0 ? absl::InvalidArgumentError("id 13")
                                  : absl::OkStatus();
  });
  Batcher batcher(Options());
  Block(batcher);
  Result good, bad;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 3, 10, 1), good.done()).ok());
  ASSERT_TRUE(batcher.Submit(Call(engine_, 30, 10, 13), bad.done()).ok());
  engine_->Release();
  EXPECT_TRUE(good.Wait().ok());
  EXPECT_THAT(good.Wait()->outputs.Of(2), ElementsAre(10));
  EXPECT_TRUE(absl::IsInvalidArgument(bad.Wait().status()));
  EXPECT_EQ(batcher.queued_tokens(), 0);
}

TEST_F(BatcherTest, TellsWaitingFromComputing) {
  Batcher batcher(Options());
  Block(batcher);
  Result result;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 1, 10, 1), result.done()).ok());
  clock_.Advance(absl::Milliseconds(30));
  // The engine is let go batch by batch.
  engine_->Release();
  ASSERT_TRUE(result.Wait().ok());
  EXPECT_EQ(result.Wait()->queue, absl::Milliseconds(30));
  EXPECT_EQ(result.Wait()->compute, absl::ZeroDuration());
  EXPECT_EQ(blocker_.Wait()->queue, absl::ZeroDuration());
  EXPECT_EQ(blocker_.Wait()->compute, absl::Milliseconds(30));
}

TEST_F(BatcherTest, StopFailsWhatWaitsAndFinishesWhatRuns) {
  Batcher batcher(Options());
  Block(batcher);
  Result waiting;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 5, 10, 1), waiting.done()).ok());
  std::thread stopper([&batcher] { batcher.Stop(absl::InfinitePast()); });
  EXPECT_TRUE(absl::IsUnavailable(waiting.Wait().status()));
  EXPECT_FALSE(blocker_.ready());
  engine_->Release();
  stopper.join();
  EXPECT_TRUE(blocker_.Wait().ok());
  Result late;
  EXPECT_TRUE(
      absl::IsUnavailable(batcher.Submit(Call(engine_, 1, 1, 1), late.done())));
}

TEST_F(BatcherTest, StopDrainsTheQueueWithinItsLimit) {
  Batcher batcher(Options());
  Block(batcher);
  Result waiting;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 50, 10, 1), waiting.done()).ok());
  std::thread stopper(
      [this, &batcher] { batcher.Stop(clock_.now() + absl::Seconds(5)); });
  engine_->Release();
  EXPECT_TRUE(waiting.Wait().ok());
  stopper.join();
}

TEST_F(BatcherTest, StopGivesUpDrainingAtItsLimit) {
  Batcher batcher(Options());
  Block(batcher);
  Result waiting;
  ASSERT_TRUE(batcher.Submit(Call(engine_, 50, 10, 1), waiting.done()).ok());
  std::thread stopper(
      [this, &batcher] { batcher.Stop(clock_.now() + absl::Seconds(5)); });
  // The stopper may take its limit from the clock before or after this.
  clock_.Advance(absl::Seconds(6));
  clock_.Advance(absl::Seconds(6));
  while (!waiting.ready()) clock_.Advance(absl::Seconds(6));
  EXPECT_TRUE(absl::IsUnavailable(waiting.Wait().status()));
  engine_->Release();
  stopper.join();
}

TEST_F(BatcherTest, RefusesCallsWithoutSequences) {
  Batcher batcher(Options());
  Result result;
  EXPECT_FALSE(batcher.Submit(Call(engine_, 0, 1, 1), result.done()).ok());
  EXPECT_FALSE(batcher.Submit(Call(engine_, 1, 0, 1), result.done()).ok());
}

TEST_F(BatcherTest, KeepsAVersionAliveOnlyAsLongAsItsCalls) {
  Batcher batcher(Options());
  auto engine = std::make_shared<FakeEngine>(std::vector<int>{1});
  const std::weak_ptr<FakeEngine> weak = engine;
  Result result;
  ASSERT_TRUE(batcher.Submit(Call(engine, 1, 1, 1), result.done()).ok());
  engine.reset();
  ASSERT_TRUE(result.Wait().ok());
  batcher.Stop(absl::InfinitePast());
  EXPECT_TRUE(weak.expired());
}

TEST_F(BatcherTest, AnswersEveryCallOnceFromManyThreads) {
  BatcherOptions options = Options();
  options.threads = 2;
  options.max_short_tokens = 40;
  options.now = &absl::Now;
  options.max_queue_tokens = 2000;
  const auto other = std::make_shared<FakeEngine>(std::vector<int>{1, 2});
  std::atomic<int> answered{0}, refused{0}, wrong{0};
  {
    Batcher batcher(options);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 100; ++i) {
          const int count = 1 + (i * 7 + t) % 13;
          const int length = 1 + (i + t) % 20;
          EngineCall call =
              Call(i % 3 == 0 ? other : engine_, count, length, t + 1);
          auto cancelled = std::make_shared<std::atomic<bool>>(i % 5 == 0);
          call.cancelled = cancelled;
          const float sum = static_cast<float>(length * (t + 1));
          const absl::Status status = batcher.Submit(
              std::move(call),
              [&, count, sum](absl::StatusOr<EngineResult> result) {
                ++answered;
                if (!result.ok()) {
                  wrong += absl::IsCancelled(result.status()) ? 0 : 1;
                  return;
                }
                for (int s = 0; s < count; ++s) {
                  wrong += result->outputs.Of(s)[0] == sum ? 0 : 1;
                }
              });
          if (!status.ok()) ++refused;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    batcher.Stop(absl::InfiniteFuture());
  }
  EXPECT_EQ(answered + refused, 400);
  EXPECT_GT(answered, 0);
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace vitrine
