#pragma once

// Turns the sequences of many calls into batches for engines.
//
// Waiting calls take turns. Each gets an equal share of a batch's tokens
// (deficit round robin), so that one item never waits for another call's
// thousand. A batch holds sequences of one engine, that is of one version, and
// within the shares the sequences nearest in length are taken, since engines
// bucket by length.
//
// A batch that is large enough to be run well takes many times as long as one
// item, and an engine is not to be interrupted. So a call of few tokens that
// finds all threads busy does not wait for one: a thread of its own runs it
// beside them, and the system, which favours whoever slept, shares the cores
// out. Several such calls make one batch, of few tokens again, and one such
// batch runs at a time: however many there are, the others' batches go on.
//
// Owned by the server. Any thread may call Submit; the batcher's own threads
// form batches, run engines and call back, with no lock held.

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "model/engine.h"

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace vitrine {

// What a batcher counts. Any may be null; all outlive the batcher.
struct BatcherMetrics {
  prometheus::Histogram* batch_tokens = nullptr;
  prometheus::Histogram* batch_sequences = nullptr;
  prometheus::Histogram* batch_seconds = nullptr;
  prometheus::Histogram* padding_share = nullptr;
  prometheus::Gauge* queue_tokens = nullptr;
  prometheus::Gauge* queue_calls = nullptr;
};

struct BatcherOptions {
  // Tokens in one batch; 0: 16384 for engines on CUDA, 2048 for others. A
  // longer sequence makes a batch of its own.
  int max_batch_tokens = 0;
  // Tokens waiting, all calls together.
  int64_t max_queue_tokens = 262144;
  int threads = 1;
  // The most tokens of a call that is run beside the batches, and of a batch of
  // such calls. On a CPU only: elsewhere batches are short, and do not share.
  // 0: none.
  int max_short_tokens = 0;
  std::function<absl::Time()> now = &absl::Now;
  BatcherMetrics metrics;
};

// All that one call wants from an engine.
struct EngineCall {
  // Keeps the version alive; see ServableModel.
  std::shared_ptr<const Engine> engine;
  std::vector<Encoding> sequences;  // at least one; none empty
  std::vector<HeadMask> heads;      // one per sequence, nonzero
  absl::Time deadline = absl::InfiniteFuture();
  // Set from outside when nobody waits any more. May be null.
  std::shared_ptr<const std::atomic<bool>> cancelled;
};

struct EngineResult {
  // As Engine::Run would have given them for the call's sequences, in order.
  Outputs outputs;
  // Time in which none and in which at least one of the sequences was being
  // run; their sum is the time from Submit to the end.
  absl::Duration queue;
  absl::Duration compute;
};

class Batcher {
 public:
  using Done = absl::AnyInvocable<void(absl::StatusOr<EngineResult>)>;

  explicit Batcher(BatcherOptions options);
  // As Stop(InfinitePast()).
  ~Batcher();
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // OK: `done` will be called exactly once, from a batch thread, from Stop or,
  // where a dead call makes room, from another's Submit:
  // with the outputs, kDeadlineExceeded or kCancelled for a call that lost its
  // caller before its last sequence was run, kUnavailable after Stop, or the
  // engine's error. Not OK, and `done` is dropped uncalled: kResourceExhausted
  // with a RetryInfo payload when the queue is full (an empty queue takes any
  // call, however large), kUnavailable after Stop.
  absl::Status Submit(EngineCall call, Done done);

  // Takes no more calls, goes on with those waiting until `drain_until`, then
  // fails what is left and joins. Later calls do nothing.
  void Stop(absl::Time drain_until);

  int64_t queued_tokens() const;

  // The lengths of the sequences of the last batches, at most kRecentShapes.
  std::vector<std::vector<int>> RecentShapes() const;
  static constexpr int kRecentShapes = 8;

 private:
  struct Waiting;
  using WaitingPtr = std::shared_ptr<Waiting>;
  // What goes into one batch, and whose it is.
  struct Part {
    int call;      // in Plan::calls
    int sequence;  // in that call
  };
  struct Plan {
    std::vector<WaitingPtr> calls;
    std::vector<Part> parts;
    absl::Time start;
    bool beside = false;  // others are run at the same time
  };

  // `beside`: on short calls, while all other threads are busy.
  void Work(bool beside);
  int BudgetOf(const Engine& engine) const;
  // Puts a call into the queue where it has room.
  absl::Status Enqueue(WaitingPtr waiting, int64_t tokens,
                       std::vector<WaitingPtr>* dead);
  // Takes cancelled and expired calls out of the queue.
  void DropDead(absl::Time now, std::vector<WaitingPtr>* finished)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Plan FormBatch(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Marks the short calls that FormShortBatch would take, unless there are no
  // others for this batch: in a large one they would wait for it all.
  void LeaveShortCalls(const Engine* engine, uint64_t plan)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whole short calls, in the order of their turns.
  Plan FormShortBatch(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool ShortCallWaits() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes sequences of `waiting` until its share is used up; false when it
  // has none that fits into the `room` left.
  bool TakeShare(Waiting& waiting, int call, int64_t* room, int* anchor,
                 Plan* plan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Gives up what was not started; true when nothing of the call is running.
  bool Fail(Waiting& waiting, const absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UpdateGauges() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  void RunPlan(const Plan& plan);
  absl::Status RunParts(const Plan& plan, const std::vector<Part>& parts);
  // One status per call of the plan.
  void FinishPlan(const Plan& plan, const std::vector<absl::Status>& statuses);
  void CallBack(const std::vector<WaitingPtr>& finished);

  absl::Duration RetryDelay(int64_t excess_tokens) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const BatcherOptions options_;

  mutable Mutex mu_;
  CondVar wake_;        // work, or stopping
  CondVar short_wake_;  // the same, for the thread of short calls
  CondVar drained_;     // the queue became empty
  // In the order of their turns. Calls whose sequences are all taken leave.
  std::list<WaitingPtr> queue_ ABSL_GUARDED_BY(mu_);
  int64_t queued_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t plans_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<std::vector<int>> recent_shapes_ ABSL_GUARDED_BY(mu_);
  double tokens_per_second_ ABSL_GUARDED_BY(mu_) = 0;  // of one thread
  int idle_ ABSL_GUARDED_BY(mu_) = 0;           // threads that wait for work
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;  // takes no more
  bool quit_ ABSL_GUARDED_BY(mu_) = false;      // runs no more

  std::vector<std::thread> threads_;  // last: they use the rest
};

}  // namespace vitrine
