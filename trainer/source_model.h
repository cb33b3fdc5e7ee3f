#pragma once

// What a run starts from: a version folder, or a Hugging Face folder as it is.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/checkpoint.h"
#include "model/head_tables.h"
#include "model/tokenizer.h"
#include "store/model_registry.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

// What heads have beside their weights, by the head's name.
using TablesByHead = std::map<std::string, HeadTables>;

struct SourceModel {
  std::string folder;
  // Of a Hugging Face folder: empty but for the heads found in it.
  internal::Manifest manifest;
  // The weights of `manifest`'s heads are in `heads`, wherever they came from.
  Checkpoint checkpoint;
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<NamedTensor> imported;  // what some of `heads` point into

  TablesByHead tables;
  HeadTables TablesOf(const std::string& head) const {
    const auto it = tables.find(head);
    return it == tables.end() ? HeadTables() : it->second;
  }

  std::vector<internal::Head> heads() const {
    return {manifest.heads().begin(), manifest.heads().end()};
  }
};

// Reads and checks the folder whole: config, every tensor, the tokenizer, and
// that they agree. Errors name the file and the tensor.
absl::StatusOr<std::unique_ptr<SourceModel>> LoadSourceModel(
    const std::string& folder);

// `from` is a folder, or names a version of `registry`: "shop/12", or "shop"
// for the one in service (the newest, where none is). Errors call it `flag`.
absl::StatusOr<std::string> ResolveSource(const std::string& from,
                                          const ModelRegistry& registry,
                                          absl::string_view flag = "--from");

// The tensors as they can be written again, in their own types.
absl::StatusOr<std::vector<NamedTensor>> CopyTensors(
    const std::map<std::string, TensorView>& tensors);

}  // namespace vitrine
