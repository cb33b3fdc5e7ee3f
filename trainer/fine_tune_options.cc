#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "store/model_registry.h"
#include "trainer/fine_tune.h"

namespace vitrine {
absl::Status CheckOptions(const FineTuneOptions& options) {
  std::vector<std::string> errors;
  const auto require = [&errors](bool good, std::string error) {
    if (!good) errors.push_back(std::move(error));
  };
  require(!options.tasks.empty(), "at least one --task is needed");
  const absl::Status name = CheckModelName(options.model);
  require(name.ok(), absl::StrCat("--model: ", name.message()));
  require(!options.registry.empty(), "--out: empty");
  require(options.learning_rate > 0 && options.learning_rate < 100,
          absl::StrCat("--learning-rate ", options.learning_rate,
                       ": above 0 is needed"));
  require(options.head_learning_rate >= 0,
          absl::StrCat("--head-learning-rate ", options.head_learning_rate,
                       ": below 0"));
  require(options.warmup >= 0 && options.warmup < 1,
          absl::StrCat("--warmup ", options.warmup, ": outside [0, 1)"));
  require(options.batch_size >= 1,
          absl::StrCat("--batch-size ", options.batch_size, ": below 1"));
  require(options.batch_tokens >= 1,
          absl::StrCat("--batch-tokens ", options.batch_tokens, ": below 1"));
  require(options.epochs >= 1,
          absl::StrCat("--epochs ", options.epochs, ": below 1"));
  require(options.weight_decay >= 0,
          absl::StrCat("--weight-decay ", options.weight_decay, ": below 0"));
  require(options.dropout < 1,
          absl::StrCat("--dropout ", options.dropout, ": outside [0, 1)"));
  require(options.attention_dropout < 1,
          absl::StrCat("--attention-dropout ", options.attention_dropout,
                       ": outside [0, 1)"));
  require(options.clip >= 0,
          absl::StrCat("--clip ", options.clip, ": below 0"));
  require(options.patience >= 0,
          absl::StrCat("--patience ", options.patience, ": below 0"));
  require(options.validation_share >= 0 && options.validation_share < 1,
          absl::StrCat("--validation-share ", options.validation_share,
                       ": outside [0, 1)"));
  require(options.temperature > 0,
          absl::StrCat("--temperature ", options.temperature,
                       ": above 0 is needed"));
  require(options.targets_per_user >= 0,
          absl::StrCat("--targets-per-user ", options.targets_per_user,
                       ": below 0"));
  require(options.threads >= 0 && options.threads <= 1024,
          absl::StrCat("--threads ", options.threads, ": outside 0 to 1024"));
  require(options.checkpoint_seconds > 0,
          absl::StrCat("checkpoint_seconds ", options.checkpoint_seconds,
                       ": above 0 is needed"));
  require(
      options.checkpoint_steps >= 0,
      absl::StrCat("checkpoint_steps ", options.checkpoint_steps, ": below 0"));
  CheckTasks(options.tasks, options.items, &errors);
  require(options.incumbent.empty() || options.gate.has_value(),
          absl::StrCat("--incumbent ", options.incumbent, ": without --gate"));
  if (options.gate.has_value()) {
    std::vector<GateHead> heads;
    for (const FitTask& task : options.tasks) {
      heads.push_back({HeadName(task), task.kind});
    }
    const absl::Status gate = CheckGate(*options.gate, heads);
    require(gate.ok(), std::string(gate.message()));
  }
  if (errors.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(errors, "\n"));
}

}  // namespace vitrine
