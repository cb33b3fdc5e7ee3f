#include "trainer/training_policy.h"

#include <vector>

#include "base/status_macros.h"

namespace vitrine {

absl::StatusOr<int64_t> QueueByPolicy(const internal::TrainingPolicy& policy,
                                      const ModelRegistry& registry,
                                      LabelStore& labels, JobStore& jobs,
                                      absl::Time now) {
  const std::string& model = policy.model();
  ASSIGN_OR_RETURN(const int64_t current, registry.ReadCurrent(model));
  if (current == 0) return 0;  // nothing serves yet
  ASSIGN_OR_RETURN(const internal::Manifest manifest,
                   registry.ReadManifest(model, current));
  int64_t seen = manifest.label_watermark();
  absl::Time last = absl::FromUnixSeconds(manifest.created().seconds());
  ASSIGN_OR_RETURN(const std::vector<v1::TrainingJob> newest,
                   jobs.List(model, /*before=*/0, /*limit=*/1));
  if (!newest.empty()) {
    if (!IsFinal(newest[0].state())) return 0;
    seen = std::max(seen, newest[0].label_watermark());
    last = absl::FromUnixSeconds(newest[0].created().seconds());
  }
  ASSIGN_OR_RETURN(const int64_t watermark, labels.Watermark(model));
  if (watermark <= seen) return 0;

  bool due = false;
  if (policy.min_new_labels() > 0) {
    ASSIGN_OR_RETURN(const int64_t count, labels.Count(model, seen, watermark));
    due = count >= policy.min_new_labels();
  }
  if (policy.has_max_interval()) {
    const absl::Duration interval =
        absl::Seconds(policy.max_interval().seconds()) +
        absl::Nanoseconds(policy.max_interval().nanos());
    due = due || now - last >= interval;
  }
  if (!due) return 0;

  v1::TrainingJob job;
  job.set_model(model);
  *job.mutable_recipe() = policy.recipe();
  job.set_base_version(current);
  job.set_label_watermark(watermark);
  job.set_created_by("policy");
  ASSIGN_OR_RETURN(const auto queued, jobs.CreateIfIdle(job));
  return queued.has_value() ? queued->id() : 0;
}

}  // namespace vitrine
