#include "model/ngrams.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(CountNgramsTest, CountsTokensAndNeighbours) {
  EXPECT_THAT(CountNgrams({}), IsEmpty());
  EXPECT_THAT(CountNgrams({5}), ElementsAre(Pair(Ngram{5}, 1)));
  EXPECT_THAT(CountNgrams({2, 1, 2, 1}),
              ElementsAre(Pair(Ngram{1}, 2), Pair(Ngram{1, 2}, 1),
                          Pair(Ngram{2}, 2), Pair(Ngram{2, 1}, 2)));
}

// 10 is 1 and 2, 20 is 3, 4 and 1.
TokenSplits TensAndTwenties() {
  return *TokenSplits::Create({{10, 20}, {2, 5}, {1, 2, 3, 4, 1}});
}

TEST(TokenSplitsTest, FindsPartsOrNone) {
  const TokenSplits splits = TensAndTwenties();
  EXPECT_THAT(splits.Of(10), ElementsAre(1, 2));
  EXPECT_THAT(splits.Of(20), ElementsAre(3, 4, 1));
  EXPECT_THAT(splits.Of(1), IsEmpty());
  EXPECT_THAT(splits.Of(15), IsEmpty());
  EXPECT_THAT(splits.Of(99), IsEmpty());
  EXPECT_THAT(TokenSplits().Of(10), IsEmpty());
}

TEST(TokenSplitsTest, TablesAreChecked) {
  const auto error = [](TokenSplits::Table table) {
    return std::string(
        TokenSplits::Create(std::move(table)).status().message());
  };
  EXPECT_EQ(error({}), "");
  EXPECT_THAT(error({{1}, {}, {}}), HasSubstr("0 split_ends"));
  EXPECT_THAT(error({{2, 1}, {1, 2}, {5, 6}}), HasSubstr("split_tokens"));
  EXPECT_THAT(error({{1, 2}, {2, 2}, {5, 6}}), HasSubstr("split_ends"));
  EXPECT_THAT(error({{1}, {-1}, {}}), HasSubstr("split_ends: number 0"));
  EXPECT_THAT(error({{1}, {2}, {5}}), HasSubstr("split_parts: 1, not 2"));
}

TEST(CountNgramsTest, CountsPartsToo) {
  // The text in parts is 9 1 2 8 1 7: what has no part is not counted twice.
  EXPECT_THAT(
      CountNgrams({9, 10, 8, 1, 7}, TensAndTwenties()),
      ElementsAre(Pair(Ngram{1}, 2), Pair(Ngram{1, 2}, 1), Pair(Ngram{1, 7}, 1),
                  Pair(Ngram{2}, 1), Pair(Ngram{2, 8}, 1), Pair(Ngram{7}, 1),
                  Pair(Ngram{8}, 1), Pair(Ngram{8, 1}, 1), Pair(Ngram{9}, 1),
                  Pair(Ngram{9, 1}, 1), Pair(Ngram{9, 10}, 1),
                  Pair(Ngram{10}, 1), Pair(Ngram{10, 8}, 1)));
}

TEST(NgramIndexTest, WeighsByCountAndRarity) {
  const std::vector<Ngram> ngrams = {{7}, {7, 8}, {9}};
  const std::vector<float> idf = {1, 2, 3};
  const NgramIndex index(ngrams, idf);
  // Token 7 twice, and once before 8; 8 alone is not known.
  const double seven = 1 + std::log(2.0), pair = 2;
  const double norm = std::sqrt(seven * seven + pair * pair);
  EXPECT_THAT(index.Features({7, 8, 7}),
              ElementsAre(Pair(0, FloatNear(seven / norm, 1e-6)),
                          Pair(1, FloatNear(pair / norm, 1e-6))));
  EXPECT_THAT(index.Features({1, 2}), IsEmpty());
  EXPECT_EQ(index.Find({9}), 2);
  EXPECT_EQ(index.Find({9, 7}), NgramIndex::kUnknown);
}

TEST(NgramIndexTest, ListsAreChecked) {
  const auto error = [](const std::vector<Ngram>& ngrams,
                        const std::vector<float>& idf) {
    return std::string(CheckNgrams(ngrams, idf).message());
  };
  EXPECT_EQ(error({{1}, {1, 0}, {2}}, {1, 1, 1}), "");
  EXPECT_THAT(error({{1}}, {1, 1}), HasSubstr("1 n-grams, but idf of 2"));
  EXPECT_THAT(error({{1}, {1}}, {1, 1}), HasSubstr("number 1 is not above"));
  EXPECT_THAT(error({{1}}, {std::numeric_limits<float>::infinity()}),
              HasSubstr("idf: number 0 is inf"));
}

}  // namespace
}  // namespace vitrine
