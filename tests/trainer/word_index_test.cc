#include "trainer/word_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(WordIndexTest, FindsTheDocumentsOfAWord) {
  const std::vector<std::vector<uint32_t>> words = {
      {7, 0, 8, 7}, {9}, {8, 9, 9}, {}};
  const WordIndex index(4, [&](int64_t d) { return words[d]; });
  EXPECT_THAT(index.With(7), ElementsAre(0));
  EXPECT_THAT(index.With(8), ElementsAre(0, 2));
  EXPECT_THAT(index.With(9), ElementsAre(1, 2));
  EXPECT_EQ(index.CountWith(9), 2);
  EXPECT_THAT(index.With(5), IsEmpty());
  EXPECT_THAT(index.With(0), IsEmpty()) << "punctuation is no word";
  EXPECT_FALSE(index.IsFrequent(9)) << "in few documents, all told";
}

TEST(WordIndexTest, KeepsDocumentsFromBeginningToEnd) {
  constexpr int64_t kDocuments = 1000;
  const WordIndex index(kDocuments, [](int64_t d) {
    return std::vector<uint32_t>{1, d % 2 == 0 ? 2u : 3u,
                                 static_cast<uint32_t>(10 + d / 40)};
  });
  EXPECT_EQ(index.CountWith(2), 500);
  const auto kept = index.With(2);
  EXPECT_EQ(kept.size(), WordIndex::kMostKept);
  for (size_t i = 1; i < kept.size(); ++i) {
    EXPECT_GE(kept[i] - kept[i - 1], 14);
    EXPECT_LE(kept[i] - kept[i - 1], 16);
  }
  EXPECT_EQ(kept.back() % 2, 0);
  EXPECT_TRUE(index.IsFrequent(1));
  EXPECT_TRUE(index.IsFrequent(3));
  EXPECT_FALSE(index.IsFrequent(10));
}

}  // namespace
}  // namespace vitrine
