#pragma once

// What the client library and the load generator share below the stubs.

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/client.h"

namespace vitrine {

// A channel with the options' credentials, retry policy and limits. Each call
// makes one with connections of its own.
absl::StatusOr<std::shared_ptr<grpc::Channel>> NewChannel(
    const ClientOptions& options);

// The same code and message; the details of google.rpc.Status become payloads.
absl::Status ToAbslStatus(const grpc::Status& status);

}  // namespace vitrine
