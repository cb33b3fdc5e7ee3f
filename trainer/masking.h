#pragma once

// Which tokens masked language modelling hides: whole words, drawn anew each
// time a text is read. Immutable but for the generators that callers bring.

#include <cstdint>
#include <random>
#include <vector>

#include "absl/types/span.h"
#include "model/tokenizer.h"

namespace vitrine {

struct MaskingOptions {
  double share = 0.15;      // of a text's tokens, about
  double keep = 0.1;        // of the words: left as they are
  double substitute = 0.1;  // of the words: other tokens by chance
};

// One text as it is trained on.
struct MaskedText {
  std::vector<int32_t> ids;      // with [CLS] and [SEP]
  std::vector<int32_t> places;   // of `ids`, rising: what is to be found out
  std::vector<int32_t> targets;  // the id that was at each of them
};

class WordMasker {
 public:
  WordMasker(const Tokenizer& tokenizer, const MaskingOptions& options);

  // The first id of each word, rising, the first at 0. A word is what stands
  // between spaces and signs; an ideograph's piece is one by itself; above
  // kMaxWordTokens a word is cut.
  std::vector<int32_t> WordStarts(absl::Span<const int32_t> ids) const;

  // `ids` are a text's without special tokens, at least one. At least one word
  // is hidden.
  MaskedText Mask(absl::Span<const int32_t> ids, std::mt19937_64* random) const;

  static constexpr int kMaxWordTokens = 8;

 private:
  const MaskingOptions options_;
  const SpecialTokens special_;
  std::vector<int32_t> ordinary_;  // the ids that are no special tokens
  // By id: it may go on with a word, and a word may go on after it.
  std::vector<bool> continues_, joins_;
};

}  // namespace vitrine
