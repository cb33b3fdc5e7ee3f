#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace vitrine {

// Nobody else on this file system works on the job while this lives: a worker
// that was held up past its lease and one that took over would publish twice.
class JobLock {
 public:
  // Makes `folder` where it is not there. kUnavailable: another has it.
  static absl::StatusOr<JobLock> Take(const std::string& folder);
  ~JobLock();
  JobLock(JobLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  JobLock& operator=(JobLock&&) = delete;

 private:
  explicit JobLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace vitrine
