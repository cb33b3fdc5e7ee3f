#include "trainer/heartbeat.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/clock.h"
#include "base/log.h"

namespace vitrine {

Heartbeat::Heartbeat(JobStore& jobs, v1::TrainingJob job, std::string worker,
                     absl::Duration lease, const std::atomic<bool>& worker_stop)
    : jobs_(jobs),
      worker_(std::move(worker)),
      lease_(lease),
      worker_stop_(worker_stop),
      job_(std::move(job)),
      renewed_(absl::Now()) {
  thread_ = std::thread([this] { Work(); });
}

v1::TrainingJob Heartbeat::job() {
  MutexLock lock(mu_);
  return job_;
}

absl::Status Heartbeat::Beat() {
  const absl::StatusOr<bool> cancelled = jobs_.Renew(job(), worker_, lease_);
  if (cancelled.ok()) {
    renewed_ = absl::Now();
    if (*cancelled) {
      cancelled_ = true;
      stop_ = true;
    }
  } else if (absl::IsAborted(cancelled.status()) ||
             absl::Now() - renewed_ > lease_) {
    lost_ = true;
    stop_ = true;
  }
  return cancelled.status();
}

void Heartbeat::End() {
  {
    MutexLock lock(mu_);
    ending_ = true;
  }
  wake_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

void Heartbeat::Work() {
  // Often enough that one or two may fail.
  const auto interval = absl::ToChronoMilliseconds(
      std::clamp(lease_ / 4, absl::Milliseconds(50), absl::Seconds(2)));
  while (true) {
    {
      MutexLock lock(mu_);
      if (!ending_) {
        wake_.WaitUntil(mu_, std::chrono::steady_clock::now() + interval);
      }
      if (ending_) return;
    }
    if (worker_stop_) stop_ = true;
    const absl::Status status = Beat();
    if (!status.ok()) {
      Log(LogLevel::kWarning, "heartbeat_failed",
          {{"job", job().id()}, {"error", status}});
    }
  }
}

}  // namespace vitrine
