#include "trainer/version_writer.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "model/checkpoint.h"
#include "model/engine.h"
#include "model/featurizer.h"
#include "model/load_tokenizer.h"

namespace vitrine {
namespace {

constexpr int64_t kSpareBytes = int64_t{16} << 20;

// Runs the samples through the files in `folder`.
absl::Status WriteGolden(const std::string& folder, const NewVersion& version) {
  const std::vector<internal::Head> heads(version.manifest.heads().begin(),
                                          version.manifest.heads().end());
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, LoadCheckpoint(folder, heads));
  EngineOptions options;
  options.device = internal::DEVICE_CPU;
  options.dtype = internal::DTYPE_FP32;
  ASSIGN_OR_RETURN(const auto engine,
                   NewTorchEngine(checkpoint, heads, options));
  internal::Golden golden;
  for (const auto& [name, encoding] : version.samples) {
    for (size_t h = 0; h < heads.size(); ++h) {
      if (heads[h].name() != name) continue;
      Batch batch;
      batch.Add(encoding, HeadMask{1} << h);
      ASSIGN_OR_RETURN(const Outputs outputs, engine->Run(batch));
      internal::Golden::Sequence* const out = golden.add_sequences();
      out->mutable_ids()->Assign(encoding.ids.begin(), encoding.ids.end());
      out->mutable_segment_ids()->Assign(encoding.segment_ids.begin(),
                                         encoding.segment_ids.end());
      out->set_head(name);
      const auto values = outputs.Of(0);
      if (!std::all_of(values.begin(), values.end(),
                       [](float value) { return std::isfinite(value); })) {
        return absl::FailedPreconditionError(
            absl::StrCat("head ", name, ": its outputs are not finite"));
      }
      out->mutable_outputs()->Assign(values.begin(), values.end());
    }
  }
  return WriteFile(JoinPath(folder, "golden.textproto"),
                   PrintTextProto(golden));
}

}  // namespace

EncoderConfig WithoutTask(EncoderConfig config) {
  config.architectures = {config.model_type == "bert"      ? "BertModel"
                          : config.model_type == "roberta" ? "RobertaModel"
                                                           : "XLMRobertaModel"};
  config.labels.clear();
  return config;
}

absl::StatusOr<NewVersion> CopyOf(const SourceModel& source) {
  NewVersion version;
  version.config = WithoutTask(source.checkpoint.config);
  ASSIGN_OR_RETURN(version.encoder, CopyTensors(source.checkpoint.encoder));
  ASSIGN_OR_RETURN(version.heads, CopyTensors(source.checkpoint.heads));
  version.tables = source.tables;
  version.tokenizer_folder = source.folder;
  version.manifest = source.manifest;
  ASSIGN_OR_RETURN(
      *version.manifest.mutable_encoding(),
      ResolveEncodingOptions(source.manifest.encoding(), version.config));
  return version;
}

int64_t SizeOnDisk(const std::vector<NamedTensor>& encoder,
                   const std::vector<NamedTensor>& heads) {
  int64_t bytes = 0;
  for (const auto* const list : {&encoder, &heads}) {
    for (const NamedTensor& tensor : *list) {
      bytes += static_cast<int64_t>(tensor.values.size()) *
                   (tensor.type == TensorType::kF32 ? 4 : 2) +
               256;
    }
  }
  return bytes;
}

absl::Status CheckFreeDisk(const std::string& folder, int64_t bytes,
                           const char* what) {
  std::error_code error;
  std::filesystem::path path = std::filesystem::absolute(folder, error);
  while (path.has_relative_path() && !std::filesystem::exists(path, error)) {
    path = path.parent_path();
  }
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) {
    return absl::Status(absl::ErrnoToStatusCode(errno),
                        absl::StrCat("free space of ", path.string(), ": ",
                                     std::strerror(errno)));
  }
  const int64_t free =
      static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  if (free < bytes + kSpareBytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%s: %.0f MB free, %.0f MB needed for %s", folder,
                        free / 1e6, (bytes + kSpareBytes) / 1e6, what));
  }
  return absl::OkStatus();
}

absl::Status WriteModelFolder(const std::string& folder,
                              const NewVersion& version) {
  RETURN_IF_ERROR(WriteFile(JoinPath(folder, "config.json"),
                            EncoderConfigToJson(version.config)));
  RETURN_IF_ERROR(
      WriteSafetensors(JoinPath(folder, "model.safetensors"), version.encoder));
  if (!version.heads.empty()) {
    RETURN_IF_ERROR(
        WriteSafetensors(JoinPath(folder, "heads.safetensors"), version.heads));
  }
  for (const auto& [head, tables] : version.tables) {
    RETURN_IF_ERROR(WriteHeadTables(folder, head, tables));
  }
  for (const std::string& name : TokenizerFiles(version.tokenizer_folder)) {
    ASSIGN_OR_RETURN(const std::string content,
                     ReadFile(JoinPath(version.tokenizer_folder, name)));
    RETURN_IF_ERROR(WriteFile(JoinPath(folder, name), content));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StagedVersion>> StagedVersion::Write(
    const ModelRegistry& registry, const std::string& model,
    const NewVersion& version) {
  int64_t bytes = SizeOnDisk(version.encoder, version.heads);
  for (const auto& [head, tables] : version.tables) {
    bytes += tables.size_bytes();
  }
  RETURN_IF_ERROR(CheckFreeDisk(registry.root(), bytes));
  ASSIGN_OR_RETURN(const std::string folder, registry.NewStagingFolder(model));
  std::unique_ptr<StagedVersion> staged(
      new StagedVersion(registry, model, folder));
  RETURN_IF_ERROR(WriteModelFolder(folder, version));
  RETURN_IF_ERROR(
      Annotate(WriteGolden(folder, version), "reading the version back"));
  RETURN_IF_ERROR(WriteFile(JoinPath(folder, "manifest.textproto"),
                            PrintSealedTextProto(version.manifest)));
  return staged;
}

StagedVersion::~StagedVersion() {
  if (published_) return;
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

absl::StatusOr<int64_t> StagedVersion::Publish(
    const internal::Manifest& manifest) {
  ASSIGN_OR_RETURN(const int64_t number,
                   registry_.Publish(model_, folder_, manifest));
  published_ = true;
  return number;
}

absl::StatusOr<int64_t> PublishVersion(const ModelRegistry& registry,
                                       const std::string& model,
                                       const NewVersion& version) {
  ASSIGN_OR_RETURN(const std::unique_ptr<StagedVersion> staged,
                   StagedVersion::Write(registry, model, version));
  return staged->Publish(version.manifest);
}

}  // namespace vitrine
