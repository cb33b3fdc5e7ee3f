#include "store/model_registry.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "base/textproto.h"

namespace vitrine {
namespace {

constexpr char kManifest[] = "manifest.textproto";
constexpr char kCurrent[] = "CURRENT";
constexpr char kStagingPrefix[] = ".staging-";
constexpr absl::Duration kStale = absl::Hours(24);

absl::Status ErrnoStatus(absl::string_view doing, const std::string& path,
                         int error) {
  return absl::Status(
      absl::ErrnoToStatusCode(error),
      absl::StrCat(doing, " ", path, ": ", std::strerror(error)));
}

// The number of a version folder's name: digits without a leading zero.
std::optional<int64_t> VersionOfName(absl::string_view name) {
  int64_t version = 0;
  if (name.empty() || name.size() > 18 || name.front() == '0' ||
      !std::all_of(name.begin(), name.end(), absl::ascii_isdigit) ||
      !absl::SimpleAtoi(name, &version)) {
    return std::nullopt;
  }
  return version;
}

// Names of the numbered entries, ascending, whatever they hold.
absl::StatusOr<std::vector<int64_t>> NumberedEntries(
    const std::string& folder) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::vector<int64_t> numbers;
  for (const std::string& name : names) {
    if (const auto number = VersionOfName(name)) numbers.push_back(*number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

absl::Status Sync(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("open", path, errno);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  return result == 0 ? absl::OkStatus() : ErrnoStatus("fsync", path, error);
}

// Renames `from` to `to` where nothing is at `to`, an empty folder included;
// EEXIST or ENOTEMPTY otherwise. 0 or the error's number.
int RenameWithoutReplacing(const std::string& from, const std::string& to) {
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(),
                RENAME_NOREPLACE) == 0) {
    return 0;
  }
  if (errno != EINVAL && errno != ENOSYS) return errno;
  // A file system without RENAME_NOREPLACE (NFS): a plain rename refuses a
  // folder that holds anything, and version folders always do.
  return rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

// Digests of every file in `staging`, by name; fsyncs each.
absl::Status DigestFiles(const std::string& staging,
                         internal::Manifest* manifest) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(staging));
  manifest->clear_files();
  for (const std::string& name : names) {
    if (name == kManifest) continue;
    const std::string path = JoinPath(staging, name);
    struct stat info;
    if (lstat(path.c_str(), &info) != 0) {
      return ErrnoStatus("stat", path, errno);
    }
    if (!S_ISREG(info.st_mode)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": a version holds plain files only"));
    }
    RETURN_IF_ERROR(Sync(path));
    internal::FileDigest* const digest = manifest->add_files();
    digest->set_name(name);
    digest->set_size_bytes(info.st_size);
    ASSIGN_OR_RETURN(*digest->mutable_sha256(), Sha256OfFile(path));
  }
  if (manifest->files().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(staging, ": no files to publish"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckModelName(const std::string& name) {
  const auto letter = [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c);
  };
  const bool good = !name.empty() && name.size() <= 63 &&
                    letter(name.front()) &&
                    std::all_of(name.begin(), name.end(), [&letter](char c) {
                      return letter(c) || c == '.' || c == '_' || c == '-';
                    });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "model name \"", absl::CHexEscape(name.substr(0, 80)),
      "\": 1 to 63 of a-z 0-9 . _ - are allowed, a letter or digit first"));
}

absl::StatusOr<internal::Manifest> ReadManifestFile(const std::string& path) {
  internal::Manifest manifest;
  RETURN_IF_ERROR(ReadSealedTextProto(path, &manifest));
  return manifest;
}

std::string ModelRegistry::VersionFolder(const std::string& model,
                                         int64_t version) const {
  return JoinPath(JoinPath(root_, model), absl::StrCat(version));
}

absl::StatusOr<std::vector<std::string>> ModelRegistry::ListModels() const {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(root_));
  std::vector<std::string> models;
  for (const std::string& name : names) {
    if (!CheckModelName(name).ok()) continue;
    std::error_code error;
    if (!std::filesystem::is_directory(JoinPath(root_, name), error)) continue;
    ASSIGN_OR_RETURN(const std::vector<int64_t> versions, ListVersions(name));
    if (!versions.empty()) models.push_back(name);
  }
  return models;
}

absl::StatusOr<std::vector<int64_t>> ModelRegistry::ListVersions(
    const std::string& model) const {
  RETURN_IF_ERROR(CheckModelName(model));
  const std::string folder = JoinPath(root_, model);
  if (!PathExists(folder)) {
    return absl::NotFoundError(absl::StrCat("no model ", model, " in ", root_));
  }
  ASSIGN_OR_RETURN(const std::vector<int64_t> numbers, NumberedEntries(folder));
  std::vector<int64_t> versions;
  for (const int64_t number : numbers) {
    // A numbered folder without a manifest is none of ours: a copy by hand
    // that is still running, say.
    if (PathExists(JoinPath(VersionFolder(model, number), kManifest))) {
      versions.push_back(number);
    }
  }
  return versions;
}

absl::StatusOr<internal::Manifest> ModelRegistry::ReadManifest(
    const std::string& model, int64_t version) const {
  RETURN_IF_ERROR(CheckModelName(model));
  return ReadManifestFile(JoinPath(VersionFolder(model, version), kManifest));
}

absl::StatusOr<int64_t> ModelRegistry::ReadCurrent(
    const std::string& model) const {
  RETURN_IF_ERROR(CheckModelName(model));
  const std::string path = JoinPath(JoinPath(root_, model), kCurrent);
  const absl::StatusOr<std::string> text = ReadFile(path, /*max_bytes=*/64);
  if (absl::IsNotFound(text.status())) return 0;
  if (absl::IsInvalidArgument(text.status())) {
    return absl::DataLossError(text.status().message());
  }
  RETURN_IF_ERROR(text.status());
  const auto version = VersionOfName(absl::StripAsciiWhitespace(*text));
  if (!version) {
    return absl::DataLossError(absl::StrCat(
        path, ": \"", absl::CHexEscape(*text), "\" is no version number"));
  }
  return *version;
}

absl::Status ModelRegistry::WriteCurrent(const std::string& model,
                                         int64_t version) const {
  RETURN_IF_ERROR(CheckModelName(model));
  if (!PathExists(JoinPath(VersionFolder(model, version), kManifest))) {
    return absl::NotFoundError(absl::StrCat("model ", model, " has no version ",
                                            version, " in ", root_));
  }
  return WriteFileAtomically(JoinPath(JoinPath(root_, model), kCurrent),
                             absl::StrCat(version, "\n"));
}

absl::StatusOr<std::string> ModelRegistry::NewStagingFolder(
    const std::string& model) const {
  RETURN_IF_ERROR(CheckModelName(model));
  const std::string folder = JoinPath(root_, model);
  RETURN_IF_ERROR(MakeFolders(folder));
  std::string path = JoinPath(folder, absl::StrCat(kStagingPrefix, "XXXXXX"));
  if (mkdtemp(path.data()) == nullptr) {
    return ErrnoStatus("create folder", path, errno);
  }
  return path;
}

absl::StatusOr<int64_t> ModelRegistry::Publish(
    const std::string& model, const std::string& staging,
    internal::Manifest manifest) const {
  RETURN_IF_ERROR(CheckModelName(model));
  const std::string folder = JoinPath(root_, model);
  const std::string prefix = JoinPath(folder, kStagingPrefix);
  if (!absl::StartsWith(staging, prefix) ||
      absl::StrContains(staging.substr(prefix.size()), '/')) {
    return absl::InvalidArgumentError(
        absl::StrCat(staging, ": not a staging folder of model ", model));
  }
  RETURN_IF_ERROR(DigestFiles(staging, &manifest));
  manifest.set_model(model);
  const absl::Time now = absl::Now();
  manifest.mutable_created()->set_seconds(absl::ToUnixSeconds(now));

  // mkdtemp made it for the owner alone; the server may be another user.
  if (chmod(staging.c_str(), 0755) != 0) {
    return ErrnoStatus("chmod", staging, errno);
  }
  // A number once in service is not given again, even when its folder is gone.
  int64_t next = 1;
  if (const absl::StatusOr<int64_t> current = ReadCurrent(model);
      current.ok()) {
    next = *current + 1;
  }
  while (true) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> numbers,
                     NumberedEntries(folder));
    if (!numbers.empty()) next = std::max(next, numbers.back() + 1);
    manifest.set_version(next);
    RETURN_IF_ERROR(
        WriteFile(JoinPath(staging, kManifest), PrintSealedTextProto(manifest)));
    RETURN_IF_ERROR(SyncFolder(staging));
    const std::string target = VersionFolder(model, next);
    const int error = RenameWithoutReplacing(staging, target);
    if (error == 0) break;
    // Somebody else published this number since we looked.
    if (error == EEXIST || error == ENOTEMPTY || error == ENOTDIR) {
      ++next;
      continue;
    }
    return ErrnoStatus("rename to", target, error);
  }
  RETURN_IF_ERROR(SyncFolder(folder));
  // Names the model's own folder durably, where this made it.
  RETURN_IF_ERROR(SyncFolder(root_));
  return next;
}

absl::Status ModelRegistry::RemoveStaleStaging(const std::string& model) const {
  RETURN_IF_ERROR(CheckModelName(model));
  const std::string folder = JoinPath(root_, model);
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  const absl::Time oldest = absl::Now() - kStale;
  const std::string current_leftover = absl::StrCat(kCurrent, ".tmp.");
  for (const std::string& name : names) {
    if (!absl::StartsWith(name, kStagingPrefix) &&
        !absl::StartsWith(name, current_leftover)) {
      continue;
    }
    const std::string path = JoinPath(folder, name);
    struct stat info;
    if (lstat(path.c_str(), &info) != 0) {
      if (errno == ENOENT) continue;  // published or removed meanwhile
      return ErrnoStatus("stat", path, errno);
    }
    if (absl::TimeFromTimespec(info.st_mtim) > oldest) continue;
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) return ErrnoStatus("remove", path, error.value());
  }
  return absl::OkStatus();
}

}  // namespace vitrine
