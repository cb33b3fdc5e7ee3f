#include "trainer/word_index.h"

#include <algorithm>

namespace vitrine {
namespace {

// A word of more documents is frequent, and of more than this share of them.
constexpr int64_t kFewDocuments = 20;
constexpr double kFrequentShare = 0.05;

}  // namespace

WordIndex::WordIndex(
    int64_t documents,
    const std::function<std::vector<uint32_t>(int64_t)>& words_of)
    : size_(documents) {
  const auto for_each = [&](const auto& take) {
    for (int64_t d = 0; d < documents; ++d) {
      std::vector<uint32_t> words = words_of(d);
      std::sort(words.begin(), words.end());
      words.erase(std::unique(words.begin(), words.end()), words.end());
      for (const uint32_t word : words) {
        if (word != 0) take(d, word);
      }
    }
  };
  for_each([this](int64_t, uint32_t word) { ++entries_[word].count; });
  int64_t total = 0;
  for (auto& [word, entry] : entries_) {
    entry.begin = total;
    total += std::min(entry.count, kMostKept);
  }
  documents_.resize(total);
  for_each([this](int64_t document, uint32_t word) {
    Entry& entry = entries_[word];
    const int64_t kept = std::min(entry.count, kMostKept);
    // The k-th of `count` is kept where k * kept / count moves on.
    const int64_t before = entry.seen * kept / entry.count;
    ++entry.seen;
    if (entry.seen * kept / entry.count == before) return;
    documents_[entry.begin + entry.size++] = static_cast<int32_t>(document);
  });
}

int64_t WordIndex::CountWith(uint32_t word) const {
  const auto it = entries_.find(word);
  return it == entries_.end() ? 0 : it->second.count;
}

absl::Span<const int32_t> WordIndex::With(uint32_t word) const {
  const auto it = entries_.find(word);
  if (it == entries_.end()) return {};
  return absl::MakeConstSpan(documents_)
      .subspan(it->second.begin, it->second.size);
}

bool WordIndex::IsFrequent(uint32_t word) const {
  const int64_t count = CountWith(word);
  return count > kFewDocuments &&
         static_cast<double>(count) > kFrequentShare * size_;
}

}  // namespace vitrine
