#include "store/sql.h"

#include <soci/soci-config.h>
// Debian's SOCI offers Boost's types in its headers, which we do not use, and
// does not bring Boost along.
#undef SOCI_HAVE_BOOST
#undef SOCI_HAVE_BOOST_DATE_TIME

#include <libpq-fe.h>
#include <soci/postgresql/soci-postgresql.h>
#include <soci/soci.h>
#include <soci/sqlite3/soci-sqlite3.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <exception>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/mutex.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

// SQLite has one writer at a time, whatever the number of connections.
constexpr int kSqliteWriters = 1;
constexpr int kPostgresWriters = 4;
constexpr int kReaders = 4;
// Statements with lists of varying length must not pile up.
constexpr size_t kMaxPrepared = 64;
// How often a connection looks whether another has let go of the database.
constexpr absl::Duration kLockPoll = absl::Milliseconds(1);
// The first key of our advisory locks; the second is the SqlLock.
constexpr int64_t kLockSpace = 0x76697472;  // "vitr"

// Where a database is and how it is spoken to.
struct Address {
  SqlDialect dialect = SqlDialect::kSqlite;
  std::string path;      // SQLite's
  std::string conninfo;  // libpq's
  std::string name;      // for messages and logs
  absl::Duration lock_timeout;
};

absl::StatusOr<Address> ParseSqlite(std::string path) {
  if (path.empty() || path == ":memory:") {
    return absl::InvalidArgumentError(
        absl::StrCat("database address sqlite:", path, ": no path of a file"));
  }
  // SOCI's connection string has no way to say these.
  if (path.find_first_of(std::string("\"\0", 2)) != std::string::npos) {
    return absl::InvalidArgumentError(
        "database address: an SQLite path with a quote or NUL in it");
  }
  Address address;
  address.name = absl::StrCat("sqlite:", path);
  address.path = std::move(path);
  return address;
}

absl::StatusOr<Address> ParsePostgres(const std::string& url) {
  // libpq's own messages repeat the address, and with it what may be secret.
  const std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> options(
      PQconninfoParse(url.c_str(), nullptr), &PQconninfoFree);
  if (options == nullptr) {
    return absl::InvalidArgumentError(
        "database address is not of the form "
        "postgresql://USER@HOST:PORT/NAME?passfile=FILE");
  }
  std::map<std::string, std::string> values = {
      {"application_name", "vitrine"},
      {"connect_timeout", "5"},
      // A host that is gone is noticed.
      {"keepalives_idle", "30"},
      {"tcp_user_timeout", "20000"}};
  for (const PQconninfoOption* o = options.get(); o->keyword != nullptr; ++o) {
    if (o->val == nullptr) continue;
    if (absl::string_view(o->keyword) == "password" ||
        absl::string_view(o->keyword) == "sslpassword") {
      return absl::InvalidArgumentError(
          "database address: a password does not belong here; use "
          "?passfile=FILE");
    }
    values[o->keyword] = o->val;
  }
  Address address;
  address.dialect = SqlDialect::kPostgres;
  for (const auto& [key, value] : values) {
    absl::StrAppend(&address.conninfo, key, "='",
                    absl::StrReplaceAll(value, {{"\\", "\\\\"}, {"'", "\\'"}}),
                    "' ");
  }
  const auto value = [&values](const char* key, const char* otherwise) {
    const auto found = values.find(key);
    return found == values.end() ? std::string(otherwise) : found->second;
  };
  address.name = absl::StrCat("postgresql://", value("user", ""), "@",
                              value("host", "localhost"), ":",
                              value("port", "5432"), "/", value("dbname", ""));
  return address;
}

absl::StatusOr<Address> ParseAddress(const DatabaseOptions& options) {
  absl::StatusOr<Address> address = absl::InvalidArgumentError(
      "database address begins with neither sqlite: nor postgresql:");
  absl::string_view rest = options.url;
  if (absl::ConsumePrefix(&rest, "sqlite:")) {
    address = ParseSqlite(std::string(rest));
  } else if (absl::StartsWith(rest, "postgresql://") ||
             absl::StartsWith(rest, "postgres://")) {
    address = ParsePostgres(options.url);
  }
  if (address.ok()) address->lock_timeout = options.lock_timeout;
  return address;
}

absl::StatusCode CodeOfSqlite(int code, int system_error) {
  if (system_error == ENOSPC || system_error == EDQUOT) {
    return absl::StatusCode::kResourceExhausted;
  }
  switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_INTERRUPT:
    case SQLITE_PROTOCOL:
    case SQLITE_IOERR:
      return absl::StatusCode::kUnavailable;
    case SQLITE_FULL:
    case SQLITE_NOMEM:
    case SQLITE_TOOBIG:
      return absl::StatusCode::kResourceExhausted;
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_AUTH:
    case SQLITE_NOTADB:
      return absl::StatusCode::kFailedPrecondition;
    case SQLITE_CORRUPT:
      return absl::StatusCode::kDataLoss;
    default:
      return absl::StatusCode::kInternal;
  }
}

absl::StatusCode CodeOfPostgres(const std::string& state) {
  const std::string family = state.substr(0, 2);
  if (state == "53300" ||  // too many connections
      state == "55P03" ||  // lock timeout
      family == "08" ||    // connection
      family == "40" ||    // serialization, deadlock
      family == "57") {    // shutting down, starting, cancelled
    return absl::StatusCode::kUnavailable;
  }
  if (family == "53" || family == "54") {
    return absl::StatusCode::kResourceExhausted;
  }
  if (state == "25006" || state == "42501" || family == "28" ||
      family == "3D") {
    return absl::StatusCode::kFailedPrecondition;
  }
  if (family == "22") return absl::StatusCode::kInvalidArgument;
  if (state == "25P03") return absl::StatusCode::kUnavailable;
  return absl::StatusCode::kInternal;
}

class Connection : public SqlConnection {
 public:
  static absl::StatusOr<std::unique_ptr<Connection>> Open(
      const Address& address) {
    std::unique_ptr<Connection> connection(new Connection(address));
    RETURN_IF_ERROR(address.dialect == SqlDialect::kSqlite
                        ? connection->OpenSqlite()
                        : connection->OpenPostgres());
    return connection;
  }

  SqlDialect dialect() const override { return address_.dialect; }

  absl::StatusOr<std::vector<SqlRow>> Query(const std::string& sql, int columns,
                                            std::vector<SqlArg> args) override {
    std::vector<SqlRow> rows;
    RETURN_IF_ERROR(Run(sql, columns, std::move(args), &rows).status());
    return rows;
  }

  absl::StatusOr<int64_t> Execute(const std::string& sql,
                                  std::vector<SqlArg> args) override {
    return Run(sql, 0, std::move(args), nullptr);
  }

  absl::StatusOr<int64_t> NowMicros() override {
    if (dialect() == SqlDialect::kSqlite) {
      return absl::ToUnixMicros(absl::Now());
    }
    ASSIGN_OR_RETURN(const auto rows,
                     Query("select cast(extract(epoch from clock_timestamp()) "
                           "* 1000000 as bigint)",
                           1, {}));
    return SqlInt(rows[0][0]);
  }

  absl::Status Lock(SqlLock lock) override {
    if (dialect() == SqlDialect::kSqlite) return absl::OkStatus();
    return Query(
               "select pg_advisory_xact_lock(cast(:space as integer), "
               "cast(:lock as integer))",
               1, {kLockSpace, static_cast<int64_t>(lock)})
        .status();
  }

  // Begins a transaction that will write.
  absl::Status Begin() {
    return Execute(dialect() == SqlDialect::kSqlite
                       ? "begin immediate"
                       : "begin isolation level read committed",
                   {})
        .status();
  }
  absl::Status Commit() { return Execute("commit", {}).status(); }
  void Rollback() {
    // Some errors have already made SQLite do it.
    if (dialect() == SqlDialect::kSqlite &&
        sqlite_api::sqlite3_get_autocommit(sqlite()) != 0) {
      return;
    }
    if (!Execute("rollback", {}).ok()) broken_ = true;
  }

  // Not to be used again.
  bool broken() const { return broken_; }

 private:
  // A statement with the places that SOCI takes arguments from and puts
  // columns into.
  struct Prepared {
    Prepared(soci::session& session, const std::string& sql, int columns,
             std::vector<SqlArg> initial)
        : args(std::move(initial)),
          row(columns),
          nulls(columns),
          statement(session) {
      numbers.reserve(args.size());
      for (SqlArg& arg : args) {
        if (std::string* const text = std::get_if<std::string>(&arg)) {
          statement.exchange(soci::use(*text));
        } else {
          numbers.push_back(0);
          statement.exchange(soci::use(numbers.back()));
        }
      }
      for (int c = 0; c < columns; ++c) {
        statement.exchange(soci::into(row[c], nulls[c]));
      }
      statement.alloc();
      statement.prepare(sql);
      statement.define_and_bind();
    }

    bool Take(std::vector<SqlArg> values) {
      if (values.size() != args.size()) return false;
      size_t number = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        if (values[i].index() != args[i].index()) return false;
        if (std::string* const text = std::get_if<std::string>(&values[i])) {
          std::get<std::string>(args[i]) = std::move(*text);
        } else {
          numbers[number++] = std::get<int64_t>(values[i]);
        }
      }
      return true;
    }

    std::vector<SqlArg> args;        // of which the texts are bound
    std::vector<long long> numbers;  // NOLINT: SOCI's 64-bit integer
    std::vector<std::string> row;
    std::vector<soci::indicator> nulls;
    soci::statement statement;
  };

  explicit Connection(const Address& address) : address_(address) {}

  sqlite_api::sqlite3* sqlite() {
    return static_cast<soci::sqlite3_session_backend*>(session_.get_backend())
        ->conn_;
  }
  PGconn* postgres() {
    return static_cast<soci::postgresql_session_backend*>(
               session_.get_backend())
        ->conn_;
  }

  absl::Status OpenSqlite() {
    const size_t slash = address_.path.rfind('/');
    const std::string folder =
        slash == std::string::npos ? "." : address_.path.substr(0, slash + 1);
    struct stat found;
    if (stat(folder.c_str(), &found) != 0 || !S_ISDIR(found.st_mode)) {
      return absl::FailedPreconditionError(
          absl::StrCat(address_.name, ": there is no folder ", folder));
    }
    try {
      session_.open(soci::sqlite3,
                    absl::StrCat("db=\"", address_.path, "\" timeout=0"));
    } catch (const soci::sqlite3_soci_error& error) {
      return absl::Status(CodeOfSqlite(error.result(), 0),
                          Message(error.get_error_message()));
    } catch (const std::exception& error) {
      return absl::UnavailableError(Message(error.what()));
    }
    if (sqlite_api::sqlite3_db_readonly(sqlite(), "main") == 1) {
      return absl::FailedPreconditionError(
          absl::StrCat(address_.name, " is read-only"));
    }
    sqlite_api::sqlite3_busy_handler(sqlite(), &Connection::OnBusy, this);
    RETURN_IF_ERROR(EnterWal());
    // FULL: what is committed is on disk. The limit: a log that grew under a
    // long read is cut when it is done with.
    RETURN_IF_ERROR(Execute("pragma synchronous = full", {}).status());
    return Query("pragma journal_size_limit = 67108864", 1, {}).status();
  }

  // SQLite asks, the `tries`-th time, whether to try for a lock once more. Its
  // own sqlite3_busy_timeout soon looks ten times a second only, and never
  // finds the lock free while another process writes without a pause.
  static int OnBusy(void* connection, int tries) {
    auto& self = *static_cast<Connection*>(connection);
    const absl::Time now = absl::Now();
    if (tries == 0) self.busy_since_ = now;
    if (now - self.busy_since_ >= self.address_.lock_timeout) return 0;
    absl::SleepFor(kLockPoll);
    return 1;
  }

  // SQLite does not wait where two connections make a file WAL's at once.
  absl::Status EnterWal() {
    const absl::Time deadline = absl::Now() + address_.lock_timeout;
    while (true) {
      const auto mode = Query("pragma journal_mode = wal", 1, {});
      if (mode.ok() && !mode->empty() && (*mode)[0][0] == "wal") {
        return absl::OkStatus();
      }
      if (mode.ok()) {
        return absl::FailedPreconditionError(absl::StrCat(
            address_.name, ": its file system has no write-ahead log"));
      }
      if (!absl::IsUnavailable(mode.status()) || absl::Now() >= deadline) {
        return mode.status();
      }
      absl::SleepFor(absl::Milliseconds(10));
    }
  }

  absl::Status OpenPostgres() {
    try {
      session_.open(soci::postgresql, address_.conninfo);
    } catch (const soci::soci_error& error) {
      return absl::UnavailableError(Message(error.get_error_message()));
    } catch (const std::exception& error) {
      return absl::UnavailableError(Message(error.what()));
    }
    // Details of errors hold values of rows, which do not belong in logs.
    PQsetErrorVerbosity(postgres(), PQERRORS_TERSE);
    PQsetNoticeProcessor(
        postgres(), [](void*, const char*) {}, nullptr);
    RETURN_IF_ERROR(
        Execute(absl::StrCat("set lock_timeout = ",
                             std::max<int64_t>(1, absl::ToInt64Milliseconds(
                                                      address_.lock_timeout))),
                {})
            .status());
    // A host that is cut off within a transaction must not hold its locks.
    RETURN_IF_ERROR(
        Execute("set idle_in_transaction_session_timeout = 60000", {})
            .status());
    // What is committed is on disk, whatever the server's default.
    return Query(
               "select set_config('synchronous_commit', 'on', false) where "
               "current_setting('synchronous_commit') = 'off'",
               1, {})
        .status();
  }

  absl::StatusOr<int64_t> Run(const std::string& sql, int columns,
                              std::vector<SqlArg> args,
                              std::vector<SqlRow>* rows) {
    for (size_t i = 0; i < args.size(); ++i) {
      const std::string* const text = std::get_if<std::string>(&args[i]);
      // PostgreSQL's texts hold none, and libpq would cut there.
      if (text != nullptr && text->find('\0') != std::string::npos) {
        return absl::InvalidArgumentError(
            absl::StrCat(address_.name, ": a NUL byte in a text"));
      }
    }
    try {
      auto found = prepared_.find(sql);
      if (found == prepared_.end()) {
        if (prepared_.size() >= kMaxPrepared) prepared_.clear();
        found = prepared_
                    .emplace(sql, std::make_unique<Prepared>(session_, sql,
                                                             columns, args))
                    .first;
      }
      Prepared& p = *found->second;
      if (columns != static_cast<int>(p.row.size()) ||
          !p.Take(std::move(args))) {
        return absl::InternalError(
            absl::StrCat("arguments of another kind for: ", sql));
      }
      for (bool more = p.statement.execute(true); more && columns > 0;
           more = p.statement.fetch()) {
        for (int c = 0; c < columns; ++c) {
          if (p.nulls[c] == soci::i_null) p.row[c].clear();
        }
        rows->push_back(p.row);
      }
      return p.statement.get_affected_rows();
    } catch (const std::exception& error) {
      const absl::Status status = Translate(error);
      prepared_.erase(sql);  // SOCI has finalized it, or it may not exist
      return status;
    }
  }

  absl::Status Translate(const std::exception& error) {
    const auto* const soci_error =
        dynamic_cast<const soci::soci_error*>(&error);
    // what() adds the statement's arguments.
    const std::string message =
        Message(soci_error == nullptr ? std::string(error.what())
                                      : soci_error->get_error_message());
    if (const auto* const e =
            dynamic_cast<const soci::sqlite3_soci_error*>(&error)) {
      // The code of the exception, or of the handle where it is more precise.
      const int extended = sqlite_api::sqlite3_extended_errcode(sqlite());
      const bool io = (e->result() & 0xff) == SQLITE_IOERR ||
                      (e->result() & 0xff) == SQLITE_CANTOPEN;
      const int code =
          (extended & 0xff) == (e->result() & 0xff) ? extended : e->result();
      return absl::Status(
          CodeOfSqlite(code,
                       io ? sqlite_api::sqlite3_system_errno(sqlite()) : 0),
          absl::StrCat(message, " (SQLite code ", code, ")"));
    }
    if (dialect() == SqlDialect::kPostgres &&
        PQstatus(postgres()) != CONNECTION_OK) {
      broken_ = true;
      return absl::UnavailableError(message);
    }
    if (const auto* const e =
            dynamic_cast<const soci::postgresql_soci_error*>(&error)) {
      return absl::Status(
          CodeOfPostgres(e->sqlstate()),
          absl::StrCat(message, " (SQLSTATE ", e->sqlstate(), ")"));
    }
    return absl::InternalError(message);
  }

  std::string Message(absl::string_view message) const {
    return absl::StrCat(
        address_.name, ": ",
        absl::StripAsciiWhitespace(absl::StrReplaceAll(
            absl::StripAsciiWhitespace(message), {{"\n", " "}})));
  }

  const Address& address_;
  bool broken_ = false;
  absl::Time busy_since_;
  soci::session session_;
  // After the session, which must outlive them.
  std::map<std::string, std::unique_ptr<Prepared>> prepared_;
};

// Connections that are open, and leave to open more.
class Pool {
 public:
  Pool(const Address& address, int limit) : address_(address), limit_(limit) {}

  absl::StatusOr<std::unique_ptr<Connection>> Take() {
    {
      MutexLock lock(mu_);
      const auto deadline = std::chrono::steady_clock::now() +
                            absl::ToChronoNanoseconds(address_.lock_timeout);
      while (idle_.empty() && open_ == limit_) {
        if (!returned_.WaitUntil(mu_, deadline) && idle_.empty() &&
            open_ == limit_) {
          return absl::UnavailableError(absl::StrCat(
              address_.name, ": all ", limit_, " connections are busy"));
        }
      }
      if (!idle_.empty()) {
        std::unique_ptr<Connection> connection = std::move(idle_.back());
        idle_.pop_back();
        return connection;
      }
      ++open_;
    }
    absl::StatusOr<std::unique_ptr<Connection>> connection =
        Connection::Open(address_);
    if (!connection.ok()) {
      MutexLock lock(mu_);
      --open_;
      returned_.NotifyOne();
    }
    return connection;
  }

  void Return(std::unique_ptr<Connection> connection) {
    std::vector<std::unique_ptr<Connection>> closed;  // after the lock
    MutexLock lock(mu_);
    if (connection->broken()) {
      // What broke one has likely broken those that lie idle: the next calls
      // connect anew instead of failing one by one.
      closed.swap(idle_);
      closed.push_back(std::move(connection));
      open_ -= static_cast<int>(closed.size());
    } else {
      idle_.push_back(std::move(connection));
    }
    returned_.NotifyOne();
  }

 private:
  const Address& address_;
  const int limit_;

  Mutex mu_;
  CondVar returned_;
  std::vector<std::unique_ptr<Connection>> idle_ ABSL_GUARDED_BY(mu_);
  int open_ ABSL_GUARDED_BY(mu_) = 0;
};

class PooledSql : public Database::Sql {
 public:
  explicit PooledSql(Address address)
      : address_(std::move(address)),
        writers_(address_, address_.dialect == SqlDialect::kSqlite
                               ? kSqliteWriters
                               : kPostgresWriters),
        readers_(address_, kReaders) {}

  std::string Describe() const override { return address_.name; }

  absl::Status Write(
      absl::FunctionRef<absl::Status(SqlConnection&)> body) override {
    ASSIGN_OR_RETURN(std::unique_ptr<Connection> connection, writers_.Take());
    absl::Status status = connection->Begin();
    if (status.ok()) {
      status = body(*connection);
      if (status.ok()) status = connection->Commit();
      if (!status.ok()) connection->Rollback();
    }
    writers_.Return(std::move(connection));
    return status;
  }

  absl::Status Read(
      absl::FunctionRef<absl::Status(SqlConnection&)> body) override {
    ASSIGN_OR_RETURN(std::unique_ptr<Connection> connection, readers_.Take());
    const absl::Status status = body(*connection);
    readers_.Return(std::move(connection));
    return status;
  }

 private:
  const Address address_;

  Pool writers_;
  Pool readers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Database::Sql>> Database::Sql::Create(
    const DatabaseOptions& options) {
  ASSIGN_OR_RETURN(Address address, ParseAddress(options));
  return std::make_unique<PooledSql>(std::move(address));
}

absl::StatusOr<int64_t> SqlInt(const std::string& text) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value)) {
    return absl::DataLossError("a column of the database holds no integer");
  }
  return value;
}

}  // namespace vitrine
