#pragma once

// How far a change of a metric could be chance. Plain arithmetic, one thread.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/evaluation.h"

namespace vitrine {

struct Interval {
  double low = 0;
  double high = 0;
};

struct BootstrapOptions {
  double confidence = 0.95;  // in (0, 1)
  int resamples = 1000;
  uint64_t seed = 1;
};

// The paired percentile bootstrap (Efron and Tibshirani, An Introduction to
// the Bootstrap, 1993, chapter 13): units are drawn with replacement, as many
// as there are and the same for both evaluations; every metric's difference,
// `candidate` less `incumbent`, is taken over each draw; the interval holds the
// middle `confidence` of them. One for each metric, in their order; NaN where a
// difference is not finite. One seed gives one result.
//
// kInvalidArgument: the evaluations are over different units or of different
// metrics, there are no units, an option is out of its range.
absl::StatusOr<std::vector<Interval>> BootstrapChanges(
    const Evaluation& candidate, const Evaluation& incumbent,
    const BootstrapOptions& options);

}  // namespace vitrine
