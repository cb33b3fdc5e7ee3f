#pragma once

// Internal to store/: connections to the database and transactions over them,
// in terms that SQLite and PostgreSQL share. Only sql.cc knows SOCI.
//
// Statements name their parameters (":model"), each name once; arguments go by
// place. Results come as text. Statements are prepared once a connection.

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/database.h"

namespace vitrine {

enum class SqlDialect { kSqlite, kPostgres };

using SqlArg = std::variant<int64_t, std::string>;
using SqlRow = std::vector<std::string>;  // "" for null

// What a transaction may hold on to until its end, so that others wait.
enum class SqlLock { kMigrations = 1, kLabels = 2, kJobs = 3, kAudit = 4 };

// One connection, lent to one thread. An error within a transaction leaves
// nothing to do but to return it. Error messages hold no arguments.
class SqlConnection {
 public:
  virtual ~SqlConnection() = default;

  virtual SqlDialect dialect() const = 0;

  // All rows of `columns` columns.
  virtual absl::StatusOr<std::vector<SqlRow>> Query(
      const std::string& sql, int columns, std::vector<SqlArg> args = {}) = 0;
  // How many rows it changed.
  virtual absl::StatusOr<int64_t> Execute(const std::string& sql,
                                          std::vector<SqlArg> args = {}) = 0;

  // Microseconds since the epoch by the database's clock: PostgreSQL's
  // server; with SQLite this host.
  virtual absl::StatusOr<int64_t> NowMicros() = 0;
  // Waits for other transactions that hold `lock`. SQLite has one writing
  // transaction at a time, and nothing to wait for.
  virtual absl::Status Lock(SqlLock lock) = 0;
};

// Pools of connections. Thread-safe.
class Database::Sql {
 public:
  // Opens nothing yet, but kInvalidArgument for an address that is none.
  static absl::StatusOr<std::unique_ptr<Sql>> Create(
      const DatabaseOptions& options);
  virtual ~Sql() = default;

  virtual std::string Describe() const = 0;

  // Runs `body` in a transaction that is committed, durably, when it returns
  // OK, and rolled back otherwise.
  virtual absl::Status Write(
      absl::FunctionRef<absl::Status(SqlConnection&)> body) = 0;
  // Runs `body`, each statement of which sees what was committed when it
  // began.
  virtual absl::Status Read(
      absl::FunctionRef<absl::Status(SqlConnection&)> body) = 0;
};

// An integer column's text; kDataLoss.
absl::StatusOr<int64_t> SqlInt(const std::string& text);

}  // namespace vitrine
