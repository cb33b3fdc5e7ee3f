#pragma once

// The LibTorch engine as a GPU runs it: a batch goes there in one copy, comes
// back in one, and nothing waits in between.

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "model/engine.h"

namespace vitrine {

// See NewEngine. DEVICE_AUTO is CUDA here; with DEVICE_CPU the same operations
// run on CPU tensors, on the caller's thread: for tests.
absl::StatusOr<std::unique_ptr<Engine>> NewGpuEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options);

}  // namespace vitrine
