#include "trainer/ngram_counter.h"

#include <algorithm>
#include <cmath>

namespace vitrine {
namespace {

constexpr int kLeastTexts = 2;  // that have an n-gram

}  // namespace

void NgramCounter::AddText(
    std::initializer_list<absl::Span<const int32_t>> parts,
    const TokenSplits& splits) {
  ++texts_;
  std::vector<Ngram> ngrams;
  for (const absl::Span<const int32_t> ids : parts) {
    for (const auto& [ngram, count] : CountNgrams(ids, splits)) {
      ngrams.push_back(ngram);
    }
  }
  std::sort(ngrams.begin(), ngrams.end());
  ngrams.erase(std::unique(ngrams.begin(), ngrams.end()), ngrams.end());
  for (const Ngram& ngram : ngrams) ++counts_[ngram];
}

float NgramCounter::Idf(int64_t count) const {
  return static_cast<float>(1 + std::log((1.0 + texts_) / (1.0 + count)));
}

void NgramCounter::Finish(size_t most, std::vector<Ngram>* ngrams,
                          std::vector<float>* idf) const {
  std::vector<std::pair<Ngram, int32_t>> kept;
  for (const auto& [ngram, count] : counts_) {
    if (count >= kLeastTexts) kept.emplace_back(ngram, count);
  }
  if (kept.size() > most) {
    std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) {
      return a.second != b.second ? a.second > b.second : a.first < b.first;
    });
    kept.resize(most);
  }
  std::sort(kept.begin(), kept.end());
  for (const auto& [ngram, count] : kept) {
    ngrams->push_back(ngram);
    idf->push_back(Idf(count));
  }
}

}  // namespace vitrine
