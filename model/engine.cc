#include "model/engine.h"

#include <ATen/Context.h>

namespace vitrine {

absl::StatusOr<std::unique_ptr<Engine>> NewEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options) {
  const bool cuda = options.device == internal::DEVICE_CUDA ||
                    (options.device == internal::DEVICE_AUTO && at::hasCUDA());
  const bool torch = options.kind == internal::ENGINE_KIND_TORCH ||
                     (options.kind == internal::ENGINE_KIND_AUTO && cuda &&
                      options.dtype != internal::DTYPE_INT8);
  return torch ? NewTorchEngine(checkpoint, heads, options)
               : NewOneDnnEngine(checkpoint, heads, options);
}

}  // namespace vitrine
