#pragma once

// Every item of a catalogue as what may come next: cosines of the texts turned
// into logits as they are served.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/cooccurrence.h"
#include "trainer/dataset.h"

namespace vitrine {

// Immutable; what it is made of outlives it.
class NextItemScores {
 public:
  // Null `counts`: cosines stay what they are.
  NextItemScores(const Catalogue& catalogue, const Cooccurrence* counts);

  // `row` holds the cosine of `history` (oldest first, indices into the
  // catalogue) with each of its listed items.
  void operator()(absl::Span<const int32_t> history,
                  absl::Span<float> row) const;

 private:
  const Catalogue& catalogue_;
  const Cooccurrence* const counts_;
  std::vector<int32_t> numbers_;        // the counts' of the listed items
  std::vector<double> without_counts_;  // the rest of their logit then
};

// The catalogue's items as the counts number them.
std::vector<int32_t> NumbersOf(const Catalogue& catalogue,
                               const Cooccurrence& counts,
                               absl::Span<const int32_t> items);

}  // namespace vitrine
