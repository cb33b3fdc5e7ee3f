#pragma once

#include <algorithm>
#include <cmath>

#include "absl/types/span.h"

namespace vitrine {

// log(sum of exp(logit)), of one logit or more: softmax is exp(logit - it), and
// a text's energy less it.
inline double LogSumExp(absl::Span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  return most + std::log(sum);
}

}  // namespace vitrine
