#pragma once

// The rules that requests for training keep.

#include "absl/status/status.h"
#include "vitrine/v1/admin.pb.h"

namespace vitrine {

// kInvalidArgument names the field, such as "recipe.tasks[1].head", and its
// value. What only the model can tell (a head's kind, say) is the worker's to
// check.
absl::Status CheckTraining(const v1::StartTrainingRequest& request);

}  // namespace vitrine
