#include "trainer/evaluation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace vitrine {
namespace {

TEST(Ndcg, IsGainOverTheBestOrder) {
  // Grades 0, 3, 1 in the order of the scores: gains 0, 7, 1.
  const double dcg = 0 + 7 / std::log2(3) + 1 / std::log2(4);
  const double best = 7 / std::log2(2) + 1 / std::log2(3);
  EXPECT_NEAR(NdcgAt(10, {{0.9, 0, 0}, {0.5, 3, 0}, {0.1, 1, 0}}), dcg / best,
              1e-12);
  EXPECT_DOUBLE_EQ(NdcgAt(10, {{0.1, 0, 0}, {0.9, 3, 0}, {0.5, 1, 0}}), 1);
}

TEST(Ndcg, CountsOnlyTheFirstK) {
  EXPECT_DOUBLE_EQ(NdcgAt(1, {{2, 0, 0}, {1, 1, 0}}), 0);
  EXPECT_NEAR(NdcgAt(2, {{2, 0, 0}, {1, 1, 0}}), 1 / std::log2(3), 1e-12);
}

TEST(Ndcg, EqualScoresFollowTheTie) {
  EXPECT_DOUBLE_EQ(NdcgAt(10, {{0, 0, 2}, {0, 1, 1}}), 1);
  EXPECT_LT(NdcgAt(10, {{0, 0, 1}, {0, 1, 2}}), 1);
}

TEST(Tie, IsTheReferencesHash) {
  // int(sha256(b"sofaa1").hexdigest()[:8], 16)
  EXPECT_EQ(TieOf("sofa", "a1"), TieOf("sofaa", "1"));
  EXPECT_EQ(TieOf("ab", "c"), 0xba7816bf);  // sha256("abc")
}

TEST(ReciprocalRank, IsOfTheFirstGoodRow) {
  EXPECT_DOUBLE_EQ(ReciprocalRank(1.5, {{3, 1, 0}, {2, 2, 0}, {1, 3, 0}}), 0.5);
  EXPECT_DOUBLE_EQ(ReciprocalRank(1.5, {{3, 1, 0}}), 0);
}

TEST(Ranking, SkipsQueriesWithoutTwoGrades) {
  const std::vector<int32_t> group = {0, 1, 0, 1, 2};
  const std::vector<RankedRow> rows = {
      {1, 0, 0}, {1, 2, 0}, {2, 3, 0}, {2, 2, 0}, {1, 3, 0}};
  const RankingMetrics metrics = EvaluateRanking(group, rows, 1.5);
  EXPECT_EQ(metrics.queries, 1);  // the first: grades 0 and 3
  EXPECT_DOUBLE_EQ(metrics.ndcg_at_10, 1);
  EXPECT_DOUBLE_EQ(metrics.mrr, 1);
}

TEST(Ranking, OfNothingIsZero) {
  const RankingMetrics metrics = EvaluateRanking({}, {}, 1);
  EXPECT_EQ(metrics.queries, 0);
  EXPECT_EQ(metrics.ndcg_at_10, 0);
}

TEST(Place, CountsBetterItemsThatWereNotSeen) {
  const std::vector<float> scores = {0.9f, 0.8f, 0.7f, 0.6f};
  EXPECT_EQ(PlaceOf(2, scores, {}), 2);
  EXPECT_EQ(PlaceOf(2, scores, {0}), 1);
  EXPECT_EQ(PlaceOf(2, scores, {0, 0, 1}), 0);
  EXPECT_EQ(PlaceOf(2, scores, {2, 3}), 2);  // the target stays in
}

TEST(Place, ATargetWithoutAScoreIsBehindAll) {
  EXPECT_EQ(PlaceOf(1, std::vector<float>{0.5f, NAN, 0.1f}, {}), 3);
}

TEST(Place, EqualScoresGoByIndex) {
  const std::vector<float> scores(5);
  EXPECT_EQ(PlaceOf(0, scores, {}), 0);
  EXPECT_EQ(PlaceOf(4, scores, {}), 4);
  EXPECT_EQ(PlaceOf(4, scores, {1}), 3);
}

TEST(NextItem, CountsThePlacesBelowTen) {
  const NextItemMetrics metrics = EvaluateNextItem({0, 2, 9, 10});
  EXPECT_DOUBLE_EQ(metrics.hit_rate_at_10, 0.75);
  EXPECT_NEAR(metrics.ndcg_at_10, (1 + 0.5 + 1 / std::log2(11)) / 4, 1e-12);
}

TEST(MacroF1, IsTheMeanOverLabelsThatOccur) {
  // (rows, 3): label 0: TP 1, FP 1; label 1: FN 1; label 2 nowhere.
  const std::vector<uint8_t> truth = {1, 0, 0, 0, 1, 0};
  const std::vector<uint8_t> predicted = {1, 0, 0, 1, 0, 0};
  EXPECT_DOUBLE_EQ(MacroF1(truth, predicted, 3), (2.0 / 3 + 0) / 2);
  EXPECT_EQ(MacroF1({0, 0}, {0, 0}, 2), 0);
}

TEST(Interests, AreRankedAndCut) {
  // Row 0: truth {1}, best label 1. Row 1: truth {0, 2}, order 1, 2, 0.
  const std::vector<float> scores = {-1, 2, -2, -3, 1, 0.5};
  const std::vector<uint8_t> truth = {0, 1, 0, 1, 0, 1};
  const InterestMetrics metrics = EvaluateInterests(scores, truth, 3, 0);
  EXPECT_DOUBLE_EQ(metrics.accuracy, 0.5);
  const double second =
      (1 / std::log2(3) + 1 / std::log2(4)) / (1 + 1 / std::log2(3));
  EXPECT_NEAR(metrics.ndcg_at_10, (1 + second) / 2, 1e-12);
  // Label 0: missed. Label 1: one hit, one wrong. Label 2: hit.
  EXPECT_NEAR(metrics.macro_f1, (0 + 2.0 / 3 + 1) / 3, 1e-12);
}

TEST(Interests, RowsWithoutLabelsDoNotCount) {
  const InterestMetrics metrics =
      EvaluateInterests({1, -1, 1, -1}, {0, 0, 1, 0}, 2, 0);
  EXPECT_DOUBLE_EQ(metrics.accuracy, 1);
  EXPECT_DOUBLE_EQ(metrics.ndcg_at_10, 1);
}

TEST(Classification, CountsRightRowsAndLabels) {
  const ClassificationMetrics metrics =
      EvaluateClassification({0, 0, 1, 1}, {0, 0, 0, 1}, 3);
  EXPECT_DOUBLE_EQ(metrics.accuracy, 0.75);
  EXPECT_NEAR(metrics.macro_f1, (4.0 / 5 + 2.0 / 3) / 2, 1e-12);
}

TEST(Platt, FindsTheLogisticThatMadeTheData) {
  // As many positives and negatives at x as sigmoid(4x - 1) says.
  std::vector<float> positives, negatives;
  for (int i = -20; i <= 20; ++i) {
    const float x = static_cast<float>(i) / 20;
    const double p = 1 / (1 + std::exp(-(4 * x - 1)));
    const int n = static_cast<int>(std::lround(p * 1000));
    positives.insert(positives.end(), n, x);
    negatives.insert(negatives.end(), 1000 - n, x);
  }
  const PlattScale fit = FitPlatt(positives, negatives);
  EXPECT_NEAR(fit.scale, 4, 0.1);
  // The sides weigh the same, which moves the bias by the log of their ratio.
  const double shift = std::log(static_cast<double>(negatives.size()) /
                                static_cast<double>(positives.size()));
  EXPECT_NEAR(fit.bias, -1 + shift, 0.1);
}

TEST(Platt, StaysFiniteWhereTheSidesSeparate) {
  const PlattScale fit = FitPlatt({0.8f, 0.9f}, {-0.1f, 0.1f});
  EXPECT_TRUE(std::isfinite(fit.scale));
  EXPECT_GT(1 / (1 + std::exp(-(fit.scale * 0.85 + fit.bias))), 0.9);
  EXPECT_LT(1 / (1 + std::exp(-(fit.scale * 0.0 + fit.bias))), 0.1);
}

TEST(Platt, OfConstantsAndOfNothingIsFinite) {
  const PlattScale same = FitPlatt({0.5f, 0.5f}, {0.5f});
  EXPECT_NEAR(1 / (1 + std::exp(-(same.scale * 0.5 + same.bias))), 0.5, 1e-3);
  EXPECT_EQ(FitPlatt({}, {0.1f}).scale, 1);
}

}  // namespace
}  // namespace vitrine
