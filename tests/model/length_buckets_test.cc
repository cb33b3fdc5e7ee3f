#include "model/length_buckets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

std::vector<int32_t> Offsets(const std::vector<int>& lengths) {
  std::vector<int32_t> offsets = {0};
  for (const int length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

TEST(LengthBuckets, PutsLikeLengthsTogether) {
  const std::vector<LengthBucket> buckets =
      GroupByLength(Offsets({100, 10, 512, 16, 119, 9}), 1.2, 8);
  ASSERT_EQ(buckets.size(), 3);
  EXPECT_THAT(buckets[0].sequences, ElementsAre(5, 1, 3));
  EXPECT_EQ(buckets[0].shortest, 9);
  EXPECT_EQ(buckets[0].longest, 16);
  EXPECT_THAT(buckets[1].sequences, ElementsAre(0, 4));
  EXPECT_THAT(buckets[2].sequences, ElementsAre(2));
}

TEST(LengthBuckets, HoldsEverySequenceOnceWithinItsLimits) {
  std::vector<int> lengths;
  for (int i = 0; i < 300; ++i) lengths.push_back(i * 7919 % 512 + 1);
  std::set<int> seen;
  int last = 0;
  for (const LengthBucket& bucket : GroupByLength(Offsets(lengths), 1.2, 8)) {
    EXPECT_GT(bucket.shortest, last);
    EXPECT_LE(bucket.longest, std::max<int>((bucket.shortest + 7) / 8 * 8,
                                            bucket.shortest * 1.2));
    for (const int s : bucket.sequences) {
      EXPECT_TRUE(seen.insert(s).second);
      EXPECT_GE(lengths[s], bucket.shortest);
      EXPECT_LE(lengths[s], bucket.longest);
    }
    last = bucket.longest;
  }
  EXPECT_EQ(seen.size(), lengths.size());
}

TEST(LengthBuckets, OfNothingAreNone) {
  EXPECT_THAT(GroupByLength({0}), IsEmpty());
}

TEST(ShareByLength, EvensTheTokensOut) {
  std::vector<int> lengths;
  for (int i = 0; i < 200; ++i) lengths.push_back(i * 7919 % 60 + 4);
  const std::vector<int32_t> offsets = Offsets(lengths);
  for (const int parts : {1, 2, 3, 8}) {
    const std::vector<std::vector<int>> shares = ShareByLength(offsets, parts);
    ASSERT_EQ(shares.size(), parts);
    std::set<int> seen;
    for (const std::vector<int>& share : shares) {
      int tokens = 0;
      for (const int s : share) {
        EXPECT_TRUE(seen.insert(s).second);
        tokens += lengths[s];
      }
      EXPECT_NEAR(tokens, offsets.back() / parts, 64);
    }
    EXPECT_EQ(seen.size(), lengths.size());
  }
}

TEST(ShareByLength, MakesNoEmptyPart) {
  EXPECT_THAT(ShareByLength(Offsets({5}), 4), ElementsAre(ElementsAre(0)));
  EXPECT_THAT(ShareByLength(Offsets({512, 1, 1}), 4),
              ElementsAre(ElementsAre(1, 2), ElementsAre(0)));
}

TEST(ShareByTokens, HoldsEverySequenceOnceAndTheFullestFirst) {
  std::vector<int> lengths;
  for (int i = 0; i < 200; ++i) lengths.push_back(i * 7919 % 60 + 4);
  const std::vector<int32_t> offsets = Offsets(lengths);
  for (const int parts : {1, 2, 3, 8, 64}) {
    const std::vector<std::vector<int>> shares = ShareByTokens(offsets, parts);
    ASSERT_EQ(shares.size(), parts);
    std::set<int> seen;
    int last = offsets.back();
    for (const std::vector<int>& share : shares) {
      EXPECT_THAT(share, Not(IsEmpty()));
      int tokens = 0;
      for (const int s : share) {
        EXPECT_TRUE(seen.insert(s).second);
        tokens += lengths[s];
      }
      EXPECT_LE(tokens, last);
      last = tokens;
      // The last one that went in, a short one, made the difference.
      EXPECT_NEAR(tokens, offsets.back() / parts, parts == 64 ? 64 : 8);
    }
    EXPECT_EQ(seen.size(), lengths.size());
  }
}

TEST(ShareByTokens, GivesTheLongestToTheEmptiest) {
  // 70 alone; 50 and 20; 40 and 30.
  EXPECT_THAT(ShareByTokens(Offsets({20, 50, 70, 30, 40}), 3),
              UnorderedElementsAre(ElementsAre(2), ElementsAre(1, 0),
                                   ElementsAre(4, 3)));
  EXPECT_THAT(ShareByTokens(Offsets({5, 100, 5}), 2),
              ElementsAre(ElementsAre(1), UnorderedElementsAre(0, 2)));
}

TEST(ShareByTokens, MakesNoEmptyShare) {
  EXPECT_THAT(ShareByTokens(Offsets({5}), 4), ElementsAre(ElementsAre(0)));
  EXPECT_THAT(ShareByTokens(Offsets({1, 512}), 4),
              ElementsAre(ElementsAre(1), ElementsAre(0)));
  EXPECT_THAT(ShareByTokens({0}, 4), IsEmpty());
}

TEST(ShareByTokens, GivesEqualBatchesEqualShares) {
  const std::vector<int32_t> offsets =
      Offsets({7, 7, 7, 31, 31, 1, 1, 1, 1, 90, 7});
  EXPECT_EQ(ShareByTokens(offsets, 3), ShareByTokens(offsets, 3));
}

TEST(Imbalance, IsTheFullestShareOverTheAverage) {
  EXPECT_DOUBLE_EQ(Imbalance(Offsets({512}), 1), 1);
  EXPECT_DOUBLE_EQ(Imbalance(Offsets({512}), 4), 4);
  EXPECT_DOUBLE_EQ(Imbalance(Offsets({30, 30}), 2), 1);
  EXPECT_DOUBLE_EQ(Imbalance(Offsets({30, 30, 30}), 2), 4.0 / 3);
  EXPECT_DOUBLE_EQ(Imbalance(Offsets({10, 20, 30}), 2), 1);
  EXPECT_DOUBLE_EQ(Imbalance(Offsets({100, 20, 30}), 2), 200.0 / 150);
}

}  // namespace
}  // namespace vitrine
