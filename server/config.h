#pragma once

// The server's configuration: defaults and checks over config.proto.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"
#include "vitrine/internal/config.pb.h"

namespace vitrine {

// Fills in the defaults that config.proto names and checks the whole,
// including that folders and files exist. kInvalidArgument with every error,
// one a line, each naming the field and its value. On an error `*config` is
// left part filled.
absl::Status ResolveServerConfig(internal::ServerConfig* config);

// "host:port", "[::1]:port"; nothing else. The host may not be empty.
struct HostPort {
  std::string host;
  int port = 0;
};
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

// The token in admin.token_file: its first line. kInvalidArgument: too short
// for a secret, or not printable ASCII.
absl::StatusOr<std::string> ReadAdminToken(const std::string& path);

// Cores this process may use: its affinity, and the quota of its control
// group where there is one, at least 1.
int AvailableCores();

}  // namespace vitrine
