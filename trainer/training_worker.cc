#include "trainer/training_worker.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/process.h"
#include "base/proto_duration.h"
#include "base/status_macros.h"
#include "trainer/fine_tune.h"
#include "trainer/heartbeat.h"
#include "trainer/job_lock.h"
#include "trainer/label_dataset.h"
#include "trainer/pass_device.h"
#include "trainer/recipe.h"
#include "trainer/training_policy.h"

namespace vitrine {
namespace {

constexpr char kJobsFolder[] = ".jobs";
constexpr char kDataFolder[] = "data";
constexpr char kCheckpointFolder[] = "checkpoint";
constexpr char kTensorBoardFolder[] = "tensorboard";
// After the store could not be reached.
constexpr absl::Duration kRetry = absl::Seconds(5);

void Remove(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) {
    Log(LogLevel::kWarning, "not_removed",
        {{"path", path}, {"error", error.message()}});
  }
}

std::string JobsFolder(const std::string& registry, const std::string& model) {
  return JoinPath(JoinPath(registry, model), kJobsFolder);
}

// What a job's folder holds that nobody needs once it has ended.
bool HasWorkFiles(const std::string& folder) {
  return PathExists(JoinPath(folder, kDataFolder)) ||
         PathExists(JoinPath(folder, kCheckpointFolder));
}
void RemoveWorkFiles(const std::string& folder) {
  Remove(JoinPath(folder, kDataFolder));
  Remove(JoinPath(folder, kCheckpointFolder));
}

v1::EvaluationMetric ToMetric(const std::string& head,
                              const MetricValue& metric) {
  v1::EvaluationMetric out;
  out.set_head(head);
  out.set_name(metric.name);
  out.set_value(metric.value);
  out.set_lower_is_better(metric.lower_is_better);
  return out;
}

// What FineTune tells, as the job's progress.
class ProgressListener : public FineTuneListener {
 public:
  ProgressListener(JobStore& jobs, const std::string& worker,
                   Heartbeat& heartbeat)
      : jobs_(jobs), worker_(worker), heartbeat_(heartbeat) {}

  void OnStart(const FineTuneReport& report) override {
    for (const HeadReport& head : report.heads) heads_.push_back(head.name);
    for (const std::string& warning : report.warnings) {
      Log(LogLevel::kWarning, "training",
          {{"job", heartbeat_.job().id()}, {"warning", warning}});
    }
  }
  void OnStep(const StepProgress& step) override {
    heartbeat_.Update([&](v1::TrainingJob& job) {
      v1::TrainingProgress& progress = *job.mutable_progress();
      progress.set_epoch(step.epoch);
      progress.set_epochs(step.epochs);
      // Over all epochs: those before had about as many steps.
      progress.set_step((step.epoch - 1) * step.steps + step.step);
      progress.set_steps(step.epochs * step.steps);
      progress.set_loss(step.loss);
      progress.set_examples_per_second(step.examples_per_second);
      progress.mutable_eta()->set_seconds(
          static_cast<int64_t>(step.eta_seconds));
    });
  }
  void OnEpoch(int, double, bool,
               const std::vector<std::vector<MetricValue>>& metrics) override {
    heartbeat_.Update([&](v1::TrainingJob& job) {
      job.mutable_progress()->clear_metrics();
      for (size_t head = 0; head < metrics.size(); ++head) {
        for (const MetricValue& metric : metrics[head]) {
          *job.mutable_progress()->add_metrics() =
              ToMetric(heads_[head], metric);
        }
      }
    });
  }
  void OnJudge() override {
    const absl::Status status =
        jobs_.SetEvaluating(heartbeat_.job().id(), worker_);
    if (!status.ok()) {
      Log(LogLevel::kWarning, "state_not_stored",
          {{"job", heartbeat_.job().id()}, {"error", status}});
    }
  }

 private:
  JobStore& jobs_;
  const std::string worker_;
  Heartbeat& heartbeat_;
  std::vector<std::string> heads_;
};

// The version that an earlier worker published for the job before it could say
// so; 0: none.
absl::StatusOr<int64_t> PublishedBy(const v1::TrainingJob& job,
                                    const ModelRegistry& registry) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> versions,
                   registry.ListVersions(job.model()));
  for (const int64_t version : versions) {
    if (version <= job.base_version()) continue;
    const absl::StatusOr<internal::Manifest> manifest =
        registry.ReadManifest(job.model(), version);
    // More than the number is compared: a store that was set up anew counts its
    // jobs from 1 again.
    if (manifest.ok() && manifest->job() == job.id() &&
        manifest->parent() == job.base_version() &&
        manifest->label_watermark() == job.label_watermark() &&
        manifest->recipe() == job.recipe().ShortDebugString()) {
      return version;
    }
  }
  return 0;
}

// What a published version says of the run that made it.
absl::StatusOr<FineTuneReport> ReportOfVersion(const ModelRegistry& registry,
                                               const std::string& model,
                                               int64_t version) {
  ASSIGN_OR_RETURN(const internal::Manifest manifest,
                   registry.ReadManifest(model, version));
  FineTuneReport report;
  report.version = version;
  report.folder = registry.VersionFolder(model, version);
  report.data_digest = manifest.data_digest();
  for (const internal::Metric& metric : manifest.metrics()) {
    v1::EvaluationMetric& to = report.metrics.emplace_back();
    to.set_head(metric.head());
    to.set_name(metric.name());
    to.set_value(metric.value());
    to.set_lower_is_better(metric.lower_is_better());
    if (!std::isnan(metric.before())) to.set_before(metric.before());
    if (metric.has_change_low()) to.set_change_low(metric.change_low());
    if (metric.has_change_high()) to.set_change_high(metric.change_high());
  }
  return report;
}

}  // namespace

TrainingWorker::TrainingWorker(const internal::WorkerConfig& config,
                               Database& database)
    : config_(config),
      registry_(config.registry()),
      labels_(database),
      jobs_(database),
      name_(HostAndPid()) {}

void TrainingWorker::Run(const std::atomic<bool>& stop) {
  const absl::Duration poll = FromProtoDuration(config_.poll_interval());
  while (!stop) {
    const absl::StatusOr<bool> worked = RunOnce(stop);
    absl::Duration pause = absl::ZeroDuration();
    if (!worked.ok()) {
      Log(LogLevel::kError, "worker_failed", {{"error", worked.status()}});
      pause = std::max(kRetry, poll);
    } else if (!*worked) {
      pause = poll;
    }
    const absl::Time until = absl::Now() + pause;
    while (!stop && absl::Now() < until) {
      absl::SleepFor(std::min(absl::Milliseconds(50), until - absl::Now()));
    }
  }
}

absl::StatusOr<bool> TrainingWorker::RunOnce(const std::atomic<bool>& stop) {
  RETURN_IF_ERROR(QueueByPolicies());
  JobStore::ClaimOptions claim;
  claim.worker = name_;
  claim.models.assign(config_.models().begin(), config_.models().end());
  claim.lease = FromProtoDuration(config_.lease());
  claim.max_attempts = config_.max_attempts();
  ASSIGN_OR_RETURN(const std::optional<v1::TrainingJob> job,
                   jobs_.Claim(claim));
  if (!job.has_value()) return false;
  RemoveLeftovers(job->model());
  RETURN_IF_ERROR(RunJob(*job, stop));
  return true;
}

absl::Status TrainingWorker::Finish(const v1::TrainingJob& job) {
  // The lease outlives a store that is away for a moment; to train again would
  // be dearer.
  const absl::Time until = absl::Now() + FromProtoDuration(config_.lease()) / 2;
  absl::Status status;
  do {
    status = jobs_.Finish(job, name_);
    if (!absl::IsUnavailable(status)) break;
    absl::SleepFor(absl::Milliseconds(200));
  } while (absl::Now() < until);
  Log(status.ok() ? LogLevel::kInfo : LogLevel::kError, "job_ended",
      {{"job", job.id()},
       {"state", StateName(job.state())},
       {"version", job.result_version()},
       {"rejections", absl::StrJoin(job.rejections(), "; ")},
       {"error", status.ok() ? job.error() : status.ToString()}});
  return status;
}

void TrainingWorker::RemoveLeftovers(const std::string& model) {
  const absl::Status staging = registry_.RemoveStaleStaging(model);
  if (!staging.ok() && !absl::IsNotFound(staging)) {
    Log(LogLevel::kWarning, "staging_not_removed",
        {{"model", model}, {"error", staging}});
  }
  const std::string jobs = JobsFolder(config_.registry(), model);
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(jobs);
  if (!names.ok()) return;  // no job yet
  for (const std::string& name : *names) {
    const std::string folder = JoinPath(jobs, name);
    int64_t id = 0;
    if (!absl::SimpleAtoi(name, &id) || !HasWorkFiles(folder)) continue;
    const absl::StatusOr<v1::TrainingJob> job = jobs_.Get(id);
    if (!job.ok() || !IsFinal(job->state())) continue;
    const absl::StatusOr<JobLock> lock = JobLock::Take(folder);
    if (lock.ok()) RemoveWorkFiles(folder);
  }
}

absl::Status TrainingWorker::QueueByPolicies() {
  for (const internal::TrainingPolicy& policy : config_.policies()) {
    const absl::StatusOr<int64_t> job =
        QueueByPolicy(policy, registry_, labels_, jobs_, absl::Now());
    if (absl::IsNotFound(job.status())) continue;  // no such model yet
    if (absl::IsUnavailable(job.status())) return job.status();
    if (!job.ok()) {
      // One model's damage keeps no other model's jobs waiting.
      Log(LogLevel::kError, "policy_failed",
          {{"model", policy.model()}, {"error", job.status()}});
    } else if (*job > 0) {
      Log(LogLevel::kInfo, "job_queued",
          {{"job", *job}, {"model", policy.model()}, {"by", "policy"}});
    }
  }
  return absl::OkStatus();
}

namespace {

// What one job needs on its way.
struct JobRun {
  const internal::WorkerConfig& config;
  const ModelRegistry& registry;
  LabelStore& labels;
  JobStore& jobs;
  const std::string& worker;
  const std::string folder;
  Heartbeat& heartbeat;

  absl::StatusOr<LabelDataset> MakeData(const v1::TrainingJob& job) {
    // Made again by every worker that takes the job: the same labels give the
    // same files, and half of a file is never mistaken for the whole.
    const std::string data = JoinPath(folder, kDataFolder);
    Remove(data);
    RETURN_IF_ERROR(MakeFolders(data));
    ASSIGN_OR_RETURN(const internal::Manifest base,
                     registry.ReadManifest(job.model(), job.base_version()));
    LabelDatasetOptions options;
    options.model = job.model();
    options.base_watermark = base.label_watermark();
    options.watermark = job.label_watermark();
    options.validation_share = ValidationShareOf(job.recipe());
    options.replay_share = ReplayShareOf(job.recipe());
    options.seed = std::max<uint64_t>(1, job.recipe().seed());
    ASSIGN_OR_RETURN(options.tasks, TasksOf(job.recipe(), base));
    options.skip_empty = job.recipe().tasks().empty();
    return WriteLabelDataset(labels, options, data);
  }

  absl::StatusOr<FineTuneReport> Go(const v1::TrainingJob& job) {
    ASSIGN_OR_RETURN(const int64_t published, PublishedBy(job, registry));
    if (published > 0) {
      // A worker was killed between publishing and saying so.
      return ReportOfVersion(registry, job.model(), published);
    }
    return Train(job);
  }

  absl::StatusOr<FineTuneReport> Train(const v1::TrainingJob& job) {
    ASSIGN_OR_RETURN(const LabelDataset data, MakeData(job));
    heartbeat.Update([&data](v1::TrainingJob& job) {
      job.set_training_rows(data.training_rows);
      job.set_validation_rows(data.validation_rows);
    });
    ASSIGN_OR_RETURN(FineTuneOptions options, OptionsOf(job.recipe()));
    const auto version = [&job](int64_t number) {
      return absl::StrCat(job.model(), "/", number);
    };
    options.from = version(job.base_version());
    ASSIGN_OR_RETURN(const int64_t current, registry.ReadCurrent(job.model()));
    if (current > 0 && current != job.base_version()) {
      options.incumbent = version(current);
    }
    options.registry = config.registry();
    options.model = job.model();
    options.items = data.items;
    options.tasks = data.tasks;
    ASSIGN_OR_RETURN(options.device, ChoosePassDevice(internal::DEVICE_AUTO));
    options.threads = config.threads();
    options.checkpoint_folder = JoinPath(folder, kCheckpointFolder);
    options.checkpoint_seconds =
        absl::ToDoubleSeconds(FromProtoDuration(config.checkpoint_interval()));
    options.tensorboard_folder = JoinPath(folder, kTensorBoardFolder);
    options.publish = !job.dry_run();
    options.job = job.id();
    options.label_watermark = job.label_watermark();
    ProgressListener listener(jobs, worker, heartbeat);
    return FineTune(options, &listener, heartbeat.stop());
  }
};

void FillOutcome(const absl::StatusOr<FineTuneReport>& report,
                 v1::TrainingJob* job) {
  if (!report.ok()) {
    job->set_state(v1::TRAINING_JOB_STATE_FAILED);
    job->set_error(std::string(report.status().message()));
    return;
  }
  for (const v1::EvaluationMetric& metric : report->metrics) {
    *job->add_metrics() = metric;
  }
  job->set_data_digest(report->data_digest);
  if (report->rejected) {
    job->set_state(v1::TRAINING_JOB_STATE_REJECTED);
    job->mutable_rejections()->Assign(report->rejections.begin(),
                                      report->rejections.end());
    return;
  }
  job->set_state(v1::TRAINING_JOB_STATE_SUCCEEDED);
  job->set_result_version(report->version);
}

}  // namespace

absl::Status TrainingWorker::RunJob(v1::TrainingJob job,
                                    const std::atomic<bool>& stop) {
  Log(LogLevel::kInfo, "job_taken",
      {{"job", job.id()},
       {"model", job.model()},
       {"attempt", job.attempts()},
       {"base", job.base_version()},
       {"labels", job.label_watermark()}});
  const std::string folder = JoinPath(
      JobsFolder(config_.registry(), job.model()), absl::StrCat(job.id()));
  const absl::StatusOr<JobLock> lock = JobLock::Take(folder);
  if (absl::IsUnavailable(lock.status())) {
    // Its worker lives, though its lease ran out. It will hear of that.
    RETURN_IF_ERROR(jobs_.Release(job.id(), name_));
    return lock.status();
  }
  if (!lock.ok()) {
    // A registry that cannot be written: said at once, not after as many
    // attempts as there may be.
    FillOutcome(lock.status(), &job);
    return Finish(job);
  }

  absl::StatusOr<FineTuneReport> report = absl::UnknownError("not trained");
  bool cancelled = false, lost = false;
  {
    Heartbeat heartbeat(jobs_, job, name_, FromProtoDuration(config_.lease()),
                        stop);
    report =
        JobRun{config_, registry_, labels_, jobs_, name_, folder, heartbeat}.Go(
            job);
    heartbeat.End();
    cancelled = heartbeat.cancelled();
    lost = heartbeat.lost();
    job = heartbeat.job();
  }
  if (lost) {
    Log(LogLevel::kWarning, "job_lost", {{"job", job.id()}});
    return absl::OkStatus();
  }
  const bool interrupted = absl::IsCancelled(report.status());
  if (interrupted && cancelled) {
    job.set_state(v1::TRAINING_JOB_STATE_CANCELLED);
  } else if (interrupted || absl::IsUnavailable(report.status())) {
    // The worker is stopped, or the store cannot be read: later, then.
    Log(LogLevel::kInfo, "job_released",
        {{"job", job.id()}, {"why", report.status()}});
    RETURN_IF_ERROR(jobs_.Release(job.id(), name_));
    return interrupted ? absl::OkStatus() : report.status();
  } else {
    FillOutcome(report, &job);
  }
  RETURN_IF_ERROR(Finish(job));
  RemoveWorkFiles(folder);
  return absl::OkStatus();
}

}  // namespace vitrine
