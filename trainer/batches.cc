#include "trainer/batches.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace vitrine {
namespace {

// Batches in one stretch: long enough for like lengths to meet, short enough
// for batches to differ from epoch to epoch.
constexpr size_t kStretchBatches = 16;

}  // namespace

std::vector<TrainingBatch> MakeBatches(int task, const std::vector<int>& tokens,
                                       int batch_size, int batch_tokens,
                                       std::mt19937_64* random) {
  std::vector<int32_t> order(tokens.size());
  std::iota(order.begin(), order.end(), 0);
  Shuffle(&order, random);
  const size_t stretch = kStretchBatches * batch_size;
  for (size_t begin = 0; begin < order.size(); begin += stretch) {
    const size_t end = std::min(order.size(), begin + stretch);
    std::stable_sort(
        order.begin() + begin, order.begin() + end,
        [&tokens](int32_t a, int32_t b) { return tokens[a] < tokens[b]; });
  }
  std::vector<TrainingBatch> batches;
  int64_t filled = 0;
  for (const int32_t example : order) {
    if (batches.empty() || batches.back().examples.size() >= batch_size ||
        filled + tokens[example] > batch_tokens) {
      batches.push_back({task, {}});
      filled = 0;
    }
    batches.back().examples.push_back(example);
    filled += tokens[example];
  }
  return batches;
}

std::vector<TrainingBatch> MakeGroupedBatches(int task,
                                              const std::vector<int>& tokens,
                                              const std::vector<int>& groups,
                                              int batch_size, int batch_tokens,
                                              std::mt19937_64* random) {
  // Ordered, so that the shuffle begins from the same order in every run.
  std::map<int, std::vector<int32_t>> by_group;
  for (size_t i = 0; i < groups.size(); ++i) {
    by_group[groups[i]].push_back(static_cast<int32_t>(i));
  }
  std::vector<const std::vector<int32_t>*> order;
  for (const auto& [group, examples] : by_group) order.push_back(&examples);
  Shuffle(&order, random);
  std::vector<TrainingBatch> batches;
  int64_t filled = 0;
  const auto begin = [&] {
    batches.push_back({task, {}});
    filled = 0;
  };
  for (const std::vector<int32_t>* const examples : order) {
    int64_t needed = 0;
    for (const int32_t example : *examples) needed += tokens[example];
    if (batches.empty() || filled + needed > batch_tokens ||
        batches.back().examples.size() + examples->size() > batch_size) {
      if (batches.empty() || !batches.back().examples.empty()) begin();
    }
    for (const int32_t example : *examples) {
      if (!batches.back().examples.empty() &&
          (batches.back().examples.size() >= batch_size ||
           filled + tokens[example] > batch_tokens)) {
        begin();
      }
      batches.back().examples.push_back(example);
      filled += tokens[example];
    }
  }
  return batches;
}

void PadTokens(int32_t pad_id, int64_t longest, Batch* batch) {
  while (batch->tokens() % kTokenGrain != 0) {
    const int64_t length =
        std::min(kTokenGrain - batch->tokens() % kTokenGrain, longest);
    batch->Add({std::vector<int32_t>(length, pad_id),
                std::vector<int32_t>(length), false},
               HeadMask{1});
  }
}

}  // namespace vitrine
