#pragma once

// The order in which examples are trained on.

#include <cstdint>
#include <random>
#include <vector>

#include "model/batch.h"

namespace vitrine {

// Examples of one task that make one step.
struct TrainingBatch {
  int task = 0;
  std::vector<int32_t> examples;
};

// Every example once: shuffled, sorted by length within stretches of some
// batches (like lengths side by side waste no work), cut into batches of
// `batch_size` examples or fewer where they would pass `batch_tokens`.
// tokens[i] is the length of example i.
std::vector<TrainingBatch> MakeBatches(int task, const std::vector<int>& tokens,
                                       int batch_size, int batch_tokens,
                                       std::mt19937_64* random);

// Every example once, those of a group (groups[i] is example i's) side by side,
// for losses over a group: groups are shuffled, and one that does not fit into
// what is left of a batch begins the next. A group above the limits is cut.
std::vector<TrainingBatch> MakeGroupedBatches(int task,
                                              const std::vector<int>& tokens,
                                              const std::vector<int>& groups,
                                              int batch_size, int batch_tokens,
                                              std::mt19937_64* random);

// Adds sequences of `pad_id`, none longer than `longest`, until the tokens are
// a multiple of kTokenGrain: oneDNN makes code for every new shape of a
// product. They count for nothing, and come last.
inline constexpr int64_t kTokenGrain = 256;
void PadTokens(int32_t pad_id, int64_t longest, Batch* batch);

// Fisher-Yates on the engine's own bits: the standard library's shuffle may
// differ between implementations.
template <typename T>
void Shuffle(std::vector<T>* values, std::mt19937_64* random) {
  for (size_t i = values->size(); i > 1; --i) {
    std::swap((*values)[i - 1], (*values)[(*random)() % i]);
  }
}

}  // namespace vitrine
