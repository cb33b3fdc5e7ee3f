#pragma once

// A recommendation's cosines with every item of a catalogue, made into the
// logits that a server makes of them.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/cooccurrence.h"
#include "trainer/dataset.h"

namespace vitrine {

// Items of the catalogue as the counts number them.
std::vector<int32_t> NumbersOf(const Cooccurrence& counts,
                               const Catalogue& catalogue,
                               absl::Span<const int32_t> items);

// Both outlive it. Immutable.
class CatalogueLogits {
 public:
  // Null: the head has no counts, and cosines stay what they are.
  CatalogueLogits(const Cooccurrence* counts, const Catalogue& catalogue);

  // row[i] is the cosine with listed item i, of `history`, oldest first.
  void Combine(absl::Span<const int32_t> history, absl::Span<float> row) const;

 private:
  const Cooccurrence* const counts_;
  const Catalogue& catalogue_;
  std::vector<int32_t> numbers_;        // of the listed items
  std::vector<double> without_counts_;  // their logit then, cosine aside
};

}  // namespace vitrine
