#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

absl::Status ErrnoStatus(absl::string_view doing, const std::string& path,
                         int error) {
  return absl::Status(
      absl::ErrnoToStatusCode(error),
      absl::StrCat(doing, " ", path, ": ", std::strerror(error)));
}

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

absl::Status WriteAll(int fd, const std::string& path, absl::string_view data) {
  while (!data.empty()) {
    const ssize_t n = write(fd, data.data(), data.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus("write", path, errno);
    }
    data.remove_prefix(n);
  }
  if (fsync(fd) != 0) return ErrnoStatus("fsync", path, errno);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     int64_t max_bytes) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus("open", path, errno);
  std::string out;
  struct stat info;
  if (fstat(fd.get(), &info) == 0 && S_ISREG(info.st_mode)) {
    if (info.st_size > max_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": ", info.st_size, " bytes > ", max_bytes, " allowed"));
    }
    out.reserve(info.st_size);
  }
  std::string chunk(1 << 16, '\0');
  while (true) {
    const ssize_t n = read(fd.get(), chunk.data(), chunk.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus("read", path, errno);
    }
    if (n == 0) return out;
    out.append(chunk.data(), n);
    if (static_cast<int64_t>(out.size()) > max_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": more than ", max_bytes, " bytes"));
    }
  }
}

absl::Status WriteFile(const std::string& path, absl::string_view data) {
  const Fd fd(
      open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (fd.get() < 0) return ErrnoStatus("create", path, errno);
  return WriteAll(fd.get(), path, data);
}

absl::Status WriteFileAtomically(const std::string& path,
                                 absl::string_view data) {
  // Two threads of one process may write the same file at once.
  static std::atomic<uint64_t> serial{0};
  const std::string temporary =
      absl::StrCat(path, ".tmp.", getpid(), ".", serial++);
  absl::Status status = WriteFile(temporary, data);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
    status = ErrnoStatus("rename to", path, errno);
  }
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return SyncFolder(parent.empty() ? "." : parent);
}

absl::Status SyncFolder(const std::string& path) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus("open", path, errno);
  if (fsync(fd.get()) != 0) return ErrnoStatus("fsync", path, errno);
  return absl::OkStatus();
}

absl::StatusOr<std::string> Sha256OfFile(const std::string& path) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus("open", path, errno);
  Sha256Stream stream;
  std::string chunk(1 << 20, '\0');
  while (true) {
    const ssize_t n = read(fd.get(), chunk.data(), chunk.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus("read", path, errno);
    }
    if (n == 0) return stream.FinishHex();
    stream.Add({chunk.data(), static_cast<size_t>(n)});
  }
}

std::string Sha256(absl::string_view data) {
  Sha256Stream stream;
  stream.Add({data.data(), data.size()});
  return stream.FinishHex();
}

absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::directory_iterator it(path, error);
  if (error) return ErrnoStatus("list", path, error.value());
  std::vector<std::string> names;
  for (const std::filesystem::directory_iterator end; it != end;
       it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) return ErrnoStatus("list", path, error.value());
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status MakeFolders(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return ErrnoStatus("create folder", path, error.value());
  return absl::OkStatus();
}

bool PathExists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

std::string JoinPath(absl::string_view folder, absl::string_view name) {
  if (folder.empty()) return std::string(name);
  if (folder.back() == '/') return absl::StrCat(folder, name);
  return absl::StrCat(folder, "/", name);
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(
    const std::string& path) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus("open", path, errno);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus("stat", path, errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a file"));
  }
  void* address = nullptr;
  if (info.st_size > 0) {
    address = mmap(nullptr, info.st_size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (address == MAP_FAILED) return ErrnoStatus("map", path, errno);
  }
  return std::unique_ptr<MappedFile>(new MappedFile(address, info.st_size));
}

MappedFile::~MappedFile() {
  if (size_ > 0) munmap(address_, size_);
}

}  // namespace vitrine
