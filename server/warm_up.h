#pragma once

// Runs a version that is about to serve on batches like those served lately, so
// that no caller waits for memory and kernels of their shapes to be made.

#include <vector>

#include "absl/status/status.h"
#include "model/servable_model.h"

namespace vitrine {

// `shapes` are the lengths of the sequences of some batches, in tokens; those
// longer than the version allows are cut. All heads run. Of batches that differ
// in tokens by less than half only the largest is run, and on a CPU, which is
// shared with what is served meanwhile, its first kMaxWarmUpTokens.
constexpr int kMaxWarmUpTokens = 512;  // as much as an engine's thread runs
absl::Status WarmUpOn(const ServableModel& model,
                      const std::vector<std::vector<int>>& shapes);

}  // namespace vitrine
