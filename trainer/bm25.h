#pragma once

// Okapi BM25: what a shop has without a language model, to compare with.

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace vitrine {

// Lower-cased runs of letters and digits; every ideograph is a word.
std::vector<std::string> Bm25Words(absl::string_view text);

// k1 = 1.2, b = 0.75, idf = ln(1 + (n - df + 0.5) / (df + 0.5)).
class Bm25 {
 public:
  // Document frequencies over `documents`, the mean length over the last
  // `scored` of them. A text may occur several times and then counts so.
  Bm25(const std::vector<std::string>& documents, size_t scored);

  double Score(absl::string_view query, absl::string_view document) const;

 private:
  absl::flat_hash_map<std::string, int> frequency_;
  double documents_ = 0;
  double mean_length_ = 1;
};

}  // namespace vitrine
