// What the trainer calls of the parts that are not built here, see
// CMakeLists.txt.

#include "model/engine.h"
#include "trainer/commands.h"

namespace vitrine {

absl::StatusOr<std::unique_ptr<Engine>> NewOneDnnEngine(
    const Checkpoint& /*checkpoint*/,
    const std::vector<internal::Head>& /*heads*/,
    const EngineOptions& /*options*/) {
  return absl::UnimplementedError("this program is built without oneDNN");
}

void AddWorkCommand(CLI::App* /*app*/, CommandFunction* /*run*/) {}

}  // namespace vitrine
