#pragma once

// A linear classifier over the tokens of a text and the pairs of neighbours
// among them, and how a classification head adds it to its encoder's logits:
//   logit = encoder_weight * encoder's + ngram_weight * margin
// Words that give a label away are learnt from few rows by counting them, and
// what they say together by the encoder; either makes mistakes of its own.
//
// Free of LibTorch. On disk it is <head>.ngrams.safetensors, which
// manifest.proto describes.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/ngrams.h"

namespace vitrine {

// How a head combines its encoder's logits with the n-grams' margins.
struct NgramMixture {
  float encoder_weight = 1;
  float ngram_weight = 0;

  // In place. Labels beyond the margins keep their weighted logit.
  void Combine(absl::Span<const float> margins, absl::Span<float> logits) const;
};

// As training makes it.
struct NgramTable {
  TokenSplits splits;
  std::vector<Ngram> ngrams;  // ascending
  std::vector<float> idf;     // of each
  std::vector<float> bias;    // of each label
  // (n-grams, labels).
  std::vector<float> weights;
  NgramMixture mixture;
};

// Immutable.
class NgramClassifier {
 public:
  // kInvalidArgument says what is wrong with the table: sizes that do not fit,
  // n-grams out of order, a number that is not finite, a weight below 0 of the
  // two that combine.
  static absl::StatusOr<std::unique_ptr<const NgramClassifier>> Create(
      NgramTable table);
  // The file; errors name it.
  static absl::StatusOr<std::unique_ptr<const NgramClassifier>> Open(
      const std::string& path);
  absl::Status Write(const std::string& path) const;

  int labels() const { return static_cast<int>(table_.bias.size()); }
  const NgramMixture& mixture() const { return table_.mixture; }
  const NgramTable& table() const { return table_; }

  // Of each label; `ids` as the encoder reads them.
  std::vector<float> Margins(absl::Span<const int32_t> ids) const;
  // Bytes on disk, about.
  int64_t size_bytes() const;

 private:
  explicit NgramClassifier(NgramTable table);

  const NgramTable table_;
  const NgramIndex index_;  // of the table's
};

// The head's file in a version folder.
std::string NgramFile(absl::string_view head);

}  // namespace vitrine
