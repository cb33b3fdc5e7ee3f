#include "trainer/catalogue_logits.h"

namespace vitrine {

std::vector<int32_t> NumbersOf(const Cooccurrence& counts,
                               const Catalogue& catalogue,
                               absl::Span<const int32_t> items) {
  std::vector<int32_t> numbers;
  for (const int32_t item : items) {
    numbers.push_back(counts.Find(catalogue.items[item].id()));
  }
  return numbers;
}

CatalogueLogits::CatalogueLogits(const Cooccurrence* counts,
                                 const Catalogue& catalogue)
    : counts_(counts), catalogue_(catalogue) {
  if (counts == nullptr) return;
  for (int32_t item = 0; item < catalogue.listed; ++item) {
    numbers_.push_back(counts->Find(catalogue.items[item].id()));
    without_counts_.push_back(counts->mixture().Logit(
        /*cosine=*/0, /*count=*/0, counts->popularity(numbers_.back())));
  }
}

void CatalogueLogits::Combine(absl::Span<const int32_t> history,
                              absl::Span<float> row) const {
  if (counts_ == nullptr) return;
  const Mixture& mixture = counts_->mixture();
  const HistoryCounts of(*counts_, NumbersOf(*counts_, catalogue_, history),
                         mixture.history_decay);
  for (size_t item = 0; item < row.size(); ++item) {
    // Most have no counts, and no logarithm to be taken.
    const double count = of.Of(numbers_[item]);
    row[item] = static_cast<float>(
        count > 0
            ? mixture.Logit(row[item], count,
                            counts_->popularity(numbers_[item]))
            : mixture.text_weight * double{row[item]} + without_counts_[item]);
  }
}

}  // namespace vitrine
