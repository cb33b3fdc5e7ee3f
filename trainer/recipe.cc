#include "trainer/recipe.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

internal::HeadKind KindOf(v1::TrainingTaskKind kind) {
  switch (kind) {
    case v1::TRAINING_TASK_KIND_RELEVANCE:
      return internal::HEAD_KIND_RELEVANCE;
    case v1::TRAINING_TASK_KIND_RECOMMENDATION:
      return internal::HEAD_KIND_RECOMMENDATION;
    case v1::TRAINING_TASK_KIND_INTEREST:
      return internal::HEAD_KIND_INTEREST;
    case v1::TRAINING_TASK_KIND_CLASSIFICATION:
      return internal::HEAD_KIND_CLASSIFICATION;
    default:
      return internal::HEAD_KIND_UNSPECIFIED;
  }
}

}  // namespace

absl::StatusOr<std::vector<FitTask>> TasksOf(const v1::TrainingRecipe& recipe,
                                             const internal::Manifest& base) {
  std::vector<FitTask> tasks;
  for (const v1::TrainingTask& wanted : recipe.tasks()) {
    FitTask& task = tasks.emplace_back();
    task.kind = KindOf(wanted.kind());
    task.head = wanted.head();
    if (wanted.weight() > 0) task.weight = wanted.weight();
    const std::string name = HeadName(task);
    for (const internal::Head& head : base.heads()) {
      if (head.name() == name && head.kind() != task.kind) {
        return absl::InvalidArgumentError(
            absl::StrCat("head ", name, " of version ", base.version(),
                         " is of kind ", internal::HeadKind_Name(head.kind())));
      }
    }
  }
  if (!tasks.empty()) return tasks;
  for (const internal::Head& head : base.heads()) {
    FitTask& task = tasks.emplace_back();
    task.kind = head.kind();
    task.head = head.name();
  }
  if (tasks.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("version ", base.version(),
                     " has no heads, and the recipe names no task"));
  }
  return tasks;
}

absl::StatusOr<FineTuneOptions> OptionsOf(const v1::TrainingRecipe& recipe) {
  FineTuneOptions options;
  if (recipe.epochs() > 0) options.epochs = recipe.epochs();
  if (recipe.learning_rate() > 0) {
    options.learning_rate = recipe.learning_rate();
  }
  options.head_learning_rate = recipe.head_learning_rate();
  if (recipe.batch_size() > 0) options.batch_size = recipe.batch_size();
  const std::string& schedule = recipe.schedule();
  if (schedule == "cosine") {
    options.schedule = Schedule::kCosine;
  } else if (schedule == "constant") {
    options.schedule = Schedule::kConstant;
  } else if (!schedule.empty() && schedule != "linear") {
    return absl::InvalidArgumentError(absl::StrCat(
        "schedule: \"", schedule, "\" is neither linear, cosine nor constant"));
  }
  const std::string& freeze = recipe.freeze();
  if (freeze == "encoder") {
    options.freeze = FineTuneOptions::kFreezeEncoder;
  } else if (!freeze.empty() && freeze != "none" &&
             (!absl::SimpleAtoi(freeze, &options.freeze) ||
              options.freeze < 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "freeze: \"", freeze, "\" is neither none, encoder nor a number"));
  }
  options.patience = recipe.patience();
  options.validation_share = ValidationShareOf(recipe);
  if (recipe.seed() > 0) options.seed = recipe.seed();
  if (recipe.relevance_loss() == v1::RELEVANCE_LOSS_LAMBDA) {
    options.relevance_loss = RelevanceLoss::kLambda;
  }
  if (recipe.temperature() > 0) options.temperature = recipe.temperature();
  if (recipe.has_weight_decay()) options.weight_decay = recipe.weight_decay();
  if (recipe.has_dropout()) options.dropout = recipe.dropout();
  options.gate = recipe.gate();
  options.recipe = recipe.ShortDebugString();
  return options;
}

double ValidationShareOf(const v1::TrainingRecipe& recipe) {
  return recipe.validation_share() > 0 ? recipe.validation_share() : 0.1;
}

double ReplayShareOf(const v1::TrainingRecipe& recipe) {
  return recipe.has_replay_share() ? recipe.replay_share() : 0.5;
}

}  // namespace vitrine
