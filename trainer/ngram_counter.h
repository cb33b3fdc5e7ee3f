#pragma once

// Counts in how many texts n-grams are: which of them are worth a weight, and
// how rare each is.

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "model/ngrams.h"

namespace vitrine {

class NgramCounter {
 public:
  // A text of one or more parts, over whose borders no pair goes.
  void AddText(std::initializer_list<absl::Span<const int32_t>> parts,
               const TokenSplits& splits = {});

  int64_t texts() const { return texts_; }
  // 1 + ln((1 + texts) / (1 + count)): of an n-gram that so many texts have.
  float Idf(int64_t count) const;
  // The n-grams of two texts or more, at most `most` (those that most texts
  // have), in ascending order, each with its Idf().
  void Finish(size_t most, std::vector<Ngram>* ngrams,
              std::vector<float>* idf) const;

 private:
  int64_t texts_ = 0;
  absl::flat_hash_map<Ngram, int32_t> counts_;
};

}  // namespace vitrine
