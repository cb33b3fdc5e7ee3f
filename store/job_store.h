#pragma once

// Training jobs and the audit trail. Thread-safe; calls block on the database.
//
// A worker holds a job by a lease that it renews. When the lease runs out,
// another worker may claim the job, and the first learns of it by kAborted on
// its next call. Every change of a job's state is an audit event, written in
// the same transaction. Leases are timed by the database's clock, so that
// hosts need not agree.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "store/database.h"
#include "vitrine/v1/admin.pb.h"

namespace vitrine {

class JobStore {
 public:
  explicit JobStore(Database& database) : database_(database) {}

  struct Created {
    v1::TrainingJob job;
    bool existed = false;
  };
  // Queues a job. Reads model, recipe, base_version, label_watermark, dry_run,
  // idempotency_key and created_by of `job`. The key (where not empty) is
  // unique in the model: the same request again returns the job that is there;
  // kAlreadyExists names it when the request differs in anything but
  // created_by. What is compared is `asked`, where it is given: a request as it
  // came, before zeros in it became the newest version and watermark.
  absl::StatusOr<Created> Create(
      const v1::TrainingJob& job,
      const v1::StartTrainingRequest* asked = nullptr);
  // As Create, for automatic jobs: none, and nothing happens, when the model
  // has a job that has not ended, checked in the same transaction.
  absl::StatusOr<std::optional<v1::TrainingJob>> CreateIfIdle(
      const v1::TrainingJob& job);

  // kNotFound.
  absl::StatusOr<v1::TrainingJob> Get(int64_t id);
  // The newest first: those with ids below `before` (0: all), of `model`
  // (empty: of all).
  absl::StatusOr<std::vector<v1::TrainingJob>> List(const std::string& model,
                                                    int64_t before, int limit);
  // A queued job is cancelled at once; a running one is marked. Again: the
  // same, also where it was cancelled meanwhile. kFailedPrecondition names the
  // state of one that has ended otherwise.
  absl::StatusOr<v1::TrainingJob> Cancel(int64_t id, const std::string& actor);

  struct ClaimOptions {
    std::string worker;                        // such as "host:pid"
    std::vector<std::string> models;           // empty: all
    absl::Duration lease = absl::Seconds(30);  // from now
    int max_attempts = 10;
  };
  // The oldest job that is queued, or whose lease has run out. Jobs that were
  // taken max_attempts times are failed on the way; marked ones whose lease
  // has run out are cancelled. None: there is nothing to do. kInvalidArgument:
  // a worker without a name.
  absl::StatusOr<std::optional<v1::TrainingJob>> Claim(
      const ClaimOptions& options);

  // Renews the lease and stores `progress` (with rows and digest where `job`
  // has them). Returns whether the job's end was asked for. kAborted: the job
  // is no longer this worker's.
  absl::StatusOr<bool> Renew(const v1::TrainingJob& job,
                             const std::string& worker, absl::Duration lease);
  // RUNNING to EVALUATING. kAborted as above.
  absl::Status SetEvaluating(int64_t id, const std::string& worker);
  // Ends a job: state, metrics, rejections, error, result_version, progress,
  // rows and digest are taken from `job`. kAborted as above; but what this
  // worker has ended in the same state already is OK, and stays as it is.
  absl::Status Finish(const v1::TrainingJob& job, const std::string& worker);
  // Gives a job back unfinished, for whoever claims it next: what a worker
  // does when it is stopped. Does not count as an attempt. One that is marked
  // is cancelled. kAborted as above.
  absl::Status Release(int64_t id, const std::string& worker);

  // Activation by policy: the newest version that a job of `model` published
  // and nobody has settled yet; 0: none. Several servers may be told of one:
  // to activate a version twice does no harm.
  absl::StatusOr<int64_t> NextForActivation(const std::string& model);
  // It was activated, or failed to be: neither it nor older versions are told
  // of again. With the audit event, where this was the first to settle it.
  absl::Status SettleActivation(const std::string& model, int64_t version,
                                const v1::AuditEvent& event);
  // An admin has chosen what serves: no version published so far is told of
  // again. With the audit event.
  absl::Status SettleActivations(const std::string& model,
                                 const v1::AuditEvent& event);

  // Time and id are filled in.
  absl::Status Audit(const v1::AuditEvent& event);
  // With `after` >= 0: events with greater ids, the oldest first, at most
  // `limit`. With -1: the newest `limit`, the oldest of them first.
  absl::StatusOr<std::vector<v1::AuditEvent>> ListAudit(
      const std::string& model, int64_t after, int limit);

 private:
  Database& database_;
};

// "QUEUED" as "queued".
std::string StateName(v1::TrainingJobState state);
bool IsFinal(v1::TrainingJobState state);

}  // namespace vitrine
