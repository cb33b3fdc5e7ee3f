#include "store/migrations.h"

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

// Times are in microseconds (us) or milliseconds (ms) since the epoch. Columns
// named `payload`, `job` and `asked` are serialized messages in base64.
//
// Texts of PostgreSQL's keys are compared as bytes: other orders are slower,
// and change with the system's libraries, which breaks indices.

Migration LabelsJobsAudit() {
  return {
      .number = 1,
      .sqlite =
          {
              "create table labels ("
              "  number integer primary key autoincrement,"
              "  model text not null,"
              "  feedback_id text not null,"
              "  kind text not null,"
              "  received_ms integer not null,"
              "  payload text not null,"
              "  unique (model, feedback_id))",
              "create index labels_of_model on labels (model, number)",

              // A queued job's lease is 0: it has run out.
              "create table jobs ("
              "  id integer primary key autoincrement,"
              "  model text not null,"
              "  idempotency_key text not null,"
              "  asked text not null,"
              "  state text not null,"
              "  lease_until_us integer not null,"
              "  result_version integer not null,"
              "  job text not null)",
              "create unique index jobs_key on jobs (model, idempotency_key)"
              "  where idempotency_key <> ''",
              "create index jobs_of_model on jobs (model, id)",
              "create index jobs_open on jobs (id)"
              "  where state in ('queued', 'running', 'evaluating')",

              // The newest version that policy has activated, or failed to.
              "create table activations ("
              "  model text primary key not null,"
              "  version integer not null,"
              "  server text not null,"
              "  settled_us integer not null)",

              "create table audit ("
              "  id integer primary key autoincrement,"
              "  time_us integer not null,"
              "  actor text not null,"
              "  action text not null,"
              "  model text not null,"
              "  job integer not null,"
              "  version integer not null,"
              "  detail text not null)",
              "create index audit_of_model on audit (model, id)",
              "create trigger audit_no_update before update on audit begin"
              "  select raise(abort, 'the audit trail is append-only'); end",
              "create trigger audit_no_delete before delete on audit begin"
              "  select raise(abort, 'the audit trail is append-only'); end",
              // INSERT OR REPLACE deletes without the trigger above.
              "create trigger audit_no_replace before insert on audit"
              "  when exists (select 1 from audit where id = new.id) begin"
              "  select raise(abort, 'the audit trail is append-only'); end",
          },
      .postgres = {
          "create table labels ("
          "  number bigserial primary key,"
          "  model text collate \"C\" not null,"
          "  feedback_id text collate \"C\" not null,"
          "  kind text not null,"
          "  received_ms bigint not null,"
          "  payload text not null,"
          "  unique (model, feedback_id))",
          "create index labels_of_model on labels (model, number)",

          "create table jobs ("
          "  id bigserial primary key,"
          "  model text collate \"C\" not null,"
          "  idempotency_key text collate \"C\" not null,"
          "  asked text not null,"
          "  state text collate \"C\" not null,"
          "  lease_until_us bigint not null,"
          "  result_version bigint not null,"
          "  job text not null)",
          "create unique index jobs_key on jobs (model, idempotency_key)"
          "  where idempotency_key <> ''",
          "create index jobs_of_model on jobs (model, id)",
          "create index jobs_open on jobs (id)"
          "  where state in ('queued', 'running', 'evaluating')",

          "create table activations ("
          "  model text collate \"C\" primary key,"
          "  version bigint not null,"
          "  server text not null,"
          "  settled_us bigint not null)",

          "create table audit ("
          "  id bigserial primary key,"
          "  time_us bigint not null,"
          "  actor text not null,"
          "  action text not null,"
          "  model text collate \"C\" not null,"
          "  job bigint not null,"
          "  version bigint not null,"
          "  detail text not null)",
          "create index audit_of_model on audit (model, id)",
          "create function audit_refuse() returns trigger"
          "  language plpgsql as 'begin"
          "  raise exception ''the audit trail is append-only''; end'",
          "create trigger audit_no_change before update or delete on audit"
          "  for each row execute function audit_refuse()",
          "create trigger audit_no_truncate before truncate on audit"
          "  for each statement execute function audit_refuse()",
      }};
}

// Applies the next step; returns whether there was one.
absl::StatusOr<bool> Step(SqlConnection& connection,
                          absl::Span<const Migration> migrations) {
  RETURN_IF_ERROR(connection.Lock(SqlLock::kMigrations));
  RETURN_IF_ERROR(connection
                      .Execute("create table if not exists schema_migrations ("
                               "  number bigint primary key,"
                               "  applied_us bigint not null)")
                      .status());
  ASSIGN_OR_RETURN(
      const auto rows,
      connection.Query("select coalesce(max(number), 0) from schema_migrations",
                       1));
  ASSIGN_OR_RETURN(const int64_t have, SqlInt(rows[0][0]));
  const int64_t known = migrations.empty() ? 0 : migrations.back().number;
  if (have > known) {
    return absl::FailedPreconditionError(
        absl::StrCat("its schema is at step ", have,
                     ", and this program knows steps up to ", known));
  }
  for (const Migration& migration : migrations) {
    if (migration.number <= have) continue;
    for (const std::string& statement :
         connection.dialect() == SqlDialect::kSqlite ? migration.sqlite
                                                     : migration.postgres) {
      RETURN_IF_ERROR(Annotate(connection.Execute(statement).status(),
                               absl::StrCat("schema step ", migration.number)));
    }
    ASSIGN_OR_RETURN(const int64_t now_us, connection.NowMicros());
    RETURN_IF_ERROR(connection
                        .Execute("insert into schema_migrations (number, "
                                 "applied_us) values (:number, :now)",
                                 {migration.number, now_us})
                        .status());
    Log(LogLevel::kInfo, "schema_step_applied", {{"step", migration.number}});
    return true;
  }
  return false;
}

}  // namespace

const std::vector<Migration>& Migrations() {
  static const auto& migrations =
      *new std::vector<Migration>{LabelsJobsAudit()};
  return migrations;
}

absl::Status Migrate(Database::Sql& sql,
                     absl::Span<const Migration> migrations) {
  bool more = true;
  while (more) {
    RETURN_IF_ERROR(sql.Write([&](SqlConnection& connection) -> absl::Status {
      ASSIGN_OR_RETURN(more, Step(connection, migrations));
      return absl::OkStatus();
    }));
  }
  return absl::OkStatus();
}

}  // namespace vitrine
