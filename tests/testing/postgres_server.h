#pragma once

// A PostgreSQL server of Debian's binaries in a temporary folder, reached by a
// socket in it. Durability is off: it is for tests.
//
// It stops with the object, and with the thread that started it, however that
// ends. Started by root, it runs as another user, as it insists on.

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace vitrine::testing {

class PostgresServer {
 public:
  // kNotFound: PostgreSQL is not installed.
  static absl::StatusOr<std::unique_ptr<PostgresServer>> Start();
  ~PostgresServer();
  PostgresServer(const PostgresServer&) = delete;
  PostgresServer& operator=(const PostgresServer&) = delete;

  // The address of a new, empty database.
  absl::StatusOr<std::string> NewDatabase();

  // Ends all connections and the server; what was committed stays.
  void Stop();
  // Starts it again after Stop().
  absl::Status StartAgain();

 private:
  PostgresServer(std::string binaries, std::string folder)
      : binaries_(std::move(binaries)), folder_(std::move(folder)) {}

  std::string Address(const std::string& database) const;

  const std::string binaries_;
  const std::string folder_;

  pid_t process_ = -1;
  int databases_ = 0;
};

}  // namespace vitrine::testing
