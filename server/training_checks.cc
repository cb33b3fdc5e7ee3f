#include "server/training_checks.h"

#include <cmath>
#include <set>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/grpc_status.h"

namespace vitrine {
namespace {

constexpr size_t kMaxKeyBytes = 128;
constexpr int kMaxTasks = 64;
constexpr int kMaxRules = 256;

template <typename T>
absl::Status InRange(absl::string_view field, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();  // not NaN either
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, " is not in [", low, ", ", high, "]"));
}

absl::Status CheckHeadName(const std::string& field, const std::string& head) {
  constexpr size_t kMaxBytes = 64;
  if (head.size() <= kMaxBytes &&
      head.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") ==
          std::string::npos) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", Quoted(head),
                   " is not of the form [a-z0-9_]{1,", kMaxBytes, "}"));
}

// The head that a task without one trains.
absl::string_view OwnHead(v1::TrainingTaskKind kind) {
  switch (kind) {
    case v1::TRAINING_TASK_KIND_RELEVANCE:
      return "relevance";
    case v1::TRAINING_TASK_KIND_RECOMMENDATION:
      return "recommendation";
    default:
      return "interest";
  }
}

absl::Status CheckTasks(const v1::TrainingRecipe& recipe) {
  RETURN_IF_ERROR(InRange("recipe.tasks", recipe.tasks_size(), 0, kMaxTasks));
  std::set<std::string> heads;
  for (int i = 0; i < recipe.tasks_size(); ++i) {
    const v1::TrainingTask& task = recipe.tasks(i);
    const std::string path = absl::StrCat("recipe.tasks[", i, "]");
    if (task.kind() == v1::TRAINING_TASK_KIND_UNSPECIFIED ||
        !v1::TrainingTaskKind_IsValid(task.kind())) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ".kind: ", static_cast<int>(task.kind()), " is unknown"));
    }
    if (task.kind() == v1::TRAINING_TASK_KIND_CLASSIFICATION &&
        task.head().empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ".head: is needed for classification: the labels' head"));
    }
    RETURN_IF_ERROR(CheckHeadName(path + ".head", task.head()));
    RETURN_IF_ERROR(InRange(path + ".weight", task.weight(), 0.0, 1e6));
    const std::string head(task.head().empty() ? OwnHead(task.kind())
                                               : task.head());
    if (!heads.insert(head).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": the head ", head, " is there twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckGate(const v1::Gate& gate) {
  RETURN_IF_ERROR(
      InRange("recipe.gate.rules", gate.rules_size(), 0, kMaxRules));
  for (int i = 0; i < gate.rules_size(); ++i) {
    const v1::GateRule& rule = gate.rules(i);
    const std::string path = absl::StrCat("recipe.gate.rules[", i, "]");
    if (rule.metric().empty()) {
      return absl::InvalidArgumentError(path + ".metric: is empty");
    }
    RETURN_IF_ERROR(CheckHeadName(path + ".head", rule.head()));
    if (!rule.has_bound() && !rule.has_min_change()) {
      return absl::InvalidArgumentError(
          path + ": asks for nothing; set bound or min_change");
    }
    if (rule.has_bound()) {
      RETURN_IF_ERROR(InRange(path + ".bound", rule.bound(), -1e9, 1e9));
    }
    if (rule.has_min_change()) {
      RETURN_IF_ERROR(
          InRange(path + ".min_change", rule.min_change(), -1e9, 1e9));
    }
    if (!v1::GateEvidence_IsValid(rule.evidence())) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".evidence: ", static_cast<int>(rule.evidence()),
                       " is unknown"));
    }
  }
  if (gate.confidence() != 0) {
    RETURN_IF_ERROR(
        InRange("recipe.gate.confidence", gate.confidence(), 0.5, 0.9999));
  }
  RETURN_IF_ERROR(
      InRange("recipe.gate.resamples", gate.resamples(), 0, 1000000));
  RETURN_IF_ERROR(InRange("recipe.gate.max_latency_ratio",
                          gate.max_latency_ratio(), -1e6, 1e6));
  return InRange("recipe.gate.min_validation_rows", gate.min_validation_rows(),
                 0, 1 << 30);
}

absl::Status CheckRecipe(const v1::TrainingRecipe& recipe) {
  RETURN_IF_ERROR(CheckTasks(recipe));
  RETURN_IF_ERROR(InRange("recipe.epochs", recipe.epochs(), 0, 10000));
  RETURN_IF_ERROR(
      InRange("recipe.learning_rate", recipe.learning_rate(), 0.0, 1.0));
  RETURN_IF_ERROR(InRange("recipe.head_learning_rate",
                          recipe.head_learning_rate(), 0.0, 1.0));
  RETURN_IF_ERROR(
      InRange("recipe.batch_size", recipe.batch_size(), 0, 1 << 20));
  const std::string& schedule = recipe.schedule();
  if (!schedule.empty() && schedule != "linear" && schedule != "cosine" &&
      schedule != "constant") {
    return absl::InvalidArgumentError(
        absl::StrCat("recipe.schedule: ", Quoted(schedule),
                     " is neither linear, cosine nor constant"));
  }
  int layers = 0;
  const std::string& freeze = recipe.freeze();
  if (!freeze.empty() && freeze != "none" && freeze != "encoder" &&
      (!absl::SimpleAtoi(freeze, &layers) || layers < 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("recipe.freeze: ", Quoted(freeze),
                     " is neither none, encoder nor a number of layers"));
  }
  RETURN_IF_ERROR(InRange("recipe.patience", recipe.patience(), 0, 10000));
  RETURN_IF_ERROR(
      InRange("recipe.validation_share", recipe.validation_share(), 0.0, 0.9));
  RETURN_IF_ERROR(
      InRange("recipe.replay_share", recipe.replay_share(), 0.0, 1.0));
  if (!v1::RelevanceLoss_IsValid(recipe.relevance_loss())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "recipe.relevance_loss: ", static_cast<int>(recipe.relevance_loss()),
        " is unknown"));
  }
  RETURN_IF_ERROR(
      InRange("recipe.temperature", recipe.temperature(), 0.0, 100.0));
  RETURN_IF_ERROR(
      InRange("recipe.weight_decay", recipe.weight_decay(), 0.0, 10.0));
  RETURN_IF_ERROR(InRange("recipe.dropout", recipe.dropout(), 0.0, 0.99));
  return CheckGate(recipe.gate());
}

}  // namespace

absl::Status CheckTraining(const v1::StartTrainingRequest& request) {
  if (request.idempotency_key().size() > kMaxKeyBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("idempotency_key: ", request.idempotency_key().size(),
                     " bytes > ", kMaxKeyBytes));
  }
  // Databases end a text at its first NUL: two keys would be one.
  if (request.idempotency_key().find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("idempotency_key: ", Quoted(request.idempotency_key()),
                     " holds a NUL"));
  }
  if (request.base_version() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("base_version: ", request.base_version(), " is negative"));
  }
  if (request.label_watermark() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "label_watermark: ", request.label_watermark(), " is negative"));
  }
  return CheckRecipe(request.recipe());
}

}  // namespace vitrine
