#pragma once

// The folder where versions live:
//
//   <root>/<model>/<number>/      an immutable version (see manifest.proto)
//   <root>/<model>/CURRENT        the number in service, written by the server
//   <root>/<model>/.staging-*/    a version being written; never served
//
// Stateless over the file system: any thread, any process. Publishing is one
// rename, so a crash at any instant leaves the old state or the new one.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

class ModelRegistry {
 public:
  explicit ModelRegistry(std::string root) : root_(std::move(root)) {}

  const std::string& root() const { return root_; }

  // Names of models with at least one version, sorted.
  absl::StatusOr<std::vector<std::string>> ListModels() const;
  // Ascending; kNotFound when there is no such model.
  absl::StatusOr<std::vector<int64_t>> ListVersions(
      const std::string& model) const;
  std::string VersionFolder(const std::string& model, int64_t version) const;
  absl::StatusOr<internal::Manifest> ReadManifest(const std::string& model,
                                                  int64_t version) const;

  // 0 when there is no CURRENT; kDataLoss when it holds no number.
  absl::StatusOr<int64_t> ReadCurrent(const std::string& model) const;
  // kNotFound when the version does not exist.
  absl::Status WriteCurrent(const std::string& model, int64_t version) const;

  // A new empty folder to write a version's files into.
  absl::StatusOr<std::string> NewStagingFolder(const std::string& model) const;
  // Fills in the manifest's model, version, created and files (digests of all
  // that is in `staging`), writes it, fsyncs everything and renames to the
  // next number. Two publishers at once get two numbers. Returns the number.
  absl::StatusOr<int64_t> Publish(const std::string& model,
                                  const std::string& staging,
                                  internal::Manifest manifest) const;
  // Removes staging folders untouched for a day.
  absl::Status RemoveStaleStaging(const std::string& model) const;

 private:
  const std::string root_;
};

// [a-z0-9][a-z0-9._-]{0,62}; anything else could leave the registry's folder.
absl::Status CheckModelName(const std::string& name);

absl::StatusOr<internal::Manifest> ReadManifestFile(const std::string& path);

}  // namespace vitrine
