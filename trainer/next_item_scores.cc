#include "trainer/next_item_scores.h"

namespace vitrine {

NextItemScores::NextItemScores(const Catalogue& catalogue,
                               const Cooccurrence* counts)
    : catalogue_(catalogue), counts_(counts) {
  if (counts == nullptr) return;
  for (int32_t item = 0; item < catalogue.listed; ++item) {
    numbers_.push_back(counts->Find(catalogue.items[item].id()));
    without_counts_.push_back(counts->mixture().Logit(
        /*cosine=*/0, /*count=*/0, counts->popularity(numbers_.back())));
  }
}

void NextItemScores::operator()(absl::Span<const int32_t> history,
                                absl::Span<float> row) const {
  if (counts_ == nullptr) return;
  const Mixture& mixture = counts_->mixture();
  const HistoryCounts of(*counts_, NumbersOf(catalogue_, *counts_, history),
                         mixture.history_decay);
  for (size_t item = 0; item < row.size(); ++item) {
    const double count = of.Of(numbers_[item]);
    row[item] = static_cast<float>(
        count > 0
            ? mixture.Logit(row[item], count,
                            counts_->popularity(numbers_[item]))
            : mixture.text_weight * double{row[item]} + without_counts_[item]);
  }
}

std::vector<int32_t> NumbersOf(const Catalogue& catalogue,
                               const Cooccurrence& counts,
                               absl::Span<const int32_t> items) {
  std::vector<int32_t> out;
  for (const int32_t item : items) {
    out.push_back(counts.Find(catalogue.items[item].id()));
  }
  return out;
}

}  // namespace vitrine
