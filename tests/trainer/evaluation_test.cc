#include "trainer/evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/file.h"
#include "nlohmann/json.hpp"
#include "tests/trainer/label_rows.h"

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
      ProbabilitiesOf({0, 0, 1, 1}, {0.62, 0.64, 1, 0.95}, 2), {0, 1, 1, 1},
      labels);
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
  const Evaluation evaluation =
      EvaluateClassification(ProbabilitiesOf({0, 0, 1, 1}, {1, 1, 1, 1}, 3),
                             {0, 0, 0, 1}, {"a", "b", "c"});
  EXPECT_EQ(Names(evaluation), MetricNames(internal::HEAD_KIND_CLASSIFICATION));
  EXPECT_DOUBLE_EQ(Value(evaluation, "accuracy"), 0.75);
  EXPECT_NEAR(Value(evaluation, "macro_f1"), (4.0 / 5 + 2.0 / 3) / 2, 1e-12);
  EXPECT_NEAR(Value(evaluation, "ece"), 0.25, 1e-12);
}

TEST(Kappa, IsAgreementBeyondChance) {
  // Grades 0, 1, 2, 3 against 0, 2, 2, 2: squares 0, 1, 0, 1. By chance, the
  // means being 1.5 and 1.5: 14 / 4 + 12 / 4 - 2 * 1.5 * 1.5 = 2.
  const std::vector<RankedRow> rows = {{Logit(0.1), 0, 0},
                                       {Logit(0.6), 1, 0},
                                       {Logit(0.7), 2, 0},
                                       {Logit(0.8), 3, 0}};
  const Evaluation evaluation = EvaluateRelevance({0, 0, 1, 1}, rows, 3, true);
  EXPECT_NEAR(Value(evaluation, "kappa"), 1 - 0.5 / 2, 1e-12);
  // All right; all of one grade; one grade said whatever it is.
  EXPECT_DOUBLE_EQ(
      Resampled(EvaluateRelevance({0, 1}, {{9, 3, 0}, {-9, 0, 0}}, 3, true),
                "kappa", {0, 1}),
      1);
  EXPECT_EQ(Value(EvaluateRelevance({0, 1}, {{9, 3, 0}, {9, 3, 0}}, 3, true),
                  "kappa"),
            0);
  EXPECT_EQ(Value(EvaluateRelevance({0, 1}, {{0, 3, 0}, {0, 0, 0}}, 3, true),
                  "kappa"),
            0);
}

TEST(Kappa, RoundsToWholeGrades) {
  // Of a range of 1: 0.7 and 0.6 are 1, 0.4 is 0.
  const Evaluation evaluation = EvaluateRelevance(
      {0, 0}, {{Logit(0.6), 0.7, 0}, {Logit(0.4), 0, 0}}, 1, true);
  EXPECT_DOUBLE_EQ(Value(evaluation, "kappa"), 1);
}

TEST(RankArea, IsTheShareOfPairsInOrder) {
  // b: 0.8 and 0.4; a: 0.6, 0.4 and 0.1. Of six pairs four are in order and one
  // is a draw.
  const Evaluation evaluation =
      EvaluateClassification({0.2, 0.8, 0.6, 0.4, 0.4, 0.6, 0.6, 0.4, 0.9, 0.1},
                             {1, 1, 0, 0, 0}, {"a", "b"});
  EXPECT_NEAR(Value(evaluation, "auroc"), 4.5 / 6, 1e-12);
  // Without the last row: two and a half of four.
  EXPECT_NEAR(Resampled(evaluation, "auroc", {0, 1, 2, 3}), 2.5 / 4, 1e-12);
  EXPECT_NEAR(Resampled(evaluation, "auroc", {0, 3, 3, 3}), 1, 1e-12);
  EXPECT_EQ(Resampled(evaluation, "auroc", {0, 1}), 0);  // nothing to tell
}

TEST(RankArea, IsTheMeanOverLabelsThatOccurBothWays) {
  // Label a: 0.6 against 0.2 and 0.7. Label b: 0.7 and 0.2 against 0.3. No row
  // is c or d.
  const Evaluation evaluation = EvaluateClassification(
      {0.6, 0.3, 0.1, 0, 0.2, 0.7, 0.1, 0, 0.7, 0.2, 0.1, 0}, {0, 1, 1},
      {"a", "b", "c", "d"});
  EXPECT_NEAR(Value(evaluation, "auroc"), (0.5 + 0.5) / 2, 1e-12);
  EXPECT_EQ(Value(EvaluateClassification({0.6, 0.4}, {0}, {"a", "b"}), "auroc"),
            0);
}

TEST(RankArea, OfVeryManyNumbersTakesTheLabelsWithMostRows) {
  // 600,000 rows: one label of three. Label c, of half the rows, is told apart;
  // the others are not.
  constexpr int kRows = 600000;
  std::vector<int32_t> truth(kRows);
  std::vector<double> probabilities;
  for (int row = 0; row < kRows; ++row) {
    truth[row] = row % 2 == 0 ? 2 : row % 4 == 1 ? 0 : 1;
    const double c = truth[row] == 2 ? 0.8 : 0.2;
    probabilities.insert(probabilities.end(), {(1 - c) / 2, (1 - c) / 2, c});
  }
  EXPECT_DOUBLE_EQ(
      Value(EvaluateClassification(probabilities, truth, {"a", "b", "c"}),
            "auroc"),
      1);
}

TEST(LabelScores, TellPrecisionAndRecallOfWhatOccurs) {
  const Evaluation evaluation =
      EvaluateClassification(ProbabilitiesOf({0, 0, 0, 2}, {1, 1, 1, 1}, 4),
                             {0, 0, 1, 0}, {"a", "b", "c", "d"});
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

// tests/data/metrics.json is scikit-learn's: see make_metric_goldens.py there.
class MetricGoldens : public ::testing::Test {
 protected:
  void ExpectMetrics(const Evaluation& evaluation,
                     const nlohmann::json& expected) {
    for (const auto& [name, value] : expected.items()) {
      EXPECT_NEAR(Value(evaluation, name), value, 1e-9) << name;
    }
    EXPECT_EQ(expected.size(), evaluation.metrics().size());
  }
  const nlohmann::json goldens_ = nlohmann::json::parse(
      *ReadFile(std::string(VITRINE_TEST_DATA) + "/metrics.json"));
};

TEST_F(MetricGoldens, Classification) {
  for (const nlohmann::json& golden : goldens_["classification"]) {
    SCOPED_TRACE(golden["name"]);
    const std::vector<double> probabilities = golden["probabilities"];
    const std::vector<int32_t> truth = golden["truth"];
    const std::vector<std::string> labels = golden["labels"];
    ExpectMetrics(EvaluateClassification(probabilities, truth, labels),
                  golden["metrics"]);
  }
}

TEST_F(MetricGoldens, Relevance) {
  for (const nlohmann::json& golden : goldens_["relevance"]) {
    SCOPED_TRACE(golden["name"]);
    const std::vector<int32_t> query = golden["query"];
    std::vector<RankedRow> rows;
    for (size_t i = 0; i < query.size(); ++i) {
      rows.push_back({golden["logits"][i], golden["grades"][i], 0});
    }
    ExpectMetrics(EvaluateRelevance(query, rows, golden["range"], true),
                  golden["metrics"]);
  }
}

TEST_F(MetricGoldens, Interests) {
  for (const nlohmann::json& golden : goldens_["interest"]) {
    SCOPED_TRACE(golden["name"]);
    const std::vector<float> logits = golden["logits"];
    const std::vector<uint8_t> truth = golden["truth"];
    const std::vector<std::string> labels = golden["labels"];
    ExpectMetrics(EvaluateInterests(logits, truth, labels), golden["metrics"]);
  }
}

TEST(Evaluation, AResampleGivesWhatItsRowsGive) {
  // Rows 2, 0, 0, 0 taken out by hand must give the same numbers.
  const std::vector<int32_t> predicted = {0, 1, 2, 1}, truth = {0, 1, 1, 2};
  const std::vector<double> sure = {0.9, 0.5, 0.4, 0.8};
  const std::vector<std::string> labels = {"a", "b", "c"};
  const Evaluation whole = EvaluateClassification(
      ProbabilitiesOf(predicted, sure, 3), truth, labels);
  const Evaluation part = EvaluateClassification(
      ProbabilitiesOf({2, 0, 0, 0}, {0.4, 0.9, 0.9, 0.9}, 3), {1, 0, 0, 0},
      labels);
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
