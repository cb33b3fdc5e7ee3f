#include "trainer/evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace vitrine {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

double Value(const Evaluation& evaluation, const std::string& name) {
  for (const MetricValue& metric : evaluation.metrics()) {
    if (metric.name == name) return metric.value;
  }
  ADD_FAILURE() << "no metric " << name;
  return 0;
}

// Of metric `name` over `units`.
double Resampled(const Evaluation& evaluation, const std::string& name,
                 std::vector<int32_t> units) {
  for (size_t m = 0; m < evaluation.metrics().size(); ++m) {
    if (evaluation.metrics()[m].name == name) return evaluation.Value(m, units);
  }
  ADD_FAILURE() << "no metric " << name;
  return 0;
}

std::vector<std::string> Names(const Evaluation& evaluation) {
  std::vector<std::string> names;
  for (const MetricValue& metric : evaluation.metrics()) {
    names.push_back(metric.name);
    EXPECT_EQ(metric.lower_is_better,
              metric.name == "rmse" || metric.name == "ece");
  }
  return names;
}

float Logit(double p) { return static_cast<float>(std::log(p / (1 - p))); }

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

TEST(AveragePrecision, IsTheMeanPrecisionAtTheRelevantRows) {
  // Relevant at ranks 1, 3 and 4.
  EXPECT_DOUBLE_EQ(
      AveragePrecision(1.5, {{9, 2, 0}, {8, 1, 0}, {7, 3, 0}, {6, 2, 0}}),
      (1.0 / 1 + 2.0 / 3 + 3.0 / 4) / 3);
  EXPECT_DOUBLE_EQ(AveragePrecision(1.5, {{9, 1, 0}, {8, 0, 0}}), 0);
}

TEST(Relevance, RankingSkipsQueriesWithoutTwoGrades) {
  const std::vector<int32_t> query = {0, 1, 0, 1, 2};
  const std::vector<RankedRow> rows = {
      {1, 0, 0}, {1, 2, 0}, {2, 3, 0}, {2, 2, 0}, {1, 3, 0}};
  const Evaluation evaluation = EvaluateRelevance(query, rows, 3, false);
  EXPECT_EQ(evaluation.units(), 3);
  EXPECT_EQ(evaluation.Counted(0), 1);  // the first: grades 0 and 3
  EXPECT_THAT(Names(evaluation), ElementsAre("ndcg@10", "mrr", "map"));
  EXPECT_DOUBLE_EQ(Value(evaluation, "ndcg@10"), 1);
  EXPECT_DOUBLE_EQ(Value(evaluation, "mrr"), 1);
  EXPECT_DOUBLE_EQ(Value(evaluation, "map"), 1);
}

TEST(Relevance, HalfTheRangeIsRelevant) {
  // In the order of the scores: grades 1.4, 1.5, 0 of 3.
  const std::vector<RankedRow> rows = {{3, 1.4, 0}, {2, 1.5, 0}, {1, 0, 0}};
  const Evaluation evaluation = EvaluateRelevance({0, 0, 0}, rows, 3, false);
  EXPECT_DOUBLE_EQ(Value(evaluation, "mrr"), 0.5);
  EXPECT_DOUBLE_EQ(Value(evaluation, "map"), 0.5);
}

TEST(Relevance, ErrorAndCalibrationAreOverAllRows) {
  // Probabilities 0.9, 0.8, 0.1 against 1, 1/3 and 1/3: three bins (13, 12,
  // 1). The second query has one row, which counts here.
  const std::vector<RankedRow> rows = {
      {Logit(0.9), 3, 0}, {Logit(0.8), 1, 0}, {Logit(0.1), 1, 0}};
  const Evaluation evaluation = EvaluateRelevance({0, 0, 1}, rows, 3, true);
  EXPECT_EQ(Names(evaluation), MetricNames(internal::HEAD_KIND_RELEVANCE));
  EXPECT_NEAR(Value(evaluation, "rmse"),
              std::sqrt((0.3 * 0.3 + 1.4 * 1.4 + 0.7 * 0.7) / 3), 1e-6);
  EXPECT_NEAR(Value(evaluation, "ece"),
              (0.1 + (0.8 - 1.0 / 3) + (1.0 / 3 - 0.1)) / 3, 1e-6);
}

TEST(Relevance, OfNothingIsZero) {
  const Evaluation evaluation = EvaluateRelevance({}, {}, 1, true);
  EXPECT_EQ(evaluation.units(), 0);
  for (const MetricValue& metric : evaluation.metrics()) {
    EXPECT_EQ(metric.value, 0) << metric.name;
  }
}

TEST(Calibration, GapsWithinABinCancelAndOnesFallIntoTheLast) {
  // 0.62 and 0.64 are in bin 9 of 15, outcomes 1 and 0: |1.26 - 1| / 4.
  // 1 and 0.95 are in bin 14: both right.
  const std::vector<std::string> labels = {"a", "b"};
  const Evaluation evaluation = EvaluateClassification(
      {0, 0, 1, 1}, {0.62f, 0.64f, 1.0f, 0.95f}, {0, 1, 1, 1}, labels);
  EXPECT_NEAR(Value(evaluation, "ece"), (0.26 + 0.05) / 4, 1e-6);
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
  const Evaluation evaluation = EvaluateNextItem({0, 2, 9, 10});
  EXPECT_EQ(Names(evaluation), MetricNames(internal::HEAD_KIND_RECOMMENDATION));
  EXPECT_DOUBLE_EQ(Value(evaluation, "hr@10"), 0.75);
  EXPECT_NEAR(Value(evaluation, "ndcg@10"), (1 + 0.5 + 1 / std::log2(11)) / 4,
              1e-12);
  EXPECT_NEAR(Value(evaluation, "mrr"), (1 + 1.0 / 3 + 0.1 + 1.0 / 11) / 4,
              1e-12);
}

TEST(Interests, AreRankedAndCut) {
  // Row 0: truth {1}, best label 1. Row 1: truth {0, 2}, order 1, 2, 0.
  const std::vector<float> scores = {-1, 2, -2, -3, 1, 0.5};
  const std::vector<uint8_t> truth = {0, 1, 0, 1, 0, 1};
  const std::vector<std::string> labels = {"a", "b", "c"};
  const Evaluation evaluation = EvaluateInterests(scores, truth, labels);
  EXPECT_EQ(Names(evaluation), MetricNames(internal::HEAD_KIND_INTEREST));
  EXPECT_DOUBLE_EQ(Value(evaluation, "accuracy"), 0.5);
  const double second =
      (1 / std::log2(3) + 1 / std::log2(4)) / (1 + 1 / std::log2(3));
  EXPECT_NEAR(Value(evaluation, "ndcg@10"), (1 + second) / 2, 1e-12);
  // Label a: missed. Label b: one hit, one wrong. Label c: hit.
  EXPECT_NEAR(Value(evaluation, "macro_f1"), (0 + 2.0 / 3 + 1) / 3, 1e-12);
}

TEST(Interests, CalibrationIsOverRowsAndLabels) {
  // Bin 10 has 0.7 (no) and 0.71 (yes), bin 2 has 0.15 (yes), bin 0 has 0 (no).
  const std::vector<float> scores = {Logit(0.7), Logit(0.15), Logit(0.71),
                                     -INFINITY};
  const Evaluation evaluation =
      EvaluateInterests(scores, {0, 1, 1, 0}, {"a", "b"});
  EXPECT_NEAR(Value(evaluation, "ece"), ((1.41 - 1) + (1 - 0.15)) / 4, 1e-6);
}

TEST(Interests, RowsWithoutLabelsHaveNoRanking) {
  const Evaluation evaluation =
      EvaluateInterests({1, -1, 1, -1}, {0, 0, 1, 0}, {"a", "b"});
  EXPECT_DOUBLE_EQ(Value(evaluation, "accuracy"), 1);
  EXPECT_DOUBLE_EQ(Value(evaluation, "ndcg@10"), 1);
  EXPECT_EQ(evaluation.units(), 2);
  EXPECT_EQ(evaluation.Counted(1), 1);
}

TEST(Classification, CountsRightRowsAndLabels) {
  const Evaluation evaluation = EvaluateClassification(
      {0, 0, 1, 1}, {1, 1, 1, 1}, {0, 0, 0, 1}, {"a", "b", "c"});
  EXPECT_EQ(Names(evaluation), MetricNames(internal::HEAD_KIND_CLASSIFICATION));
  EXPECT_DOUBLE_EQ(Value(evaluation, "accuracy"), 0.75);
  EXPECT_NEAR(Value(evaluation, "macro_f1"), (4.0 / 5 + 2.0 / 3) / 2, 1e-12);
  EXPECT_NEAR(Value(evaluation, "ece"), 0.25, 1e-12);
}

TEST(LabelScores, TellPrecisionAndRecallOfWhatOccurs) {
  const Evaluation evaluation = EvaluateClassification(
      {0, 0, 0, 2}, {1, 1, 1, 1}, {0, 0, 1, 0}, {"a", "b", "c", "d"});
  const auto& scores = evaluation.label_scores();
  ASSERT_EQ(scores.size(), 3);  // nothing is d
  EXPECT_EQ(scores[0].label(), "a");
  EXPECT_DOUBLE_EQ(scores[0].precision(), 2.0 / 3);
  EXPECT_DOUBLE_EQ(scores[0].recall(), 2.0 / 3);
  EXPECT_DOUBLE_EQ(scores[0].f1(), 2.0 / 3);
  EXPECT_EQ(scores[0].rows(), 3);
  EXPECT_EQ(scores[1].label(), "b");  // never said
  EXPECT_EQ(scores[1].precision(), 0);
  EXPECT_EQ(scores[1].recall(), 0);
  EXPECT_EQ(scores[1].rows(), 1);
  EXPECT_EQ(scores[2].label(), "c");  // said, never true
  EXPECT_EQ(scores[2].f1(), 0);
  EXPECT_EQ(scores[2].rows(), 0);

  const Evaluation interests =
      EvaluateInterests({1, 1, 1, -1}, {1, 0, 1, 1}, {"x", "y"});
  EXPECT_THAT(interests.label_scores().size(), 2);
  EXPECT_EQ(interests.label_scores()[0].f1(), 1);
  EXPECT_EQ(interests.label_scores()[1].f1(), 0);
}

TEST(Evaluation, AResampleGivesWhatItsRowsGive) {
  // Rows 2, 0, 0, 0 taken out by hand must give the same numbers.
  const std::vector<int32_t> predicted = {0, 1, 2, 1}, truth = {0, 1, 1, 2};
  const std::vector<float> sure = {0.9f, 0.5f, 0.4f, 0.8f};
  const std::vector<std::string> labels = {"a", "b", "c"};
  const Evaluation whole =
      EvaluateClassification(predicted, sure, truth, labels);
  const Evaluation part = EvaluateClassification(
      {2, 0, 0, 0}, {0.4f, 0.9f, 0.9f, 0.9f}, {1, 0, 0, 0}, labels);
  for (const MetricValue& metric : part.metrics()) {
    EXPECT_NEAR(Resampled(whole, metric.name, {2, 0, 0, 0}), metric.value,
                1e-12)
        << metric.name;
    EXPECT_NE(Value(whole, metric.name), metric.value) << metric.name;
  }

  // Queries 1 and 1 of relevance, whose rows lie apart.
  const std::vector<RankedRow> rows = {
      {1, 0, 0}, {2, 1, 0}, {2, 3, 0}, {1, 3, 0}};
  const Evaluation relevance = EvaluateRelevance({0, 1, 0, 1}, rows, 3, true);
  const Evaluation twice = EvaluateRelevance(
      {0, 0, 1, 1}, {{2, 1, 0}, {1, 3, 0}, {2, 1, 0}, {1, 3, 0}}, 3, true);
  for (const MetricValue& metric : twice.metrics()) {
    EXPECT_NEAR(Resampled(relevance, metric.name, {1, 1}), metric.value, 1e-12)
        << metric.name;
  }
}

TEST(Evaluation, TermsOfOneSlotAddUp) {
  Measure mean{"mean"};
  mean.terms = {{1, 1, 2}, {0, 1, 1}, {1, 1, 3}, {0, 0, 1}, {1, 0, 1}};
  const Evaluation evaluation(3, {mean});
  EXPECT_THAT(evaluation.metrics()[0].value, DoubleEq(3));
  EXPECT_EQ(evaluation.Counted(0), 2);
  EXPECT_THAT(evaluation.Value(0, {1, 1}), DoubleEq(5));
  EXPECT_THAT(evaluation.Value(0, {2}), DoubleEq(0));
  EXPECT_THAT(Evaluation().metrics(), IsEmpty());
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
