#include "trainer/source_model.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/load_tokenizer.h"

namespace vitrine {

absl::StatusOr<std::unique_ptr<SourceModel>> LoadSourceModel(
    const std::string& folder) {
  auto source = std::make_unique<SourceModel>();
  source->folder = folder;
  const std::string manifest = JoinPath(folder, "manifest.textproto");
  if (PathExists(manifest)) {
    ASSIGN_OR_RETURN(source->manifest, ReadManifestFile(manifest));
    ASSIGN_OR_RETURN(source->checkpoint,
                     LoadCheckpoint(folder, source->heads()));
    ASSIGN_OR_RETURN(const std::vector<HeadTables> tables,
                     OpenHeadTables(folder, source->heads()));
    for (size_t h = 0; h < tables.size(); ++h) {
      source->tables[source->manifest.heads(static_cast<int>(h)).name()] =
          tables[h];
    }
  } else {
    ASSIGN_OR_RETURN(source->checkpoint, LoadCheckpoint(folder, {}));
    ASSIGN_OR_RETURN(const std::vector<ImportedHead> heads,
                     HeadsOfHuggingFaceFolder(folder));
    for (const ImportedHead& head : heads) {
      *source->manifest.add_heads() = head.head;
      source->imported.insert(source->imported.end(), head.tensors.begin(),
                              head.tensors.end());
    }
    for (const NamedTensor& tensor : source->imported) {
      TensorView& view = source->checkpoint.heads[tensor.name];
      view.type = TensorType::kF32;
      view.shape = tensor.shape;
      view.bytes = {reinterpret_cast<const char*>(tensor.values.data()),
                    tensor.values.size() * sizeof(float)};
    }
  }
  ASSIGN_OR_RETURN(source->tokenizer, LoadTokenizer(folder));
  const int64_t rows = source->checkpoint.config.vocab_size;
  if (source->tokenizer->vocab_size() > rows) {
    return absl::InvalidArgumentError(absl::StrCat(
        folder, ": the tokenizer has ", source->tokenizer->vocab_size(),
        " pieces, config.json's vocab_size is ", rows));
  }
  return source;
}

absl::StatusOr<std::string> ResolveSource(const std::string& from,
                                          const ModelRegistry& registry,
                                          absl::string_view flag) {
  std::error_code ignored;
  if (std::filesystem::is_directory(from, ignored)) return from;
  const std::vector<std::string> parts = absl::StrSplit(from, '/');
  const std::string& model = parts.front();
  int64_t version = 0;
  if (parts.size() > 2 || !CheckModelName(model).ok() ||
      (parts.size() == 2 && !absl::SimpleAtoi(parts[1], &version))) {
    return absl::NotFoundError(absl::StrCat(
        flag, " ", from, ": no such folder, and no MODEL or MODEL/NUMBER"));
  }
  absl::StatusOr<std::vector<int64_t>> versions = registry.ListVersions(model);
  if (!versions.ok() || versions->empty()) {
    return absl::NotFoundError(
        absl::StrCat(flag, " ", from, ": no such folder, and no such model in ",
                     registry.root()));
  }
  if (parts.size() == 1) {
    ASSIGN_OR_RETURN(version, registry.ReadCurrent(model));
    if (version == 0) version = versions->back();
  }
  const std::string folder = registry.VersionFolder(model, version);
  if (!std::filesystem::is_directory(folder, ignored)) {
    return absl::NotFoundError(absl::StrCat(flag, " ", from, ": model ", model,
                                            " has no version ", version, " in ",
                                            registry.root()));
  }
  return folder;
}

absl::StatusOr<std::vector<NamedTensor>> CopyTensors(
    const std::map<std::string, TensorView>& tensors) {
  std::vector<NamedTensor> out;
  for (const auto& [name, view] : tensors) {
    NamedTensor& tensor = out.emplace_back();
    tensor.name = name;
    tensor.type = view.type;
    tensor.shape = view.shape;
    absl::StatusOr<std::vector<float>> values = ToFloats(view);
    if (!values.ok()) return Annotate(values.status(), name);
    tensor.values = *std::move(values);
  }
  return out;
}

}  // namespace vitrine
