#pragma once

// absl::Status as gRPC's own and as google.rpc.Status, details included.

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace vitrine {

// `status` with google.rpc.RetryInfo among its details.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// Payloads become details; OK stays OK. Messages are cut at 2 KiB: they
// travel in a header.
google::rpc::Status ToRpcStatus(const absl::Status& status);
grpc::Status ToGrpcStatus(const absl::Status& status);

// A name that came from a caller, fit for a message: escaped, cut, in quotes.
std::string Quoted(absl::string_view name);

}  // namespace vitrine
