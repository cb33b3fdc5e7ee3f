#pragma once

#include <atomic>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "store/job_store.h"
#include "vitrine/v1/admin.pb.h"

namespace vitrine {

// Tells the store that the worker lives and how far its job is, and hears
// whether it is to stop. Owns a thread.
class Heartbeat {
 public:
  Heartbeat(JobStore& jobs, v1::TrainingJob job, std::string worker,
            absl::Duration lease, const std::atomic<bool>& worker_stop);
  ~Heartbeat() { End(); }

  // Set when the run is to end: the worker is stopped, or one of the two below.
  const std::atomic<bool>& stop() const { return stop_; }
  bool cancelled() const { return cancelled_; }
  // The job is another worker's by now, or may be.
  bool lost() const { return lost_; }

  // Changes the job that the next beat stores.
  template <typename Change>
  void Update(const Change& change) {
    MutexLock lock(mu_);
    change(job_);
  }
  v1::TrainingJob job();
  // No beat comes after it.
  void End();

 private:
  void Work();
  absl::Status Beat();

  JobStore& jobs_;
  const std::string worker_;
  const absl::Duration lease_;
  const std::atomic<bool>& worker_stop_;
  std::atomic<bool> stop_{false}, cancelled_{false}, lost_{false};

  Mutex mu_;
  CondVar wake_;
  v1::TrainingJob job_ ABSL_GUARDED_BY(mu_);
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time renewed_;  // of the thread alone

  std::thread thread_;  // last: it uses the rest
};

}  // namespace vitrine
