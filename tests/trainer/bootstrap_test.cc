#include "trainer/bootstrap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/trainer/label_rows.h"

namespace vitrine {
namespace {

using ::testing::HasSubstr;

// The mean of `values`, one a unit.
Evaluation MeanOf(const std::vector<double>& values,
                  const std::string& name = "mean") {
  Measure mean{name};
  for (int32_t unit = 0; unit < values.size(); ++unit) {
    mean.terms.push_back({unit, 0, 1});
    mean.terms.push_back({unit, 1, values[unit]});
  }
  return Evaluation(static_cast<int>(values.size()), {mean});
}

std::vector<double> Normal(int count, double mean, double deviation,
                           std::mt19937_64* random) {
  std::normal_distribution<double> distribution(mean, deviation);
  std::vector<double> values(count);
  for (double& value : values) value = distribution(*random);
  return values;
}

TEST(Bootstrap, CoversTheTruthAsOftenAsItSays) {
  constexpr double kTruth = 0.03;
  std::mt19937_64 random(11);
  int covered = 0;
  for (int pair = 0; pair < 200; ++pair) {
    // What a query is like differs far more than what a model does with it.
    const std::vector<double> before = Normal(100, 0.6, 0.3, &random);
    std::vector<double> after = Normal(100, kTruth, 0.1, &random);
    for (size_t i = 0; i < after.size(); ++i) after[i] += before[i];
    BootstrapOptions options;
    options.resamples = 500;
    options.seed = pair;
    const auto change =
        BootstrapChanges(MeanOf(after), MeanOf(before), options);
    ASSERT_TRUE(change.ok()) << change.status();
    const Interval& interval = change->front();
    covered += interval.low <= kTruth && kTruth <= interval.high;
    // Pairing takes out what the two have in common: 4 * 0.1 / sqrt(100).
    EXPECT_LT(interval.high - interval.low, 0.06);
    EXPECT_GT(interval.high - interval.low, 0.02);
  }
  EXPECT_GE(covered, 180);
  EXPECT_LE(covered, 198);
}

TEST(Bootstrap, AgreesWithTheNormalIntervalOfAMean) {
  std::mt19937_64 random(5);
  const std::vector<double> before(2000, 0);
  const std::vector<double> after = Normal(2000, 0.1, 1, &random);
  double mean = 0, squares = 0;
  for (const double x : after) mean += x / 2000;
  for (const double x : after) squares += (x - mean) * (x - mean) / 1999;
  BootstrapOptions options;
  options.resamples = 4000;
  const auto change = BootstrapChanges(MeanOf(after), MeanOf(before), options);
  const double half = 1.96 * std::sqrt(squares / 2000);
  EXPECT_NEAR(change->front().low, mean - half, 0.1 * half);
  EXPECT_NEAR(change->front().high, mean + half, 0.1 * half);
  options.confidence = 0.5;
  const auto narrow = BootstrapChanges(MeanOf(after), MeanOf(before), options);
  EXPECT_NEAR(narrow->front().high - narrow->front().low,
              2 * 0.6745 / 1.96 * half, 0.1 * half);
}

TEST(Bootstrap, OfTheSameTwiceIsNothing) {
  const Evaluation same = EvaluateNextItem({0, 4, 12, 3, 900});
  const auto change = BootstrapChanges(same, same, {});
  ASSERT_TRUE(change.ok()) << change.status();
  ASSERT_EQ(change->size(), 3);
  for (const Interval& interval : *change) {
    EXPECT_EQ(interval.low, 0);
    EXPECT_EQ(interval.high, 0);
  }
}

TEST(Bootstrap, MetricsThatAreNoMeansAreToldAgainOverEachDraw) {
  // Half the rows go from label b, wrongly said, to right.
  std::vector<int32_t> truth, before, after;
  std::vector<double> sure(400, 1);
  for (int i = 0; i < 400; ++i) {
    truth.push_back(i % 2);
    before.push_back(i % 4 == 0 ? 1 : i % 2);
    after.push_back(i % 2);
  }
  const std::vector<std::string> labels = {"a", "b"};
  const auto change = BootstrapChanges(
      EvaluateClassification(ProbabilitiesOf(after, sure, 2), truth, labels),
      EvaluateClassification(ProbabilitiesOf(before, sure, 2), truth, labels),
      {});
  ASSERT_TRUE(change.ok()) << change.status();
  // macro_f1: 1 - (2/3 + 4/5) / 2; about 0.02 is one standard error.
  EXPECT_LT((*change)[0].low, 1 - (2.0 / 3 + 0.8) / 2);
  EXPECT_GT((*change)[0].high, 1 - (2.0 / 3 + 0.8) / 2);
  EXPECT_GT((*change)[0].low, 0.2);
  EXPECT_LT((*change)[0].high, 0.34);
  // auroc: 1 - 3/4, for half of the pairs were draws.
  EXPECT_LT((*change)[3].low, 0.25);
  EXPECT_GT((*change)[3].high, 0.25);
  EXPECT_GT((*change)[3].low, 0.15);
  EXPECT_LT((*change)[3].high, 0.35);
}

TEST(Bootstrap, OneSeedGivesOneResult) {
  std::mt19937_64 random(3);
  const Evaluation a = MeanOf(Normal(50, 0, 1, &random));
  const Evaluation b = MeanOf(Normal(50, 0, 1, &random));
  BootstrapOptions options;
  const Interval first = BootstrapChanges(a, b, options)->front();
  EXPECT_EQ(BootstrapChanges(a, b, options)->front().low, first.low);
  options.seed = 2;
  EXPECT_NE(BootstrapChanges(a, b, options)->front().low, first.low);
}

TEST(Bootstrap, NumbersThatAreNoneGiveNoInterval) {
  const auto change = BootstrapChanges(MeanOf({1, NAN}), MeanOf({1, 2}), {});
  ASSERT_TRUE(change.ok()) << change.status();
  EXPECT_TRUE(std::isnan(change->front().low));
  EXPECT_TRUE(std::isnan(change->front().high));
}

TEST(Bootstrap, RefusesWhatDoesNotPairUp) {
  const auto message = [](const Evaluation& a, const Evaluation& b,
                          const BootstrapOptions& options) {
    const absl::Status status = BootstrapChanges(a, b, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const Evaluation two = MeanOf({1, 2});
  EXPECT_THAT(message(two, MeanOf({1, 2, 3}), {}),
              HasSubstr("different units (2 and 3)"));
  Evaluation other = two;
  other.set_unit_digest("another");
  EXPECT_THAT(message(two, other, {}), HasSubstr("different units"));
  EXPECT_THAT(message(two, MeanOf({1, 2}, "median"), {}),
              HasSubstr("different metrics"));
  EXPECT_THAT(message({}, {}, {}), HasSubstr("no units"));
  EXPECT_THAT(message(two, two, {.confidence = 1}), HasSubstr("confidence 1"));
  EXPECT_THAT(message(two, two, {.resamples = 0}), HasSubstr("0 resamples"));
}

}  // namespace
}  // namespace vitrine
