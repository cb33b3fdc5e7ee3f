#pragma once

// A model folder's weights, checked against its config before any engine sees
// them. Free of LibTorch.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

// Encoder tensors go by BertModel's names ("embeddings.word_embeddings.weight",
// "encoder.layer.0.attention.self.query.weight", …): the prefixes bert. and
// roberta. and the old names gamma and beta are taken off at load. Head
// tensors go by "<head>.<part>" as manifest.proto says.
struct Checkpoint {
  EncoderConfig config;
  std::map<std::string, TensorView> encoder;
  std::map<std::string, TensorView> heads;
  // What the views point into.
  std::vector<std::shared_ptr<const Safetensors>> files;
};

// Reads config.json, model.safetensors (or its shards) and, for the heads of
// `manifest_heads`, heads.safetensors. Tensors of the encoder that are
// missing or misshapen, and tensors that belong to nothing known, are errors
// that name them; a missing pooler is none (only heads may need one).
absl::StatusOr<Checkpoint> LoadCheckpoint(
    const std::string& folder,
    const std::vector<internal::Head>& manifest_heads);

// What the task part of a Hugging Face checkpoint becomes: BERT's
// pooler + classifier or RoBERTa's classifier.dense + out_proj as one head,
// RELEVANCE where it has one output, CLASSIFICATION named "classifier"
// otherwise, its labels from id2label; none for a bare encoder or MLM.
struct ImportedHead {
  internal::Head head;
  std::vector<NamedTensor> tensors;  // named "<head>.<part>"
};
absl::StatusOr<std::vector<ImportedHead>> HeadsOfHuggingFaceFolder(
    const std::string& folder);

// Gives `checkpoint` the heads' tensors, copied.
void AddHeads(const std::vector<ImportedHead>& heads, Checkpoint* checkpoint);

// Names that are not [a-z0-9_]+ or repeat, kinds that are not set, labels that
// a kind needs and lacks, more heads than a HeadMask holds.
absl::Status CheckHeads(const std::vector<internal::Head>& heads);

}  // namespace vitrine
