#include "model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vitrine {
namespace {

using ::testing::ElementsAre;

constexpr SpecialTokens kBert{.cls = 101, .sep = 102};
constexpr SpecialTokens kRoberta{.cls = 0, .sep = 2, .double_separator = true};

TEST(EncodeSingle, WrapsTheTextInSpecialTokens) {
  const Encoding e = EncodeSingle(kBert, {{7, 8}}, 8);
  EXPECT_THAT(e.ids, ElementsAre(101, 7, 8, 102));
  EXPECT_THAT(e.segment_ids, ElementsAre(0, 0, 0, 0));
  EXPECT_FALSE(e.truncated);
}

TEST(EncodeSingle, CutsToTheBudgetAndSaysSo) {
  const Encoding e = EncodeSingle(kBert, {{7, 8, 9}}, 4);
  EXPECT_THAT(e.ids, ElementsAre(101, 7, 8, 102));
  EXPECT_TRUE(e.truncated);
  EXPECT_FALSE(EncodeSingle(kBert, {{7, 8, 9}}, 5).truncated);
}

TEST(EncodeSingle, KeepsTheTruncationOfItsText) {
  EXPECT_TRUE(EncodeSingle(kBert, {{7}, true}, 8).truncated);
}

TEST(EncodeSingle, AnEmptyTextIsItsSpecialTokens) {
  EXPECT_THAT(EncodeSingle(kBert, {}, 8).ids, ElementsAre(101, 102));
}

TEST(EncodePair, BertHasOneSeparatorAndTwoSegments) {
  const Encoding e = EncodePair(kBert, {{1, 2}}, {{3}}, 16, 2);
  EXPECT_THAT(e.ids, ElementsAre(101, 1, 2, 102, 3, 102));
  EXPECT_THAT(e.segment_ids, ElementsAre(0, 0, 0, 0, 1, 1));
  EXPECT_FALSE(e.truncated);
}

TEST(EncodePair, RobertaHasTwoSeparatorsAndOneSegment) {
  const Encoding e = EncodePair(kRoberta, {{11, 12}}, {{13}}, 16, 1);
  EXPECT_THAT(e.ids, ElementsAre(0, 11, 12, 2, 2, 13, 2));
  EXPECT_THAT(e.segment_ids, ElementsAre(0, 0, 0, 0, 0, 0, 0));
}

TEST(EncodePair, CutsTheSecondTextOnly) {
  const Tokens a{{1, 2, 3}}, b{{4, 5, 6}};
  const Encoding e = EncodePair(kBert, a, b, 7, 2);
  EXPECT_THAT(e.ids, ElementsAre(101, 1, 2, 3, 102, 4, 102));
  EXPECT_THAT(e.segment_ids, ElementsAre(0, 0, 0, 0, 0, 1, 1));
  EXPECT_TRUE(e.truncated);
  EXPECT_FALSE(EncodePair(kBert, a, b, 9, 2).truncated);
  // Down to nothing of it, and no further.
  EXPECT_THAT(EncodePair(kBert, a, b, 6, 2).ids,
              ElementsAre(101, 1, 2, 3, 102, 102));
}

TEST(EncodePair, CutsTheFirstTextWhereItAloneDoesNotFit) {
  const Encoding e = EncodePair(kRoberta, {{11, 12, 13}}, {{14}}, 6, 1);
  EXPECT_THAT(e.ids, ElementsAre(0, 11, 12, 2, 2, 2));
  EXPECT_TRUE(e.truncated);
}

TEST(EncodePair, KeepsTheTruncationOfEitherText) {
  EXPECT_TRUE(EncodePair(kBert, {{1}, true}, {{2}}, 16, 2).truncated);
  EXPECT_TRUE(EncodePair(kBert, {{1}}, {{2}, true}, 16, 2).truncated);
}

TEST(EncodePair, TwoEmptyTextsAreTheirSpecialTokens) {
  const Encoding e = EncodePair(kBert, {}, {}, 16, 2);
  EXPECT_THAT(e.ids, ElementsAre(101, 102, 102));
  EXPECT_THAT(e.segment_ids, ElementsAre(0, 0, 1));
}

}  // namespace
}  // namespace vitrine
