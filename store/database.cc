#include "store/database.h"

#include <utility>

#include "absl/strings/match.h"
#include "base/status_macros.h"
#include "store/migrations.h"
#include "store/sql.h"

namespace vitrine {
namespace {

class SqlDatabase : public Database {
 public:
  explicit SqlDatabase(std::unique_ptr<Sql> sql) : sql_(std::move(sql)) {}

  std::string Describe() const override { return sql_->Describe(); }
  Sql& sql() override { return *sql_; }

 private:
  const std::unique_ptr<Sql> sql_;
};

}  // namespace

absl::Status Database::CheckAddress(const std::string& url) {
  return Sql::Create({.url = url}).status();
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(
    const DatabaseOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<Sql> sql, Sql::Create(options));
  const absl::Status migrated = Migrate(*sql);
  if (!migrated.ok()) {
    // Errors of the database name it already.
    return absl::StrContains(migrated.message(), sql->Describe())
               ? migrated
               : Annotate(migrated, sql->Describe());
  }
  return std::make_unique<SqlDatabase>(std::move(sql));
}

}  // namespace vitrine
