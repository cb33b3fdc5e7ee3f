#pragma once

// Files, durably: whole reads, memory maps, atomic replacement, SHA-256.
// Every error names the path and carries the system's reason.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace vitrine {

// kNotFound when absent; kInvalidArgument when larger than `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     int64_t max_bytes = int64_t{1} << 32);

// Writes `data` to a new file or over an old one and fsyncs it.
absl::Status WriteFile(const std::string& path, absl::string_view data);

// A reader sees the old content or the new one, never a mixture, also after a
// power cut: temporary file beside it, fsync, rename, fsync of the folder.
absl::Status WriteFileAtomically(const std::string& path,
                                 absl::string_view data);

absl::Status SyncFolder(const std::string& path);

// Lower-case hexadecimal SHA-256 of a file's bytes or of `data`.
absl::StatusOr<std::string> Sha256OfFile(const std::string& path);
std::string Sha256(absl::string_view data);

// Names (not paths) of a folder's entries, sorted, without "." and "..".
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path);

absl::Status MakeFolders(const std::string& path);
bool PathExists(const std::string& path);
std::string JoinPath(absl::string_view folder, absl::string_view name);

// A read-only private map of a whole file. The file must not be truncated
// while the map lives; version folders are immutable, so it is not.
class MappedFile {
 public:
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(
      const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  absl::string_view data() const {
    return {static_cast<const char*>(address_), size_};
  }

 private:
  MappedFile(void* address, size_t size) : address_(address), size_(size) {}

  void* const address_;
  const size_t size_;
};

}  // namespace vitrine
