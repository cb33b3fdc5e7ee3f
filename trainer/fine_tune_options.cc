#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "store/model_registry.h"
#include "trainer/fine_tune.h"

namespace vitrine {
namespace {

const char* DefaultHeadName(internal::HeadKind kind) {
  switch (kind) {
    case internal::HEAD_KIND_RELEVANCE:
      return "relevance";
    case internal::HEAD_KIND_RECOMMENDATION:
      return "recommendation";
    case internal::HEAD_KIND_INTEREST:
      return "interest";
    default:
      return "classifier";
  }
}

}  // namespace

std::string HeadName(const FitTask& task) {
  return task.head.empty() ? DefaultHeadName(task.kind) : task.head;
}

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
  std::vector<std::string> names;
  for (const FitTask& task : options.tasks) {
    const std::string head = HeadName(task);
    require(!task.data.empty(),
            absl::StrCat("--task for head ", head, " has no --data"));
    require(task.weight > 0,
            absl::StrCat("--task-weight ", task.weight, ": above 0 is needed"));
    require(task.grades.min < task.grades.max,
            absl::StrCat("--grades ", task.grades.min, ":", task.grades.max,
                         ": the first must be the smaller"));
    require(!head.empty() && head.size() <= 63 &&
                std::all_of(head.begin(), head.end(),
                            [](char c) {
                              return absl::ascii_islower(c) ||
                                     absl::ascii_isdigit(c) || c == '_';
                            }),
            absl::StrCat("--head ", head, ": a-z 0-9 _ are allowed"));
    require(head != "embedding", "--head embedding: the name is taken");
    require(std::find(names.begin(), names.end(), head) == names.end(),
            absl::StrCat("two tasks for head ", head,
                         "; name them apart with --head"));
    names.push_back(head);
    const bool needs_items = task.kind == internal::HEAD_KIND_RECOMMENDATION ||
                             task.kind == internal::HEAD_KIND_INTEREST;
    require(!needs_items || !options.items.empty(),
            absl::StrCat("head ", head, " needs --items"));
  }
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
