#include "store/job_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "google/protobuf/util/time_util.h"
#include "store/sql.h"

namespace vitrine {
namespace {

using ::google::protobuf::util::TimeUtil;

// A row of jobs. `job` is the truth; the columns beside it repeat what SQL
// looks for.
struct Row {
  v1::TrainingJob job;
  int64_t lease_until_us = 0;  // 0 unless a worker has it
};

// A job that has not ended; as in the index jobs_open.
constexpr char kOpen[] = "state in ('queued', 'running', 'evaluating')";

std::string Encode(const google::protobuf::MessageLite& message) {
  return absl::Base64Escape(message.SerializeAsString());
}

absl::StatusOr<v1::TrainingJob> Decode(const std::string& text) {
  std::string bytes;
  v1::TrainingJob job;
  if (!absl::Base64Unescape(text, &bytes) || !job.ParseFromString(bytes)) {
    return absl::DataLossError("a training job's row is damaged");
  }
  return job;
}

// Keeps others from changing the rows that are read.
const char* ForUpdate(const SqlConnection& connection) {
  return connection.dialect() == SqlDialect::kPostgres ? " for update" : "";
}

absl::StatusOr<Row> Load(SqlConnection& connection, int64_t id,
                         const char* suffix) {
  ASSIGN_OR_RETURN(
      const auto rows,
      connection.Query(
          absl::StrCat("select job, lease_until_us from jobs where id = :id",
                       suffix),
          2, {id}));
  if (rows.empty()) {
    return absl::NotFoundError(absl::StrCat("there is no training job ", id));
  }
  Row row;
  ASSIGN_OR_RETURN(row.job, Decode(rows[0][0]));
  ASSIGN_OR_RETURN(row.lease_until_us, SqlInt(rows[0][1]));
  return row;
}

absl::Status Store(SqlConnection& connection, const Row& row) {
  return connection
      .Execute(
          "update jobs set state = :state, lease_until_us = :lease, "
          "result_version = :version, job = :job where id = :id",
          {StateName(row.job.state()), row.lease_until_us,
           row.job.result_version(), Encode(row.job), row.job.id()})
      .status();
}

// The last thing of its transaction: others wait from here on, so that greater
// ids are committed later and who follows the trail misses nothing.
absl::Status AppendAudit(SqlConnection& connection, int64_t now_us,
                         const v1::AuditEvent& event) {
  RETURN_IF_ERROR(connection.Lock(SqlLock::kAudit));
  return connection
      .Execute(
          "insert into audit (time_us, actor, action, model, job, version, "
          "detail) values (:time, :actor, :action, :model, :job, :version, "
          ":detail)",
          {now_us, event.actor(), event.action(), event.model(), event.job(),
           event.version(), event.detail()})
      .status();
}

absl::Status AuditJob(SqlConnection& connection, int64_t now_us,
                      const v1::TrainingJob& job, const std::string& actor,
                      const std::string& action,
                      const std::string& detail = "") {
  v1::AuditEvent event;
  event.set_actor(actor);
  event.set_action(action);
  event.set_model(job.model());
  event.set_job(job.id());
  event.set_version(job.result_version());
  event.set_detail(detail);
  return AppendAudit(connection, now_us, event);
}

std::string WorkerActor(const std::string& worker) {
  return absl::StrCat("worker ", worker);
}

// Stores `row` as changed and writes the event.
absl::Status Change(SqlConnection& connection, int64_t now_us, Row& row,
                    const std::string& actor, const std::string& action,
                    const std::string& detail = "") {
  row.job.set_revision(row.job.revision() + 1);
  RETURN_IF_ERROR(Store(connection, row));
  return AuditJob(connection, now_us, row.job, actor, action, detail);
}

absl::Status End(SqlConnection& connection, int64_t now_us, Row& row,
                 v1::TrainingJobState state, const std::string& actor,
                 const std::string& detail = "") {
  row.job.set_state(state);
  *row.job.mutable_finished() = TimeUtil::MicrosecondsToTimestamp(now_us);
  row.lease_until_us = 0;
  return Change(connection, now_us, row, actor,
                absl::StrCat("job.", StateName(state)), detail);
}

bool IsTaken(const v1::TrainingJob& job) {
  return job.state() == v1::TRAINING_JOB_STATE_RUNNING ||
         job.state() == v1::TRAINING_JOB_STATE_EVALUATING;
}

// A job for a change by the worker that has it.
absl::StatusOr<Row> LoadOwned(SqlConnection& connection, int64_t id,
                              const std::string& worker) {
  ASSIGN_OR_RETURN(Row row, Load(connection, id, ForUpdate(connection)));
  if (IsTaken(row.job) && row.job.worker() == worker) return row;
  return absl::AbortedError(absl::StrCat(
      "training job ", id, " is no longer ", worker, "'s: it is ",
      StateName(row.job.state()),
      row.job.worker().empty() ? "" : absl::StrCat(", ", row.job.worker())));
}

// What two requests of one key must share.
std::string Asked(const v1::TrainingJob& job,
                  const v1::StartTrainingRequest* asked) {
  v1::StartTrainingRequest request;
  if (asked != nullptr) {
    request = *asked;
  } else {
    *request.mutable_recipe() = job.recipe();
    request.set_base_version(job.base_version());
    request.set_label_watermark(job.label_watermark());
    request.set_dry_run(job.dry_run());
  }
  // The key's scope, however the request spells it.
  request.set_model(job.model());
  request.set_idempotency_key(job.idempotency_key());
  return Encode(request);
}

absl::StatusOr<JobStore::Created> Insert(SqlConnection& connection,
                                         const v1::TrainingJob& wanted,
                                         const std::string& asked) {
  if (!wanted.idempotency_key().empty()) {
    ASSIGN_OR_RETURN(
        const auto rows,
        connection.Query("select job, asked from jobs where model = :model "
                         "and idempotency_key = :key",
                         2, {wanted.model(), wanted.idempotency_key()}));
    if (!rows.empty()) {
      JobStore::Created created;
      ASSIGN_OR_RETURN(created.job, Decode(rows[0][0]));
      created.existed = true;
      if (rows[0][1] != asked) {
        return absl::AlreadyExistsError(absl::StrCat(
            "idempotency_key ", wanted.idempotency_key(),
            " was used for another request, training job ", created.job.id()));
      }
      return created;
    }
  }
  ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
  Row row;
  v1::TrainingJob& job = row.job;
  job.set_model(wanted.model());
  job.set_state(v1::TRAINING_JOB_STATE_QUEUED);
  *job.mutable_recipe() = wanted.recipe();
  job.set_base_version(wanted.base_version());
  job.set_label_watermark(wanted.label_watermark());
  job.set_dry_run(wanted.dry_run());
  job.set_idempotency_key(wanted.idempotency_key());
  job.set_created_by(wanted.created_by());
  *job.mutable_created() = TimeUtil::MicrosecondsToTimestamp(now_us);
  ASSIGN_OR_RETURN(
      const auto inserted,
      connection.Query(
          "insert into jobs (model, idempotency_key, asked, state, "
          "lease_until_us, result_version, job) values (:model, :key, :asked, "
          ":state, 0, 0, '') returning id",
          1,
          {job.model(), job.idempotency_key(), asked, StateName(job.state())}));
  ASSIGN_OR_RETURN(const int64_t id, SqlInt(inserted[0][0]));
  job.set_id(id);
  RETURN_IF_ERROR(
      Change(connection, now_us, row, job.created_by(), "job.queued"));
  return JobStore::Created{.job = std::move(job)};
}

// Progress, rows and digest as a worker tells them; returns whether that is
// news.
bool TakeProgress(const v1::TrainingJob& from, v1::TrainingJob& to) {
  const std::string before = to.SerializeAsString();
  if (from.has_progress()) *to.mutable_progress() = from.progress();
  if (from.training_rows() != 0) to.set_training_rows(from.training_rows());
  if (from.validation_rows() != 0) {
    to.set_validation_rows(from.validation_rows());
  }
  if (!from.data_digest().empty()) to.set_data_digest(from.data_digest());
  return to.SerializeAsString() != before;
}

}  // namespace

absl::StatusOr<JobStore::Created> JobStore::Create(
    const v1::TrainingJob& job, const v1::StartTrainingRequest* asked) {
  Created created;
  RETURN_IF_ERROR(
      database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
        // Two requests of one key do not meet.
        RETURN_IF_ERROR(connection.Lock(SqlLock::kJobs));
        ASSIGN_OR_RETURN(created, Insert(connection, job, Asked(job, asked)));
        return absl::OkStatus();
      }));
  return created;
}

absl::StatusOr<std::optional<v1::TrainingJob>> JobStore::CreateIfIdle(
    const v1::TrainingJob& job) {
  std::optional<v1::TrainingJob> made;
  RETURN_IF_ERROR(
      database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
        RETURN_IF_ERROR(connection.Lock(SqlLock::kJobs));
        ASSIGN_OR_RETURN(
            const auto open,
            connection.Query(absl::StrCat("select id from jobs where model = "
                                          ":model and ",
                                          kOpen, " limit 1"),
                             1, {job.model()}));
        if (!open.empty()) return absl::OkStatus();
        ASSIGN_OR_RETURN(Created created,
                         Insert(connection, job, Asked(job, nullptr)));
        made = std::move(created.job);
        return absl::OkStatus();
      }));
  return made;
}

absl::StatusOr<v1::TrainingJob> JobStore::Get(int64_t id) {
  Row row;
  RETURN_IF_ERROR(
      database_.sql().Read([&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(row, Load(connection, id, ""));
        return absl::OkStatus();
      }));
  return std::move(row.job);
}

absl::StatusOr<std::vector<v1::TrainingJob>> JobStore::List(
    const std::string& model, int64_t before, int limit) {
  std::string sql = "select job from jobs where true";
  std::vector<SqlArg> args;
  if (!model.empty()) {
    absl::StrAppend(&sql, " and model = :model");
    args.emplace_back(model);
  }
  if (before > 0) {
    absl::StrAppend(&sql, " and id < :before");
    args.emplace_back(before);
  }
  absl::StrAppend(&sql, " order by id desc limit :limit");
  args.emplace_back(int64_t{std::max(limit, 0)});
  std::vector<v1::TrainingJob> jobs;
  RETURN_IF_ERROR(
      database_.sql().Read([&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(const auto rows, connection.Query(sql, 1, args));
        for (const SqlRow& row : rows) {
          ASSIGN_OR_RETURN(v1::TrainingJob job, Decode(row[0]));
          jobs.push_back(std::move(job));
        }
        return absl::OkStatus();
      }));
  return jobs;
}

absl::StatusOr<v1::TrainingJob> JobStore::Cancel(int64_t id,
                                                 const std::string& actor) {
  Row row;
  RETURN_IF_ERROR(
      database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(row, Load(connection, id, ForUpdate(connection)));
        v1::TrainingJob& job = row.job;
        if (job.state() == v1::TRAINING_JOB_STATE_CANCELLED ||
            (job.cancel_requested() && IsTaken(job))) {
          return absl::OkStatus();
        }
        if (IsFinal(job.state())) {
          return absl::FailedPreconditionError(
              absl::StrCat("training job ", id,
                           " has ended already: ", StateName(job.state())));
        }
        ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
        job.set_cancel_requested(true);
        if (IsTaken(job)) {
          return Change(connection, now_us, row, actor, "job.cancel_requested");
        }
        return End(connection, now_us, row, v1::TRAINING_JOB_STATE_CANCELLED,
                   actor);
      }));
  return std::move(row.job);
}

absl::StatusOr<std::optional<v1::TrainingJob>> JobStore::Claim(
    const ClaimOptions& options) {
  if (options.worker.empty()) {
    return absl::InvalidArgumentError("a worker must have a name");
  }
  std::string where = absl::StrCat(kOpen, " and lease_until_us <= :now");
  for (size_t i = 0; i < options.models.size(); ++i) {
    absl::StrAppend(&where, i == 0 ? " and model in (" : ", ", ":m", i);
  }
  if (!options.models.empty()) absl::StrAppend(&where, ")");
  const auto arguments = [&](int64_t now_us) {
    std::vector<SqlArg> args = {now_us};
    args.insert(args.end(), options.models.begin(), options.models.end());
    return args;
  };

  // Most calls find nothing: they do not wait for writers.
  bool any = false;
  RETURN_IF_ERROR(
      database_.sql().Read([&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
        ASSIGN_OR_RETURN(
            const auto rows,
            connection.Query(
                absl::StrCat("select id from jobs where ", where, " limit 1"),
                1, arguments(now_us)));
        any = !rows.empty();
        return absl::OkStatus();
      }));
  std::optional<v1::TrainingJob> claimed;
  while (any && !claimed.has_value()) {
    // One job a transaction, so that one who audits holds no other job.
    RETURN_IF_ERROR(
        database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
          ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
          ASSIGN_OR_RETURN(
              const auto rows,
              connection.Query(
                  absl::StrCat("select job from jobs where ", where,
                               " order by id limit 1", ForUpdate(connection),
                               connection.dialect() == SqlDialect::kPostgres
                                   ? " skip locked"
                                   : ""),
                  1, arguments(now_us)));
          any = !rows.empty();
          if (!any) return absl::OkStatus();
          Row row;
          v1::TrainingJob& job = row.job;
          ASSIGN_OR_RETURN(job, Decode(rows[0][0]));
          const std::string actor = WorkerActor(options.worker);
          const bool taken_over = IsTaken(job);
          const std::string detail =
              taken_over ? absl::StrCat("from ", job.worker()) : "";
          if (job.cancel_requested()) {
            return End(connection, now_us, row,
                       v1::TRAINING_JOB_STATE_CANCELLED, actor, detail);
          }
          if (job.attempts() >= options.max_attempts) {
            job.set_error(absl::StrCat("given up after ", job.attempts(),
                                       " attempts; the last was ", job.worker(),
                                       "'s"));
            return End(connection, now_us, row, v1::TRAINING_JOB_STATE_FAILED,
                       actor, job.error());
          }
          job.set_state(v1::TRAINING_JOB_STATE_RUNNING);
          job.set_worker(options.worker);
          job.set_attempts(job.attempts() + 1);
          if (!job.has_started()) {
            *job.mutable_started() = TimeUtil::MicrosecondsToTimestamp(now_us);
          }
          row.lease_until_us =
              now_us + absl::ToInt64Microseconds(options.lease);
          RETURN_IF_ERROR(Change(connection, now_us, row, actor,
                                 taken_over ? "job.taken_over" : "job.running",
                                 detail));
          claimed = std::move(job);
          return absl::OkStatus();
        }));
  }
  return claimed;
}

absl::StatusOr<bool> JobStore::Renew(const v1::TrainingJob& job,
                                     const std::string& worker,
                                     absl::Duration lease) {
  bool cancel = false;
  RETURN_IF_ERROR(
      database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(Row row, LoadOwned(connection, job.id(), worker));
        ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
        row.lease_until_us = now_us + absl::ToInt64Microseconds(lease);
        if (TakeProgress(job, row.job)) {
          row.job.set_revision(row.job.revision() + 1);
        }
        cancel = row.job.cancel_requested();
        return Store(connection, row);
      }));
  return cancel;
}

absl::Status JobStore::SetEvaluating(int64_t id, const std::string& worker) {
  return database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(Row row, LoadOwned(connection, id, worker));
    if (row.job.state() == v1::TRAINING_JOB_STATE_EVALUATING) {
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
    row.job.set_state(v1::TRAINING_JOB_STATE_EVALUATING);
    return Change(connection, now_us, row, WorkerActor(worker),
                  "job.evaluating");
  });
}

absl::Status JobStore::Finish(const v1::TrainingJob& job,
                              const std::string& worker) {
  if (!IsFinal(job.state())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "training job ", job.id(), " cannot end as ", StateName(job.state())));
  }
  return database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
    auto owned = LoadOwned(connection, job.id(), worker);
    if (absl::IsAborted(owned.status())) {
      // The call again whose answer was lost.
      ASSIGN_OR_RETURN(const Row ended, Load(connection, job.id(), ""));
      if (ended.job.state() == job.state() && ended.job.worker() == worker) {
        return absl::OkStatus();
      }
    }
    ASSIGN_OR_RETURN(Row row, std::move(owned));
    ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
    TakeProgress(job, row.job);
    *row.job.mutable_metrics() = job.metrics();
    *row.job.mutable_rejections() = job.rejections();
    row.job.set_error(job.error());
    row.job.set_result_version(job.result_version());
    std::string detail = job.error();
    for (const std::string& rejection : job.rejections()) {
      absl::StrAppend(&detail, detail.empty() ? "" : "; ", rejection);
    }
    return End(connection, now_us, row, job.state(), WorkerActor(worker),
               detail);
  });
}

absl::Status JobStore::Release(int64_t id, const std::string& worker) {
  return database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(Row row, LoadOwned(connection, id, worker));
    ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
    v1::TrainingJob& job = row.job;
    if (job.cancel_requested()) {
      return End(connection, now_us, row, v1::TRAINING_JOB_STATE_CANCELLED,
                 WorkerActor(worker));
    }
    job.set_state(v1::TRAINING_JOB_STATE_QUEUED);
    job.clear_worker();
    job.set_attempts(job.attempts() - 1);
    row.lease_until_us = 0;
    return Change(connection, now_us, row, WorkerActor(worker), "job.released");
  });
}

namespace {

absl::StatusOr<int64_t> NewestPublished(SqlConnection& connection,
                                        const std::string& model) {
  ASSIGN_OR_RETURN(
      const auto rows,
      connection.Query("select coalesce(max(result_version), 0) from jobs "
                       "where model = :model and state = 'succeeded'",
                       1, {model}));
  return SqlInt(rows[0][0]);
}

// Whether the version was not settled before.
absl::StatusOr<bool> Settle(SqlConnection& connection, const std::string& model,
                            int64_t version, const std::string& actor,
                            int64_t now_us) {
  ASSIGN_OR_RETURN(
      const int64_t changed,
      connection.Execute(
          "insert into activations (model, version, server, settled_us) "
          "values (:model, :version, :server, :now) "
          "on conflict (model) do update set version = excluded.version, "
          "server = excluded.server, settled_us = excluded.settled_us "
          "where activations.version < excluded.version",
          {model, version, actor, now_us}));
  return changed > 0;
}

}  // namespace

absl::StatusOr<int64_t> JobStore::NextForActivation(const std::string& model) {
  int64_t newest = 0;
  RETURN_IF_ERROR(
      database_.sql().Read([&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(newest, NewestPublished(connection, model));
        ASSIGN_OR_RETURN(
            const auto settled,
            connection.Query("select coalesce(max(version), 0) from "
                             "activations where model = :model",
                             1, {model}));
        ASSIGN_OR_RETURN(const int64_t last, SqlInt(settled[0][0]));
        if (newest <= last) newest = 0;
        return absl::OkStatus();
      }));
  return newest;
}

absl::Status JobStore::SettleActivation(const std::string& model,
                                        int64_t version,
                                        const v1::AuditEvent& event) {
  return database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
    ASSIGN_OR_RETURN(const bool first,
                     Settle(connection, model, version, event.actor(), now_us));
    return first ? AppendAudit(connection, now_us, event) : absl::OkStatus();
  });
}

absl::Status JobStore::SettleActivations(const std::string& model,
                                         const v1::AuditEvent& event) {
  return database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
    ASSIGN_OR_RETURN(const int64_t newest, NewestPublished(connection, model));
    if (newest > 0) {
      RETURN_IF_ERROR(
          Settle(connection, model, newest, event.actor(), now_us).status());
    }
    return AppendAudit(connection, now_us, event);
  });
}

absl::Status JobStore::Audit(const v1::AuditEvent& event) {
  return database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
    return AppendAudit(connection, now_us, event);
  });
}

absl::StatusOr<std::vector<v1::AuditEvent>> JobStore::ListAudit(
    const std::string& model, int64_t after, int limit) {
  std::string sql =
      "select id, time_us, actor, action, model, job, version, detail from "
      "audit where id > :after";
  std::vector<SqlArg> args = {std::max<int64_t>(after, 0)};
  if (!model.empty()) {
    absl::StrAppend(&sql, " and model = :model");
    args.emplace_back(model);
  }
  const bool newest = after < 0;
  absl::StrAppend(&sql, " order by id ", newest ? "desc" : "asc",
                  " limit :limit");
  args.emplace_back(int64_t{std::max(limit, 0)});
  std::vector<v1::AuditEvent> events;
  RETURN_IF_ERROR(
      database_.sql().Read([&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(const auto rows, connection.Query(sql, 8, args));
        for (const SqlRow& row : rows) {
          v1::AuditEvent& event = events.emplace_back();
          ASSIGN_OR_RETURN(const int64_t id, SqlInt(row[0]));
          ASSIGN_OR_RETURN(const int64_t time_us, SqlInt(row[1]));
          ASSIGN_OR_RETURN(const int64_t job, SqlInt(row[5]));
          ASSIGN_OR_RETURN(const int64_t version, SqlInt(row[6]));
          event.set_id(id);
          *event.mutable_time() = TimeUtil::MicrosecondsToTimestamp(time_us);
          event.set_actor(row[2]);
          event.set_action(row[3]);
          event.set_model(row[4]);
          event.set_job(job);
          event.set_version(version);
          event.set_detail(row[7]);
        }
        return absl::OkStatus();
      }));
  if (newest) std::reverse(events.begin(), events.end());
  return events;
}

std::string StateName(v1::TrainingJobState state) {
  const std::string name = v1::TrainingJobState_Name(state);
  return absl::AsciiStrToLower(absl::StripPrefix(name, "TRAINING_JOB_STATE_"));
}

bool IsFinal(v1::TrainingJobState state) {
  return state == v1::TRAINING_JOB_STATE_SUCCEEDED ||
         state == v1::TRAINING_JOB_STATE_REJECTED ||
         state == v1::TRAINING_JOB_STATE_FAILED ||
         state == v1::TRAINING_JOB_STATE_CANCELLED;
}

}  // namespace vitrine
