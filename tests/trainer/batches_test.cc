#include "trainer/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

namespace vitrine {
namespace {

std::vector<int> RandomLengths(int n) {
  std::mt19937_64 random(3);
  std::vector<int> lengths(n);
  for (int& length : lengths) length = 5 + static_cast<int>(random() % 60);
  return lengths;
}

TEST(Batches, HoldEveryExampleOnce) {
  const std::vector<int> lengths = RandomLengths(1003);
  std::mt19937_64 random(1);
  std::vector<int32_t> seen;
  for (const TrainingBatch& batch : MakeBatches(4, lengths, 32, 800, &random)) {
    EXPECT_EQ(batch.task, 4);
    EXPECT_LE(batch.examples.size(), 32);
    int tokens = 0;
    for (const int32_t example : batch.examples) tokens += lengths[example];
    EXPECT_LE(tokens, 800);
    seen.insert(seen.end(), batch.examples.begin(), batch.examples.end());
  }
  std::sort(seen.begin(), seen.end());
  std::vector<int32_t> all(1003);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(seen, all);
}

TEST(Batches, AnExampleAboveTheTokenLimitIsABatchOfItsOwn) {
  std::mt19937_64 random(1);
  const auto batches = MakeBatches(0, {10, 500, 10}, 8, 100, &random);
  ASSERT_EQ(batches.size(), 2);
  EXPECT_EQ(batches[0].examples.size(), 2);
  EXPECT_EQ(batches[1].examples, std::vector<int32_t>{1});
}

TEST(Batches, KeepGroupsWhole) {
  const std::vector<int> lengths = RandomLengths(1003);
  std::vector<int> groups;
  for (size_t i = 0; i < lengths.size(); ++i) {
    groups.push_back(static_cast<int>(i * i % 97));
  }
  std::mt19937_64 random(1);
  const auto batches =
      MakeGroupedBatches(2, lengths, groups, 64, 1 << 20, &random);
  std::map<int, std::set<int>> batches_of;
  size_t seen = 0;
  for (size_t b = 0; b < batches.size(); ++b) {
    EXPECT_EQ(batches[b].task, 2);
    EXPECT_LE(batches[b].examples.size(), 64);
    EXPECT_FALSE(batches[b].examples.empty());
    seen += batches[b].examples.size();
    for (const int32_t example : batches[b].examples) {
      batches_of[groups[example]].insert(static_cast<int>(b));
    }
  }
  EXPECT_EQ(seen, lengths.size());
  for (const auto& [group, of] : batches_of) {
    EXPECT_EQ(of.size(), 1) << "group " << group;
  }
}

TEST(Batches, CutAGroupAboveTheLimits) {
  std::mt19937_64 random(1);
  const std::vector<int> lengths(10, 10), groups(10, 3);
  const auto by_size = MakeGroupedBatches(0, lengths, groups, 4, 1000, &random);
  ASSERT_EQ(by_size.size(), 3);
  EXPECT_EQ(by_size[2].examples, (std::vector<int32_t>{8, 9}));
  const auto by_tokens = MakeGroupedBatches(0, lengths, groups, 8, 35, &random);
  ASSERT_EQ(by_tokens.size(), 4);
  EXPECT_EQ(by_tokens[0].examples, (std::vector<int32_t>{0, 1, 2}));
}

TEST(Batches, HoldLikeLengths) {
  const std::vector<int> lengths = RandomLengths(2048);
  std::mt19937_64 random(1);
  double spread = 0;
  const auto batches = MakeBatches(0, lengths, 32, 1 << 20, &random);
  for (const TrainingBatch& batch : batches) {
    int low = 1000, high = 0;
    for (const int32_t example : batch.examples) {
      low = std::min(low, lengths[example]);
      high = std::max(high, lengths[example]);
    }
    spread += high - low;
  }
  EXPECT_LT(spread / static_cast<double>(batches.size()), 10);
}

TEST(Batches, DifferFromEpochToEpochAndRepeatWithTheSeed) {
  const std::vector<int> lengths = RandomLengths(300);
  std::mt19937_64 random(7), again(7);
  const auto first = MakeBatches(0, lengths, 16, 4096, &random);
  const auto second = MakeBatches(0, lengths, 16, 4096, &random);
  const auto repeated = MakeBatches(0, lengths, 16, 4096, &again);
  ASSERT_EQ(first.size(), repeated.size());
  bool differs = false;
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].examples, repeated[i].examples);
    differs = differs || first[i].examples != second[i].examples;
  }
  EXPECT_TRUE(differs);
}

}  // namespace
}  // namespace vitrine
