#pragma once

// Which documents have a word: a small inverted index, for training to find
// texts that are alike by their words. Immutable; any thread.

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"

namespace vitrine {

class WordIndex {
 public:
  // Of a word's documents at most so many are kept, spread evenly.
  static constexpr int64_t kMostKept = 64;

  // words_of(d) gives the words of document d by hashes, in any order, some
  // twice; 0 is none. It is called twice for each.
  WordIndex(int64_t documents,
            const std::function<std::vector<uint32_t>(int64_t)>& words_of);

  // All of them.
  int64_t CountWith(uint32_t word) const;
  // Those that are kept, rising.
  absl::Span<const int32_t> With(uint32_t word) const;
  // It is in so many documents that it tells none from the others: "the".
  bool IsFrequent(uint32_t word) const;

 private:
  struct Entry {
    int64_t count = 0;            // of documents
    int64_t seen = 0;             // of them, while the index is made
    int64_t begin = 0, size = 0;  // of documents_
  };

  int64_t size_ = 0;
  absl::flat_hash_map<uint32_t, Entry> entries_;
  std::vector<int32_t> documents_;
};

}  // namespace vitrine
