#include "trainer/bm25.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Bm25Words, AreLowerCasedRuns) {
  EXPECT_THAT(Bm25Words("Red SOFA, 3-seater (200cm)!"),
              ElementsAre("red", "sofa", "3", "seater", "200cm"));
  EXPECT_THAT(Bm25Words("  ...  "), IsEmpty());
  EXPECT_THAT(Bm25Words("caf\u00e9 \u6c99\u53d1"),
              ElementsAre("caf\u00e9", "\u6c99", "\u53d1"));
}

TEST(Bm25, ScoresByTheFormula) {
  const Bm25 bm25({"red sofa", "blue sofa sofa", "lamp"}, 3);
  // n = 3, df(red) = 1, mean length 2, length 2, tf 1.
  const double idf_red = std::log(1 + (3 - 1 + 0.5) / (1 + 0.5));
  EXPECT_NEAR(bm25.Score("red", "red sofa"),
              idf_red * 2.2 / (1 + 1.2 * (0.25 + 0.75)), 1e-12);
  const double idf_sofa = std::log(1 + (3 - 2 + 0.5) / (2 + 0.5));
  EXPECT_NEAR(bm25.Score("sofa", "blue sofa sofa"),
              idf_sofa * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 1.5)), 1e-12);
  EXPECT_EQ(bm25.Score("chair", "red sofa"), 0);
  EXPECT_EQ(bm25.Score("", "red sofa"), 0);
}

TEST(Bm25, MeanLengthIsOfTheScoredOnes) {
  const Bm25 all({"a b c d e f", "x"}, 2);
  const Bm25 last({"a b c d e f", "x"}, 1);
  // Longer than the mean of 1, shorter than that of 3.5.
  EXPECT_LT(last.Score("x", "x y"), all.Score("x", "x y"));
}

}  // namespace
}  // namespace vitrine
