#include "model/engine.h"

namespace vitrine {

absl::StatusOr<std::unique_ptr<Engine>> NewEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options) {
  return NewTorchEngine(checkpoint, heads, options);
}

}  // namespace vitrine
