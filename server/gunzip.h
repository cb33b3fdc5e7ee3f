#pragma once

// Requests that a client compressed with gzip.
//
// gRPC would inflate them itself, but looks at max_message_bytes only after it
// has: a few megabytes could become gigabytes first. So the server takes them
// as they come (see server.cc) and they are inflated here, up to the limit.

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace vitrine {

// By gzip's first two bytes. No protobuf message begins so: they would be a
// field of wire type 7, which does not exist.
bool IsGzip(absl::string_view bytes);

// kResourceExhausted when there is more than `max_bytes`; kInvalidArgument
// when `bytes` is not one whole gzip stream.
absl::StatusOr<std::string> Gunzip(absl::string_view bytes, size_t max_bytes);

}  // namespace vitrine
