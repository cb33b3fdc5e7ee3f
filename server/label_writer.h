#pragma once

// Writes feedback to the label store on a thread of its own: SQL has no place
// on threads that serve, and what arrives while one transaction is being
// committed goes into the next one together, so that the disk is waited for
// once and not once a call.
//
// Owned by the server. Any thread may call Submit.

#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "server/metrics.h"
#include "store/label_store.h"

namespace vitrine {

class LabelWriter {
 public:
  // One outcome for each entry, in order.
  using Done = absl::AnyInvocable<void(
      absl::StatusOr<std::vector<LabelStore::Outcome>>)>;

  // Both outlive it. More than `max_waiting` entries are not taken, but for a
  // group that finds none waiting.
  LabelWriter(LabelStore& store, int64_t max_waiting, Metrics& metrics);
  // Writes what is waiting and joins.
  ~LabelWriter();
  LabelWriter(const LabelWriter&) = delete;
  LabelWriter& operator=(const LabelWriter&) = delete;

  // OK: `done` will be called once, from the writer's thread, after the commit
  // or with the error that prevented it; the entries must live until then. Not
  // OK, and `done` is dropped: kResourceExhausted with RetryInfo when too much
  // is waiting, kUnavailable after Stop.
  absl::Status Submit(const std::string& model,
                      std::vector<const v1::Feedback*> entries, Done done);

  // Takes no more, writes what is waiting, joins. Later calls do nothing.
  void Stop();

 private:
  struct Group {
    std::string model;
    std::vector<const v1::Feedback*> entries;
    Done done;
  };

  void Work();
  // The groups at the front that share a model, up to a transaction's size.
  std::vector<Group> TakeGroups() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Write(std::vector<Group>& groups);

  LabelStore& store_;
  const int64_t max_waiting_;
  Metrics& metrics_;

  Mutex mu_;
  CondVar wake_;
  std::deque<Group> queue_ ABSL_GUARDED_BY(mu_);
  int64_t waiting_ ABSL_GUARDED_BY(mu_) = 0;  // entries
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;  // last: it uses the rest
};

}  // namespace vitrine
