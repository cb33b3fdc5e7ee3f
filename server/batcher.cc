#include "server/batcher.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "server/grpc_status.h"

namespace vitrine {
namespace {

constexpr int kCpuBatchTokens = 2048;
constexpr int kCudaBatchTokens = 16384;

// What a refused caller is told before anything was measured.
constexpr absl::Duration kUnknownRetryDelay = absl::Milliseconds(200);
constexpr absl::Duration kMinRetryDelay = absl::Milliseconds(10);
constexpr absl::Duration kMaxRetryDelay = absl::Seconds(30);

// How much the newest batch counts in the measured rate.
constexpr double kRateWeight = 0.1;

void Observe(prometheus::Histogram* histogram, double value) {
  if (histogram != nullptr) histogram->Observe(value);
}

absl::Status Stopping() {
  return absl::UnavailableError("the server is stopping");
}

}  // namespace

// Constant once submitted, but for `outputs`, whose disjoint parts the batch
// threads fill in, and the last group, which the batcher's mutex guards.
struct Batcher::Waiting {
  EngineCall call;
  Done done;
  absl::Time submitted;
  int budget = 0;  // tokens in a batch of this engine
  bool is_short = false;

  Outputs outputs;

  std::vector<int> order;  // sequences not taken yet, by rising length
  int64_t queued_tokens = 0;
  int64_t deficit = 0;  // tokens that may be taken at this turn
  int unfinished = 0;   // sequences neither run nor given up
  int running_batches = 0;
  uint64_t last_plan = 0;
  uint64_t left_by = 0;  // the plan that left it to the thread of short calls
  int call_in_plan = 0;
  absl::Time running_since;
  absl::Duration compute;
  absl::Status status;

  int length(int sequence) const {
    return static_cast<int>(call.sequences[sequence].ids.size());
  }
};

Batcher::Batcher(BatcherOptions options) : options_(std::move(options)) {
  const auto start = [this](const std::string& name, bool beside) {
    threads_.emplace_back([this, name, beside] {
      pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
      Work(beside);
    });
  };
  for (int i = 0; i < options_.threads; ++i) {
    start(absl::StrCat("batch-", i), false);
  }
  if (options_.max_short_tokens > 0) start("batch-short", true);
}

Batcher::~Batcher() { Stop(absl::InfinitePast()); }

int Batcher::BudgetOf(const Engine& engine) const {
  if (options_.max_batch_tokens > 0) return options_.max_batch_tokens;
  return engine.device() == "cuda" ? kCudaBatchTokens : kCpuBatchTokens;
}

absl::Status Batcher::Submit(EngineCall call, Done done) {
  const int count = static_cast<int>(call.sequences.size());
  if (count == 0 || call.heads.size() != call.sequences.size()) {
    return absl::InternalError(absl::StrCat("a call of ", count,
                                            " sequences and ",
                                            call.heads.size(), " head masks"));
  }
  auto waiting = std::make_shared<Waiting>();
  waiting->call = std::move(call);
  waiting->done = std::move(done);
  waiting->budget = BudgetOf(*waiting->call.engine);
  waiting->unfinished = count;
  waiting->order.resize(count);
  int64_t tokens = 0;
  int64_t width = 0;
  Outputs& outputs = waiting->outputs;
  outputs.offsets.reserve(count + 1);
  for (int s = 0; s < count; ++s) {
    if (waiting->length(s) == 0) {
      return absl::InternalError(absl::StrCat("sequence ", s, " is empty"));
    }
    waiting->order[s] = s;
    tokens += waiting->length(s);
    for (HeadMask mask = waiting->call.heads[s]; mask != 0; mask &= mask - 1) {
      width += waiting->call.engine->width(__builtin_ctz(mask));
    }
    outputs.offsets.push_back(width);
  }
  outputs.values.resize(width);
  waiting->queued_tokens = tokens;
  waiting->is_short = tokens <= options_.max_short_tokens &&
                      waiting->call.engine->device() == "cpu";
  std::stable_sort(waiting->order.begin(), waiting->order.end(),
                   [&waiting](int a, int b) {
                     return waiting->length(a) < waiting->length(b);
                   });
  std::vector<WaitingPtr> dead;
  const absl::Status admitted = Enqueue(std::move(waiting), tokens, &dead);
  CallBack(dead);
  return admitted;
}

absl::Status Batcher::Enqueue(WaitingPtr waiting, int64_t tokens,
                              std::vector<WaitingPtr>* dead) {
  const bool is_short = waiting->is_short;
  {
    MutexLock lock(mu_);
    if (stopping_) return Stopping();
    // Those who gave up must not keep others out.
    if (queued_tokens_ + tokens > options_.max_queue_tokens) {
      DropDead(options_.now(), dead);
    }
    const int64_t excess = queued_tokens_ + tokens - options_.max_queue_tokens;
    if (excess > 0 && queued_tokens_ > 0) {
      return WithRetryDelay(
          absl::ResourceExhaustedError(absl::StrCat(
              "the queue is full: ", queued_tokens_, " tokens wait, ", tokens,
              " more would exceed ", options_.max_queue_tokens,
              " (batcher.max_queue_tokens)")),
          RetryDelay(std::min(excess, queued_tokens_)));
    }
    waiting->submitted = options_.now();
    queued_tokens_ += tokens;
    queue_.push_back(std::move(waiting));
    UpdateGauges();
  }
  wake_.NotifyOne();
  if (is_short) short_wake_.NotifyOne();
  return absl::OkStatus();
}

absl::Duration Batcher::RetryDelay(int64_t excess_tokens) const {
  if (tokens_per_second_ <= 0) return kUnknownRetryDelay;
  const absl::Duration delay =
      absl::Seconds(excess_tokens / (tokens_per_second_ * options_.threads));
  return std::clamp(delay, kMinRetryDelay, kMaxRetryDelay);
}

int64_t Batcher::queued_tokens() const {
  MutexLock lock(mu_);
  return queued_tokens_;
}

void Batcher::UpdateGauges() {
  if (options_.metrics.queue_tokens != nullptr) {
    options_.metrics.queue_tokens->Set(queued_tokens_);
  }
  if (options_.metrics.queue_calls != nullptr) {
    options_.metrics.queue_calls->Set(queue_.size());
  }
}

void Batcher::Stop(absl::Time drain_until) {
  std::vector<WaitingPtr> finished;
  {
    MutexLock lock(mu_);
    stopping_ = true;
    // The clock may be a test's, so it is looked at again and again.
    while (!queue_.empty() && options_.now() < drain_until) {
      drained_.WaitUntil(
          mu_, std::chrono::steady_clock::now() + std::chrono::milliseconds(5));
    }
    for (const WaitingPtr& waiting : queue_) {
      if (Fail(*waiting, Stopping())) finished.push_back(waiting);
    }
    queue_.clear();
    UpdateGauges();
    quit_ = true;
  }
  wake_.NotifyAll();
  short_wake_.NotifyAll();
  CallBack(finished);
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void Batcher::Work(bool beside) {
  while (true) {
    Plan plan;
    std::vector<WaitingPtr> finished;
    bool more = false, more_short = false;
    {
      MutexLock lock(mu_);
      if (beside) {
        while (!quit_ && (idle_ > 0 || !ShortCallWaits())) {
          short_wake_.Wait(mu_);
        }
      } else {
        ++idle_;
        while (!quit_ && queue_.empty()) wake_.Wait(mu_);
        --idle_;
      }
      if (quit_) return;
      const absl::Time now = options_.now();
      DropDead(now, &finished);
      plan = beside ? FormShortBatch(now) : FormBatch(now);
      UpdateGauges();
      more = !queue_.empty();
      more_short = ShortCallWaits();
      if (!more) drained_.NotifyAll();
    }
    // A notification may have been spent on this thread for two calls.
    if (more) wake_.NotifyOne();
    // What is left was not known to be: the last of the others is busy now.
    if (more_short) short_wake_.NotifyOne();
    CallBack(finished);
    if (!plan.parts.empty()) RunPlan(plan);
  }
}

bool Batcher::Fail(Waiting& waiting, const absl::Status& status) {
  if (waiting.status.ok()) waiting.status = status;
  waiting.unfinished -= static_cast<int>(waiting.order.size());
  waiting.order.clear();
  queued_tokens_ -= waiting.queued_tokens;
  waiting.queued_tokens = 0;
  return waiting.running_batches == 0;
}

void Batcher::DropDead(absl::Time now, std::vector<WaitingPtr>* finished) {
  for (auto it = queue_.begin(); it != queue_.end();) {
    Waiting& waiting = **it;
    absl::Status status;
    if (waiting.call.cancelled != nullptr && *waiting.call.cancelled) {
      status = absl::CancelledError("the caller cancelled");
    } else if (waiting.call.deadline <= now) {
      status = absl::DeadlineExceededError(
          "the deadline passed while the call was waiting for the model");
    } else {
      ++it;
      continue;
    }
    if (Fail(waiting, status)) finished->push_back(std::move(*it));
    it = queue_.erase(it);
  }
}

Batcher::Plan Batcher::FormBatch(absl::Time now) {
  Plan plan;
  plan.start = now;
  if (queue_.empty()) return plan;
  const Engine* engine = queue_.front()->call.engine.get();
  const uint64_t number = ++plans_;
  LeaveShortCalls(engine, number);
  const auto takes_part = [engine, number](const Waiting& waiting) {
    return waiting.call.engine.get() == engine && waiting.left_by != number;
  };
  int64_t contenders = 0;
  for (const WaitingPtr& waiting : queue_) {
    if (takes_part(*waiting)) ++contenders;
  }
  const int budget = queue_.front()->budget;
  const int64_t share = std::max<int64_t>(1, budget / contenders);
  int64_t room = budget;
  int anchor = 0;  // the length to stay near; 0: not known yet
  // Rounds over the queue. Every call that gets its turn goes to the back, so
  // that the next batch begins with those that this one had no room for, and
  // another version's calls come to the front.
  bool any_fits = true;
  while (any_fits && room > 0) {
    any_fits = false;
    int64_t best_deficit = -budget;
    const size_t parts_before = plan.parts.size();
    const size_t round = queue_.size();
    auto it = queue_.begin();
    for (size_t i = 0; i < round && room > 0; ++i) {
      const auto current = it++;
      const WaitingPtr waiting = *current;
      if (!takes_part(*waiting)) continue;
      if (waiting->last_plan != number) {
        waiting->call_in_plan = static_cast<int>(plan.calls.size());
      }
      // Nobody saves up more than one batch.
      waiting->deficit = std::min<int64_t>(waiting->deficit + share, budget);
      const size_t before = plan.parts.size();
      any_fits |=
          TakeShare(*waiting, waiting->call_in_plan, &room, &anchor, &plan);
      if (plan.parts.size() == before) {
        best_deficit = std::max(best_deficit, waiting->deficit);
        continue;
      }
      if (waiting->last_plan != number) {
        waiting->last_plan = number;
        plan.calls.push_back(waiting);
        if (waiting->running_batches++ == 0) waiting->running_since = now;
      }
      if (waiting->order.empty()) {
        queue_.erase(current);
      } else {
        queue_.splice(queue_.end(), queue_, current);
      }
    }
    if (plan.parts.size() > parts_before || best_deficit >= 0) continue;
    // All are paying back what they overdrew: as many rounds at once as pass
    // until the first of them has done so.
    const int64_t rounds = -best_deficit / share;
    for (const WaitingPtr& waiting : queue_) {
      if (takes_part(*waiting)) waiting->deficit += rounds * share;
    }
  }
  return plan;
}

void Batcher::LeaveShortCalls(const Engine* engine, uint64_t plan) {
  const bool others = std::any_of(
      queue_.begin(), queue_.end(), [engine](const WaitingPtr& waiting) {
        return waiting->call.engine.get() == engine && !waiting->is_short;
      });
  if (!others) return;
  int64_t room = options_.max_short_tokens;
  for (const WaitingPtr& waiting : queue_) {
    if (waiting->is_short && waiting->queued_tokens <= room &&
        waiting->call.engine.get() == engine) {
      room -= waiting->queued_tokens;
      waiting->left_by = plan;
    }
  }
}

bool Batcher::ShortCallWaits() const {
  return std::any_of(
      queue_.begin(), queue_.end(),
      [](const WaitingPtr& waiting) { return waiting->is_short; });
}

Batcher::Plan Batcher::FormShortBatch(absl::Time now) {
  Plan plan;
  plan.start = now;
  plan.beside = true;
  int64_t room = options_.max_short_tokens;
  for (auto it = queue_.begin(); it != queue_.end();) {
    Waiting& waiting = **it;
    if (!waiting.is_short || waiting.queued_tokens > room ||
        (!plan.calls.empty() &&
         waiting.call.engine != plan.calls[0]->call.engine)) {
      ++it;
      continue;
    }
    const int call = static_cast<int>(plan.calls.size());
    for (const int sequence : waiting.order) {
      plan.parts.push_back({call, sequence});
    }
    waiting.order.clear();
    room -= waiting.queued_tokens;
    queued_tokens_ -= waiting.queued_tokens;
    waiting.queued_tokens = 0;
    if (waiting.running_batches++ == 0) waiting.running_since = now;
    plan.calls.push_back(std::move(*it));
    it = queue_.erase(it);
  }
  return plan;
}

bool Batcher::TakeShare(Waiting& waiting, int call, int64_t* room, int* anchor,
                        Plan* plan) {
  std::vector<int>& order = waiting.order;
  // A call may overdraw by one sequence and pays at its next turns. Hence
  // sequences longer than a share are served too, in proportion.
  while (waiting.deficit > 0) {
    // Those that fit, and of them the nearest to the anchor. A batch that is
    // still empty takes any.
    auto end = order.end();
    if (!plan->parts.empty()) {
      end = std::partition_point(order.begin(), end, [&](int s) {
        return waiting.length(s) <= *room;
      });
    }
    if (end == order.begin()) return false;
    auto pick = end - 1;
    if (*anchor > 0) {
      const auto above = std::partition_point(order.begin(), end, [&](int s) {
        return waiting.length(s) < *anchor;
      });
      if (above == end) {
        pick = end - 1;
      } else if (above == order.begin() ||
                 waiting.length(*above) - *anchor <=
                     *anchor - waiting.length(*(above - 1))) {
        pick = above;
      } else {
        pick = above - 1;
      }
    }
    const int length = waiting.length(*pick);
    if (*anchor == 0) *anchor = length;
    plan->parts.push_back({call, *pick});
    order.erase(pick);
    *room -= length;
    waiting.deficit -= length;
    waiting.queued_tokens -= length;
    queued_tokens_ -= length;
    if (order.empty()) return true;
  }
  return true;
}

std::vector<std::vector<int>> Batcher::RecentShapes() const {
  MutexLock lock(mu_);
  return {recent_shapes_.begin(), recent_shapes_.end()};
}

void Batcher::RunPlan(const Plan& plan) {
  std::vector<absl::Status> statuses(plan.calls.size());
  const absl::Status status = RunParts(plan, plan.parts);
  if (plan.calls.size() == 1) {
    statuses[0] = status;
  } else if (!status.ok()) {
    // One call's fault must not be its neighbours': each alone.
    for (int c = 0; c < static_cast<int>(plan.calls.size()); ++c) {
      std::vector<Part> parts;
      for (const Part& part : plan.parts) {
        if (part.call == c) parts.push_back(part);
      }
      statuses[c] = RunParts(plan, parts);
    }
  }
  FinishPlan(plan, statuses);
}

absl::Status Batcher::RunParts(const Plan& plan,
                               const std::vector<Part>& parts) {
  Batch batch;
  int longest = 0;
  for (const Part& part : parts) {
    const EngineCall& call = plan.calls[part.call]->call;
    batch.Add(call.sequences[part.sequence], call.heads[part.sequence]);
    longest = std::max(longest, plan.calls[part.call]->length(part.sequence));
  }
  const Engine& engine = *plan.calls[parts[0].call]->call.engine;
  const absl::StatusOr<Outputs> outputs = engine.Run(batch);
  if (!outputs.ok()) return outputs.status();
  if (outputs->offsets.size() != parts.size() + 1) {
    return absl::InternalError(
        absl::StrCat("the engine gave ", outputs->offsets.size() - 1,
                     " outputs for ", parts.size(), " sequences"));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    Outputs& to = plan.calls[parts[i].call]->outputs;
    const int64_t begin = to.offsets[parts[i].sequence];
    const int64_t size = to.offsets[parts[i].sequence + 1] - begin;
    const absl::Span<const float> from = outputs->Of(static_cast<int>(i));
    if (static_cast<int64_t>(from.size()) != size) {
      return absl::InternalError(
          absl::StrCat("the engine gave ", from.size(), " values, not ", size));
    }
    std::copy(from.begin(), from.end(), to.values.begin() + begin);
  }
  Observe(options_.metrics.batch_tokens, batch.tokens());
  Observe(options_.metrics.batch_sequences, batch.sequences());
  Observe(options_.metrics.padding_share,
          1.0 - batch.tokens() /
                    (static_cast<double>(longest) * batch.sequences()));
  return absl::OkStatus();
}

void Batcher::FinishPlan(const Plan& plan,
                         const std::vector<absl::Status>& statuses) {
  int64_t tokens = 0;
  for (const Part& part : plan.parts) {
    tokens += plan.calls[part.call]->length(part.sequence);
  }
  const absl::Time now = options_.now();
  const double seconds = absl::ToDoubleSeconds(now - plan.start);
  Observe(options_.metrics.batch_seconds, seconds);
  std::vector<WaitingPtr> finished;
  bool any_failed = false;
  std::vector<int> shape;
  for (const Part& part : plan.parts) {
    shape.push_back(plan.calls[part.call]->length(part.sequence));
  }
  {
    MutexLock lock(mu_);
    recent_shapes_.push_back(std::move(shape));
    if (recent_shapes_.size() > kRecentShapes) recent_shapes_.pop_front();
    if (seconds > 0 && !plan.beside) {
      const double rate = tokens / seconds;
      tokens_per_second_ =
          tokens_per_second_ == 0
              ? rate
              : (1 - kRateWeight) * tokens_per_second_ + kRateWeight * rate;
    }
    for (const Part& part : plan.parts) {
      --plan.calls[part.call]->unfinished;
    }
    for (size_t c = 0; c < plan.calls.size(); ++c) {
      Waiting& waiting = *plan.calls[c];
      if (!statuses[c].ok()) {
        Fail(waiting, statuses[c]);
        any_failed = true;
      }
      if (--waiting.running_batches == 0) {
        waiting.compute += now - waiting.running_since;
        if (waiting.unfinished == 0) finished.push_back(plan.calls[c]);
      }
    }
    // Calls that failed leave the queue with what they had left in it.
    if (any_failed) {
      queue_.remove_if(
          [](const WaitingPtr& waiting) { return waiting->order.empty(); });
    }
    if (queue_.empty()) drained_.NotifyAll();
    UpdateGauges();
  }
  CallBack(finished);
}

void Batcher::CallBack(const std::vector<WaitingPtr>& finished) {
  if (finished.empty()) return;
  const absl::Time now = options_.now();
  for (const WaitingPtr& waiting : finished) {
    // Moved out, so that what the callback holds dies with its run.
    Done done = std::move(waiting->done);
    if (!waiting->status.ok()) {
      done(waiting->status);
      continue;
    }
    EngineResult result;
    result.outputs = std::move(waiting->outputs);
    result.compute = waiting->compute;
    result.queue = std::max(absl::ZeroDuration(),
                            now - waiting->submitted - waiting->compute);
    done(std::move(result));
  }
}

}  // namespace vitrine
