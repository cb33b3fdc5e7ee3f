#include "trainer/parity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace vitrine {
namespace {

Parity Compare(const std::vector<float>& expected,
               const std::vector<float>& actual) {
  return CompareOutputs(expected, actual);
}

TEST(ParityTest, RanksAreComparedNotValues) {
  const Parity same = Compare({1, 2, 3, 4}, {1, 20, 30, 400});
  EXPECT_DOUBLE_EQ(same.rank_correlation, 1);
  EXPECT_DOUBLE_EQ(same.largest_difference, 396);
  EXPECT_DOUBLE_EQ(Compare({1, 2, 3, 4}, {4, 3, 2, 1}).rank_correlation, -1);
  // 1 - 6 * 2 / (4 * 15).
  EXPECT_DOUBLE_EQ(Compare({1, 2, 3, 4}, {1, 3, 2, 4}).rank_correlation, 0.8);
}

TEST(ParityTest, EqualValuesShareTheirMeanRank) {
  // Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5).
  EXPECT_NEAR(Compare({1, 2, 2, 3}, {1, 2, 3, 4}).rank_correlation,
              std::sqrt(0.9), 1e-12);
  EXPECT_DOUBLE_EQ(Compare({2, 2}, {3, 3}).rank_correlation, 1);
  EXPECT_DOUBLE_EQ(Compare({1, 2}, {3, 3}).rank_correlation, 0);
  EXPECT_DOUBLE_EQ(Compare({}, {}).rank_correlation, 1);
}

TEST(ParityTest, OutputsThatAreNoNumbersAreNotHidden) {
  const Parity parity = Compare({1, 2}, {1, std::nanf("")});
  EXPECT_TRUE(std::isnan(parity.rank_correlation));
  EXPECT_TRUE(std::isnan(parity.largest_difference));
}

}  // namespace
}  // namespace vitrine
