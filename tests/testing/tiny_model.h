#pragma once

// Small random models on disk for tests: a Hugging Face folder as it comes, or
// a version folder with heads and manifest. Torch-free; milliseconds.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine::testing {

struct TinyModelOptions {
  std::string model_type = "bert";  // or roberta, xlm-roberta
  int64_t hidden_size = 32;
  int64_t num_layers = 2;
  int64_t num_heads = 4;
  int64_t intermediate_size = 64;
  int64_t max_positions = 128;
  int64_t type_vocab_size = 2;
  // More than TinyVocabulary(): filled up with "[unused0]", …; 0: as many.
  int64_t vocab_size = 0;
  std::string hidden_act = "gelu";
  TensorType dtype = TensorType::kF32;
  uint64_t seed = 1;

  // Outputs of the checkpoint's own classifier (BertForSequenceClassification
  // or RoBERTa's); 0: a bare encoder. Without effect where `heads` are given.
  int labels = 1;

  // Given: a bare encoder with heads.safetensors and manifest.textproto, as a
  // version folder has them.
  std::vector<internal::Head> heads;
  std::string model_name = "tiny";
  int64_t version = 1;
};

// A head of each kind: relevance, recommendation, interest over `categories`,
// and the classification head "sentiment" (negative, positive).
std::vector<internal::Head> AllHeads(
    const std::vector<std::string>& categories = {"sofas", "lamps", "rugs"});

// Writes config.json, model.safetensors and vocab.txt (WordPiece: letters,
// digits, punctuation and words of a shop; any lower-case English text has
// tokens) into `folder`, which is made if need be.
absl::Status WriteTinyModel(const std::string& folder,
                            const TinyModelOptions& options = {});

// The lines of that vocab.txt.
std::vector<std::string> TinyVocabulary(int64_t vocab_size = 0);

// The config that WriteTinyModel writes.
EncoderConfig TinyConfig(const TinyModelOptions& options = {});

// Tensors as the checkpoint has them, spread like a trained model's so that
// softmax and activations are exercised.
std::vector<NamedTensor> TinyTensors(const TinyModelOptions& options);

// (Re)writes manifest.textproto with the digests of what is in `folder`.
absl::Status WriteManifest(const std::string& folder,
                           internal::Manifest manifest);

}  // namespace vitrine::testing
