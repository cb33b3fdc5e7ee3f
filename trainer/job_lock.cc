#include "trainer/job_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace vitrine {

absl::StatusOr<JobLock> JobLock::Take(const std::string& folder) {
  RETURN_IF_ERROR(MakeFolders(folder));
  const std::string path = JoinPath(folder, "lock");
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::InternalError(
        absl::StrCat("open ", path, ": ", std::strerror(errno)));
  }
  JobLock lock(fd);
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno == EWOULDBLOCK) {
    return absl::UnavailableError(
        absl::StrCat(path, " is held by another worker"));
  }
  return absl::InternalError(
      absl::StrCat("lock ", path, ": ", std::strerror(errno)));
}

JobLock::~JobLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace vitrine
