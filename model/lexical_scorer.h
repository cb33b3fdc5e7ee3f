#pragma once

// A linear model of how well an item answers a query: which words either has,
// and how much of the query the item has, and how a relevance head adds it to
// its encoder's logit:
//   logit = encoder_weight * encoder's + lexical_weight * value + bias
// What words of a product's text a shop's buyers want is learnt from few rows
// by counting them, and what query and text say by the encoder; either makes
// mistakes of its own.
//
// Free of LibTorch. On disk it is <head>.lexical.safetensors, which
// manifest.proto describes.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/ngrams.h"

namespace vitrine {

// How a head combines its encoder's logit with the linear model's value.
struct LexicalMixture {
  float encoder_weight = 1;
  float lexical_weight = 0;
  float bias = 0;

  float Logit(float encoder_logit, float value) const {
    return encoder_weight * encoder_logit + lexical_weight * value + bias;
  }
};

// What the item has of the query, each a number about 0 to 1.
struct Overlap {
  float cosine = 0;  // of the two texts' listed n-grams
  float share = 0;   // of the query's different tokens
  // BM25 (k1 = 1.2, b = 0.75) of the query's different tokens, over 25.
  float bm25 = 0;
};

// As training makes it.
struct LexicalTable {
  std::vector<Ngram> ngrams;  // ascending
  std::vector<float> idf;     // of each
  float unlisted_idf = 1;     // of a token that is not among them
  float item_tokens = 1;      // of a text, on average
  // Of each n-gram in a query, and in an item.
  std::vector<float> query_weights, item_weights;
  Overlap overlap;  // weights
  float bias = 0;
  LexicalMixture mixture;
};

// Immutable.
class LexicalScorer {
 public:
  using Features = std::vector<std::pair<int32_t, float>>;

  // What all of a query's items share.
  struct Query {
    Features features;
    std::vector<std::pair<int32_t, float>> tokens;  // different ones, with idf
    float value = 0;                                // of its n-grams' weights
  };

  // kInvalidArgument says what is wrong with the table: sizes that do not fit,
  // n-grams out of order, a number that is not finite, a weight below 0 of the
  // two that combine, an average that is not above 0.
  static absl::StatusOr<std::unique_ptr<const LexicalScorer>> Create(
      LexicalTable table);
  // The file; errors name it.
  static absl::StatusOr<std::unique_ptr<const LexicalScorer>> Open(
      const std::string& path);
  absl::Status Write(const std::string& path) const;

  const LexicalMixture& mixture() const { return table_.mixture; }
  const LexicalTable& table() const { return table_; }
  // Bytes on disk, about.
  int64_t size_bytes() const;

  // Of the texts' tokens, without special ones.
  Query OfQuery(absl::Span<const int32_t> ids) const;
  Features OfItem(absl::Span<const int32_t> ids) const;
  // `features` are OfItem(ids).
  Overlap OverlapOf(const Query& query, absl::Span<const int32_t> ids,
                    const Features& features) const;

  // The grade from 0 to 1, less what grades are on average.
  float Value(const Query& query, absl::Span<const int32_t> item) const;

 private:
  explicit LexicalScorer(LexicalTable table);

  const LexicalTable table_;
  const NgramIndex index_;  // of the table's
};

// The head's file in a version folder.
std::string LexicalFile(absl::string_view head);

}  // namespace vitrine
