#pragma once

// Queues jobs that nobody asks for: after so many labels, or so long.

#include <functional>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "store/job_store.h"
#include "store/label_store.h"
#include "store/model_registry.h"
#include "vitrine/internal/worker.pb.h"

namespace vitrine {

// Queues a job for policy.model where the policy asks for one, from the version
// in service and with all labels. Labels count as new that came after the last
// job of the model, however that ended (a job that was rejected would be
// rejected again on the same labels), or, where there was none, after the
// watermark of the version in service. Returns the job's number; 0: it is not
// time, or a job of the model is still to end. Any number of workers may ask.
absl::StatusOr<int64_t> QueueByPolicy(const internal::TrainingPolicy& policy,
                                      const ModelRegistry& registry,
                                      LabelStore& labels, JobStore& jobs,
                                      absl::Time now);

}  // namespace vitrine
