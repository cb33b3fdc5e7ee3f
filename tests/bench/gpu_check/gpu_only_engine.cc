// NewEngine where only the GPU engine is built, see CMakeLists.txt.

#include "model/engine.h"
#include "model/gpu_engine.h"

namespace vitrine {

absl::StatusOr<std::unique_ptr<Engine>> NewEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options) {
  return NewGpuEngine(checkpoint, heads, options);
}

}  // namespace vitrine
