#pragma once

// The database that server and workers share: labels, training jobs, audit
// events. SQLite in WAL mode (one host, nothing to set up) or PostgreSQL
// (several hosts), by the same SQL through SOCI.
//
// Any thread, any number of processes. LabelStore and JobStore are views of it.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace vitrine {

struct DatabaseOptions {
  // "sqlite:PATH", or "postgresql://USER@HOST:PORT/NAME?passfile=FILE" with
  // what else libpq takes there. A password in the address itself is refused:
  // it would be in configuration files and process lists.
  std::string url;
  // How long a statement waits for another writer before kUnavailable.
  absl::Duration lock_timeout = absl::Seconds(5);
};

class Database {
 public:
  // Creates an SQLite file where there is none (its folder must exist), and
  // brings the schema up to date, one migration a transaction.
  // kInvalidArgument: the address. kFailedPrecondition: the schema is newer
  // than this program, the file is read-only or no database, or its folder is
  // not there. kDataLoss: the file is damaged.
  // kUnavailable: it cannot be reached, or is locked.
  // kResourceExhausted: the disk is full.
  static absl::StatusOr<std::unique_ptr<Database>> Open(
      const DatabaseOptions& options);
  // What Open says of the address alone, without reaching for it.
  static absl::Status CheckAddress(const std::string& url);
  virtual ~Database() = default;

  // Without what could be secret, for logs.
  virtual std::string Describe() const = 0;

  // For the stores of this folder; see sql.h.
  class Sql;
  virtual Sql& sql() = 0;
};

}  // namespace vitrine
