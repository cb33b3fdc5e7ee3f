#pragma once

// Tokens and pairs of neighbouring tokens, counted and weighed by how rare they
// are: what the linear models beside an encoder read of a text.

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/raw_safetensors.h"
#include "model/safetensors.h"

namespace vitrine {

// One or two neighbouring tokens, by their ids.
struct Ngram {
  static constexpr int32_t kNone = -1;
  int32_t first = 0;
  int32_t second = kNone;  // kNone: the first alone

  friend auto operator<=>(const Ngram&, const Ngram&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const Ngram& ngram) {
    return H::combine(std::move(h), ngram.first, ngram.second);
  }
};

// Tokens that stand for several others: pieces of several ideographs, which are
// words of their own as often as not. Their parts are told by ids that need not
// be a tokenizer's.
class TokenSplits {
 public:
  // In ascending order; token i has parts[ends[i - 1]] to parts[ends[i] - 1].
  struct Table {
    std::vector<int32_t> tokens, ends, parts;
  };

  TokenSplits() = default;  // of no token
  // kInvalidArgument: tokens that do not ascend, ends that do not or that are
  // not the parts'.
  static absl::StatusOr<TokenSplits> Create(Table table);

  const Table& table() const { return table_; }
  // Empty where the token stands for itself alone.
  absl::Span<const int32_t> Of(int32_t token) const;

 private:
  Table table_;
};

// How often each n-gram of the text occurs, in ascending order; those, too, of
// the text in which tokens are replaced by their parts, where a part is among
// them.
std::vector<std::pair<Ngram, int32_t>> CountNgrams(
    absl::Span<const int32_t> ids, const TokenSplits& splits = {});

// Listed n-grams, found by what they are. Immutable.
class NgramIndex {
 public:
  static constexpr int32_t kUnknown = -1;

  // In ascending order, with the weight of each by its rarity; all outlive the
  // index. Null: no token is split.
  NgramIndex(absl::Span<const Ngram> ngrams, absl::Span<const float> idf,
             const TokenSplits* splits = nullptr);

  // Its place in the list.
  int32_t Find(const Ngram& ngram) const {
    const auto it = places_.find(ngram);
    return it == places_.end() ? kUnknown : it->second;
  }

  // The text's listed n-grams by their place, with (1 + ln count) * idf over
  // the root of the squares' sum, in ascending order.
  std::vector<std::pair<int32_t, float>> Features(
      absl::Span<const int32_t> ids) const;

 private:
  const absl::Span<const float> idf_;
  const TokenSplits* const splits_;
  absl::flat_hash_map<Ngram, int32_t> places_;
};

// As a file has them: I32 (n-grams, 2), the second -1 in one token's.
RawTensor ToRaw(const std::vector<Ngram>& ngrams);
absl::StatusOr<std::vector<Ngram>> ReadNgrams(const Safetensors& file);

// kInvalidArgument: not as many weights as n-grams, n-grams that do not ascend,
// a weight that is not finite.
absl::Status CheckNgrams(absl::Span<const Ngram> ngrams,
                         absl::Span<const float> idf);
// kInvalidArgument names the first number that is not finite.
absl::Status CheckFinite(const char* name, absl::Span<const float> values);

}  // namespace vitrine
