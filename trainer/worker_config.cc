#include "trainer/worker_config.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "base/proto_duration.h"
#include "store/database.h"
#include "store/model_registry.h"
#include "trainer/recipe.h"

namespace vitrine {

absl::Status ResolveWorkerConfig(internal::WorkerConfig* config) {
  std::vector<std::string> errors;
  const auto error = [&errors](const std::string& field,
                               const std::string& what) {
    errors.push_back(absl::StrCat(field, ": ", what));
  };
  const auto time = [&error](const std::string& field, int64_t fallback,
                             google::protobuf::Duration* duration) {
    const absl::Duration value = FromProtoDuration(*duration);
    if (value == absl::ZeroDuration()) duration->set_seconds(fallback);
    if (value < absl::ZeroDuration() || value > absl::Hours(24 * 366)) {
      error(field, absl::StrCat(absl::FormatDuration(value),
                                " is negative or above a year"));
    }
  };
  if (config->registry().empty()) error("registry", "is required");
  if (config->store().url().empty()) {
    error("store.url", "is required");
  } else {
    const absl::Status address = Database::CheckAddress(config->store().url());
    if (!address.ok()) error("store.url", std::string(address.message()));
  }
  time("store.lock_timeout", 5,
       config->mutable_store()->mutable_lock_timeout());
  time("lease", 30, config->mutable_lease());
  time("poll_interval", 2, config->mutable_poll_interval());
  time("checkpoint_interval", 60, config->mutable_checkpoint_interval());
  if (config->max_attempts() == 0) config->set_max_attempts(10);
  if (config->max_attempts() < 0) {
    error("max_attempts", absl::StrCat(config->max_attempts(), " is negative"));
  }
  if (config->threads() < 0) {
    error("threads", absl::StrCat(config->threads(), " is negative"));
  }
  for (const std::string& model : config->models()) {
    const absl::Status named = CheckModelName(model);
    if (!named.ok()) error("models", std::string(named.message()));
  }
  for (int i = 0; i < config->policies_size(); ++i) {
    internal::TrainingPolicy& policy = *config->mutable_policies(i);
    const std::string field = absl::StrCat("policies[", i, "]");
    const absl::Status named = CheckModelName(policy.model());
    if (!named.ok()) error(field + ".model", std::string(named.message()));
    if (policy.min_new_labels() < 0) {
      error(field + ".min_new_labels",
            absl::StrCat(policy.min_new_labels(), " is negative"));
    }
    if (policy.min_new_labels() == 0 && !policy.has_max_interval()) {
      error(field, "neither min_new_labels nor max_interval is set");
    }
    if (policy.has_max_interval() &&
        FromProtoDuration(policy.max_interval()) < absl::Seconds(1)) {
      error(field + ".max_interval", "is below a second");
    }
    const absl::Status recipe = OptionsOf(policy.recipe()).status();
    if (!recipe.ok()) {
      error(field + ".recipe", std::string(recipe.message()));
    }
  }
  if (errors.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(errors, "\n"));
}

}  // namespace vitrine
