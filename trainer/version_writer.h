#pragma once

// Writes a version's files, reads them back the way the server does, records
// what they answer, and publishes.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"
#include "store/model_registry.h"
#include "trainer/source_model.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

struct NewVersion {
  EncoderConfig config;
  std::vector<NamedTensor> encoder;  // BertModel's names
  std::vector<NamedTensor> heads;    // "<head>.<part>"
  TablesByHead tables;               // what heads have beside their weights
  std::string tokenizer_folder;      // whose tokenizer files are copied
  internal::Manifest manifest;       // all but what Publish fills in
  // Inputs whose fp32 outputs become golden.textproto, with the head's name.
  std::vector<std::pair<std::string, Encoding>> samples;
};

// The config of an encoder by itself: the task part of a Hugging Face
// checkpoint is in heads.safetensors and in the manifest.
EncoderConfig WithoutTask(EncoderConfig config);

// The same weights, tables, tokenizer and manifest, with the encoding's
// defaults filled in; without samples.
absl::StatusOr<NewVersion> CopyOf(const SourceModel& source);

// Bytes that the version's weights take on disk, about.
int64_t SizeOnDisk(const std::vector<NamedTensor>& encoder,
                   const std::vector<NamedTensor>& heads);

// kResourceExhausted when the file system of `folder` (or of its nearest
// parent that exists) has less than `bytes` free, and some to spare. `what`
// they are for is in the message.
absl::Status CheckFreeDisk(const std::string& folder, int64_t bytes,
                           const char* what = "the new version");

// The folder that LoadCheckpoint and LoadTokenizer take, without manifest.
absl::Status WriteModelFolder(const std::string& folder,
                              const NewVersion& version);

// A version's files in a staging folder of the registry: complete, so that
// ServableModel::Load takes it (without digests), and served by nobody. Goes
// away with this object unless it is published.
class StagedVersion {
 public:
  static absl::StatusOr<std::unique_ptr<StagedVersion>> Write(
      const ModelRegistry& registry, const std::string& model,
      const NewVersion& version);
  ~StagedVersion();
  StagedVersion(const StagedVersion&) = delete;
  StagedVersion& operator=(const StagedVersion&) = delete;

  const std::string& folder() const { return folder_; }

  // With `manifest` for that of the NewVersion, whose heads it has. Returns the
  // version's number. At most once.
  absl::StatusOr<int64_t> Publish(const internal::Manifest& manifest);

 private:
  StagedVersion(const ModelRegistry& registry, std::string model,
                std::string folder)
      : registry_(registry),
        model_(std::move(model)),
        folder_(std::move(folder)) {}

  const ModelRegistry registry_;
  const std::string model_;
  const std::string folder_;
  bool published_ = false;
};

// Both at once. Nothing is left behind when it fails.
absl::StatusOr<int64_t> PublishVersion(const ModelRegistry& registry,
                                       const std::string& model,
                                       const NewVersion& version);

}  // namespace vitrine
