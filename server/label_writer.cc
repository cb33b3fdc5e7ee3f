#include "server/label_writer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/grpc_status.h"
#include "server/thread_priority.h"

namespace vitrine {
namespace {

// Entries of one transaction, unless a single group has more. Larger ones gain
// nothing and keep the callers of the first groups waiting.
constexpr int64_t kMaxTransaction = 4000;
constexpr absl::Duration kRetryDelay = absl::Milliseconds(200);
// Somebody has to make room.
constexpr absl::Duration kFullDiskRetryDelay = absl::Seconds(30);

}  // namespace

LabelWriter::LabelWriter(LabelStore& store, int64_t max_waiting,
                         Metrics& metrics)
    : store_(store), max_waiting_(max_waiting), metrics_(metrics) {
  thread_ = std::thread([this] { Work(); });
}

LabelWriter::~LabelWriter() { Stop(); }

absl::Status LabelWriter::Submit(const std::string& model,
                                 std::vector<const v1::Feedback*> entries,
                                 Done done) {
  const auto count = static_cast<int64_t>(entries.size());
  {
    MutexLock lock(mu_);
    if (stopping_) return absl::UnavailableError("the server is stopping");
    if (waiting_ > 0 && waiting_ + count > max_waiting_) {
      return WithRetryDelay(
          absl::ResourceExhaustedError(absl::StrCat(
              waiting_, " entries wait to be committed; with ", count,
              " more: > ", max_waiting_, " (store.max_waiting)")),
          kRetryDelay);
    }
    waiting_ += count;
    metrics_.feedback_waiting().Set(static_cast<double>(waiting_));
    queue_.push_back({model, std::move(entries), std::move(done)});
  }
  wake_.NotifyOne();
  return absl::OkStatus();
}

void LabelWriter::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  wake_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

std::vector<LabelWriter::Group> LabelWriter::TakeGroups() {
  std::vector<Group> groups;
  int64_t entries = 0;
  while (!queue_.empty()) {
    Group& next = queue_.front();
    const auto count = static_cast<int64_t>(next.entries.size());
    if (!groups.empty() && (next.model != groups.front().model ||
                            entries + count > kMaxTransaction)) {
      break;
    }
    entries += count;
    groups.push_back(std::move(next));
    queue_.pop_front();
  }
  return groups;
}

void LabelWriter::Work() {
  SetThreadName("label-writer");
  YieldToServing();
  while (true) {
    std::vector<Group> groups;
    {
      MutexLock lock(mu_);
      while (queue_.empty() && !stopping_) wake_.Wait(mu_);
      if (queue_.empty()) return;
      groups = TakeGroups();
    }
    Write(groups);
  }
}

void LabelWriter::Write(std::vector<Group>& groups) {
  std::vector<const v1::Feedback*> all;
  for (const Group& group : groups) {
    all.insert(all.end(), group.entries.begin(), group.entries.end());
  }
  const absl::Time start = absl::Now();
  absl::StatusOr<std::vector<LabelStore::Outcome>> outcomes =
      store_.Add(groups.front().model, all, start);
  if (absl::IsResourceExhausted(outcomes.status())) {
    outcomes = WithRetryDelay(outcomes.status(), kFullDiskRetryDelay);
  }
  metrics_.feedback_commit_seconds().Observe(
      absl::ToDoubleSeconds(absl::Now() - start));
  {
    // Before the callers hear of it: they may come with more at once.
    MutexLock lock(mu_);
    waiting_ -= static_cast<int64_t>(all.size());
    metrics_.feedback_waiting().Set(static_cast<double>(waiting_));
  }
  size_t next = 0;
  for (Group& group : groups) {
    if (!outcomes.ok()) {
      group.done(outcomes.status());
      continue;
    }
    const auto begin = outcomes->begin() + static_cast<int64_t>(next);
    next += group.entries.size();
    group.done(std::vector<LabelStore::Outcome>(
        begin, outcomes->begin() + static_cast<int64_t>(next)));
  }
}

}  // namespace vitrine
