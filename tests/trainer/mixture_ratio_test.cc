#include "trainer/mixture_ratio.h"

#include <gtest/gtest.h>

namespace vitrine {
namespace {

// `better` of so many units gain, the others stay.
std::vector<double> Gains(size_t units, size_t better) {
  std::vector<double> gains(units);
  for (size_t i = 0; i < better; ++i) gains[i] = 1;
  return gains;
}

TEST(PickRatioTest, StaysAtTheUsualUnlessTheRowsSayMore) {
  // 3 of 100 are better: 1.7 standard errors. 10 are: 3.3.
  EXPECT_EQ(PickRatio({Gains(100, 3), Gains(100, 0)}, 1), 1);
  EXPECT_EQ(PickRatio({Gains(100, 10), Gains(100, 0)}, 1), 0);
  // What one gains another loses.
  std::vector<double> others(100, 1);
  for (size_t i = 0; i < 40; ++i) others[i] = 0;
  EXPECT_EQ(PickRatio({others, Gains(100, 40)}, 1), 0);
  EXPECT_EQ(PickRatio({others, Gains(100, 55)}, 1), 1);
}

TEST(PickRatioTest, TakesTheBestOfThoseThatAreBetter) {
  EXPECT_EQ(
      PickRatio({Gains(100, 10), Gains(100, 30), Gains(100, 0), Gains(100, 30)},
                2),
      1);
  // The better by noise alone is not among them.
  std::vector<double> noisy(100);
  for (size_t i = 0; i < 100; ++i) noisy[i] = i % 2 == 0 ? 20 : -19;
  EXPECT_EQ(PickRatio({noisy, Gains(100, 30), Gains(100, 0)}, 2), 1);
}

TEST(PickRatioTest, EveryUnitBetterByTheSameIsNoNoise) {
  EXPECT_EQ(PickRatio({Gains(30, 0), Gains(30, 30)}, 0), 1);
}

TEST(PickRatioTest, FewUnitsSayNothing) {
  EXPECT_EQ(PickRatio({Gains(29, 0), Gains(29, 29)}, 0), 0);
  EXPECT_EQ(PickRatio({{}, {}}, 1), 1);
}

}  // namespace
}  // namespace vitrine
