#pragma once

// A job's recipe as the options of a run.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/fine_tune.h"
#include "vitrine/internal/manifest.pb.h"
#include "vitrine/v1/admin.pb.h"

namespace vitrine {

// Kind, head and weight of the heads that `recipe` trains: those it names, or,
// where it names none, all of `base`. kInvalidArgument: a head of another kind
// in `base`, or nothing to train.
absl::StatusOr<std::vector<FitTask>> TasksOf(const v1::TrainingRecipe& recipe,
                                             const internal::Manifest& base);

// The options that `recipe` sets; the rest as `fit` has them. kInvalidArgument:
// a schedule or freeze that is none.
absl::StatusOr<FineTuneOptions> OptionsOf(const v1::TrainingRecipe& recipe);

// What the recipe's zeros mean.
double ValidationShareOf(const v1::TrainingRecipe& recipe);
double ReplayShareOf(const v1::TrainingRecipe& recipe);

}  // namespace vitrine
