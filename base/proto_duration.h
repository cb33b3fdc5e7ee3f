#pragma once

#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"

namespace vitrine {

absl::Duration FromProtoDuration(const google::protobuf::Duration& duration);
// Rounds toward zero, to nanoseconds. `duration` is finite.
google::protobuf::Duration ToProtoDuration(absl::Duration duration);

}  // namespace vitrine
