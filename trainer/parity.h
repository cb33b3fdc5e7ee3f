#pragma once

// How near the outputs of one engine are to another's. Plain arithmetic.

#include "absl/types/span.h"

namespace vitrine {

struct Parity {
  // Spearman's: the correlation of the ranks, equal values sharing their mean
  // rank. 1 where there is nothing to order; NaN where an output is none.
  double rank_correlation = 1;
  double largest_difference = 0;
};

// Of outputs in the same order, as many on both sides.
Parity CompareOutputs(absl::Span<const float> expected,
                      absl::Span<const float> actual);

}  // namespace vitrine
