#pragma once

// Pairs of texts that say much the same, from documents alone: a title and its
// description, a title and its category path, two crops of one text. What the
// contrastive stage learns from instead of labels.

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "model/tokenizer.h"
#include "trainer/corpus.h"
#include "trainer/masking.h"

namespace vitrine {

// Documents of parts, as ids without special tokens.
struct PairDocuments {
  TokenStore parts;
  std::vector<int64_t> offsets = {0};  // (documents + 1), of `parts`

  int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

struct TextPair {
  Encoding left, right;
};

// Immutable but for the generators that callers bring.
class PairMaker {
 public:
  // `max_tokens` of a text, special ones included: longer ones are cut.
  PairMaker(const Tokenizer& tokenizer, int max_tokens);

  // How many ways there are to make a pair of these parts: the first part with
  // each of the others, and two crops of the longest where it has
  // kMinCropWords. 0: it is of no use here.
  int Ways(absl::Span<const std::vector<int32_t>> parts) const;

  // One of the ways, by chance; there is one at least.
  TextPair Draw(const PairDocuments& documents, int64_t document,
                std::mt19937_64* random) const;

  // The most tokens that a pair of this document can have.
  int64_t MaxTokens(const PairDocuments& documents, int64_t document) const;

  static constexpr int kMinCropWords = 8;

 private:
  using Ids = absl::Span<const int32_t>;
  // From a fifth to three fifths of the words, anywhere.
  Ids Crop(Ids ids, const std::vector<int32_t>& starts,
           std::mt19937_64* random) const;
  Encoding Encode(Ids ids) const;
  bool CanCrop(Ids ids) const;
  int64_t LongestPart(const PairDocuments& documents, int64_t document) const;

  const int max_tokens_;
  const SpecialTokens special_;
  const WordMasker words_;
};

}  // namespace vitrine
