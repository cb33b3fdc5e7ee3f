#pragma once

// The rules that entries of feedback keep.

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/request_checks.h"
#include "vitrine/v1/feedback.pb.h"

namespace vitrine {

inline constexpr size_t kMaxFeedbackIdBytes = 128;

// kInvalidArgument names the field and its value. Texts are checked for
// presence and size, an item for an id or a title.
absl::Status CheckFeedback(const RequestChecks& checks, absl::Time now,
                           const v1::Feedback& feedback);

}  // namespace vitrine
