#pragma once

// Internal to store/: the schema, as numbered steps. A step that was released
// is never changed; what is new is a new step.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "store/sql.h"

namespace vitrine {

struct Migration {
  int64_t number = 0;
  std::vector<std::string> sqlite;  // statements, in order
  std::vector<std::string> postgres;
};

// By rising number.
const std::vector<Migration>& Migrations();

// Brings the database up to date, a transaction a step; any number of
// processes may do so at once. kFailedPrecondition: it has steps that
// `migrations` lacks.
absl::Status Migrate(Database::Sql& sql,
                     absl::Span<const Migration> migrations = Migrations());

}  // namespace vitrine
