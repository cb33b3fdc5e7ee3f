#pragma once

// Takes training jobs from the store and brings them to an end: labels to data
// set, training, gate, publishing.
//
// A job's files are in <registry>/<model>/.jobs/<id>/: the data set, the
// checkpoint that another worker goes on from, TensorBoard's events. The first
// two go when the job ends.

#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "store/database.h"
#include "store/job_store.h"
#include "store/label_store.h"
#include "store/model_registry.h"
#include "vitrine/internal/worker.pb.h"

namespace vitrine {

class TrainingWorker {
 public:
  // `config` is resolved; `database` outlives the worker.
  TrainingWorker(const internal::WorkerConfig& config, Database& database);

  // Until `stop` is set: queues jobs by the policies, takes what is queued, one
  // job at a time. A job that is under way when `stop` is set is given back,
  // with a checkpoint where there is one. A store that cannot be reached is
  // tried again.
  void Run(const std::atomic<bool>& stop);

  // The same, once: the policies, then at most one job. Whether there was one.
  absl::StatusOr<bool> RunOnce(const std::atomic<bool>& stop);

 private:
  absl::Status QueueByPolicies();
  // What was left behind by workers that were killed, and by jobs that were
  // ended while nobody had them.
  void RemoveLeftovers(const std::string& model);
  // Ends the job, or gives it back.
  absl::Status RunJob(v1::TrainingJob job, const std::atomic<bool>& stop);
  absl::Status Finish(const v1::TrainingJob& job);

  const internal::WorkerConfig config_;
  const ModelRegistry registry_;
  LabelStore labels_;
  JobStore jobs_;
  const std::string name_;  // "host:pid"
};

}  // namespace vitrine
