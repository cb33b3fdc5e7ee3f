#pragma once

// Fits how texts and counts are combined, on users whom neither the counts nor
// the texts' training have seen.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/cooccurrence.h"

namespace vitrine {

// One such user: a history, and items to tell its next one from. Items are
// told by their index in the counts, or kUnknown.
struct MixtureRow {
  struct Candidate {
    int32_t item = Cooccurrence::kUnknown;
    float cosine = 0;
    float copies = 1;  // as many items as it stands for
  };
  std::vector<int32_t> history;       // oldest first
  std::vector<Candidate> candidates;  // the next item first
};

// The mixture by which the next items are the likeliest: the maximum, near the
// default, of the mean log of softmax(logit) over each row's candidates.
// `rows` is not empty. Deterministic.
Mixture FitMixture(const Cooccurrence& counts,
                   absl::Span<const MixtureRow> rows);

}  // namespace vitrine
