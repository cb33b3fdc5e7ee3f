#pragma once

#include "absl/status/status.h"
#include "vitrine/internal/worker.pb.h"

namespace vitrine {

// Fills in the defaults that worker.proto names and checks the whole.
// kInvalidArgument with every error, one a line.
absl::Status ResolveWorkerConfig(internal::WorkerConfig* config);

}  // namespace vitrine
