#include "trainer/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <utility>

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kQkv = internal::PRODUCT_QUERY_KEY_VALUE;
constexpr auto kIntermediate = internal::PRODUCT_INTERMEDIATE;
constexpr auto kOutput = internal::PRODUCT_OUTPUT;
constexpr int kSequences = 64;

// An encoder of two layers whose products each add an error of their own to
// one head's outputs: `plain` without a bound, less or more with one.
class FakeModel {
 public:
  struct Error {
    double plain = 0.001;
    double bounded = 0.001;  // with whatever bound
  };

  FakeModel() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const auto make = [&] {
      std::vector<float> values(kSequences);
      for (float& value : values) value = normal(random);
      return values;
    };
    expected_ = {{"relevance", 1, make()}};
    for (int i = 0; i < 8; ++i) directions_.push_back(make());
    // Rows of 1 to 100 everywhere, but for one product whose rows are equal.
    for (int layer = 0; layer < 2; ++layer) {
      for (int product = 1; product <= 4; ++product) {
        std::vector<float> rows;
        for (int i = 1; i <= 100; ++i) {
          rows.push_back(layer == 1 && product == kQkv ? 5 : i);
        }
        maxima.Observe(layer, static_cast<internal::Product>(product),
                       rows.data(), 100);
      }
    }
  }

  Error& error(int layer, internal::Product product) {
    return errors_[layer * 4 + product - 1];
  }

  absl::StatusOr<std::vector<HeadOutputs>> Run(
      const internal::Quantization& quantization) {
    ++runs;
    std::vector<HeadOutputs> outputs = expected_;
    for (const internal::QuantizedProduct& p : quantization.products()) {
      if (p.keep()) continue;
      const int i = p.layer() * 4 + p.product() - 1;
      const double size =
          p.activation_bound() > 0 ? errors_[i].bounded : errors_[i].plain;
      for (int s = 0; s < kSequences; ++s) {
        outputs[0].values[s] += static_cast<float>(size * directions_[i][s]);
      }
    }
    return outputs;
  }

  absl::StatusOr<Calibration> Calibrate(const CalibrationOptions& options) {
    const std::atomic<bool> stop{false};
    runs = told = 0;
    return vitrine::Calibrate(
        2, expected_, maxima,
        [this](const internal::Quantization& q) { return Run(q); }, options,
        [this](int run, int at_most, double) {
          EXPECT_EQ(run, ++told);
          EXPECT_LE(run, at_most);
        },
        stop);
  }

  ActivationMaxima maxima;
  int runs = 0, told = 0;

 private:
  std::vector<HeadOutputs> expected_;
  std::vector<std::vector<float>> directions_;  // of each product's error
  Error errors_[8];
};

const internal::QuantizedProduct& Find(const Calibration& calibration,
                                       int layer, internal::Product product) {
  return calibration.quantization.products(layer * 4 + product - 1);
}

std::vector<std::pair<int, internal::Product>> Kept(
    const Calibration& calibration) {
  std::vector<std::pair<int, internal::Product>> kept;
  for (const auto& product : calibration.quantization.products()) {
    if (product.keep()) kept.emplace_back(product.layer(), product.product());
  }
  return kept;
}

TEST(CalibrationTest, AllInInt8WhereThatIsGoodEnough) {
  FakeModel model;
  const auto calibration = model.Calibrate({});
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_TRUE(calibration->good_enough);
  EXPECT_LT(calibration->loss, 0.01);
  EXPECT_EQ(calibration->loss, calibration->dynamic_loss);
  EXPECT_EQ(calibration->runs, model.runs);
  EXPECT_EQ(model.told, model.runs);
  EXPECT_EQ(calibration->quantization.products_size(), 8);
  for (int i = 0; i < 8; ++i) {
    const auto& product = calibration->quantization.products(i);
    EXPECT_EQ(product.layer(), i / 4);
    EXPECT_EQ(product.product(), i % 4 + 1);
    EXPECT_FALSE(product.keep());
    EXPECT_EQ(product.activation_bound(), 0);
  }
}

TEST(CalibrationTest, ABoundIsTakenWhereItHelpsAndNowhereElse) {
  FakeModel model;
  model.error(0, kIntermediate) = {.plain = 0.04, .bounded = 0.002};
  model.error(1, kOutput) = {.plain = 0.002, .bounded = 0.03};
  CalibrationOptions options;
  options.quantiles = {0.9, 0.9001, 0.5};
  const auto calibration = model.Calibrate(options);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_LT(calibration->loss, 0.3 * calibration->dynamic_loss);
  // The first of two that are all but one.
  EXPECT_EQ(Find(*calibration, 0, kIntermediate).activation_bound(), 91);
  EXPECT_EQ(Find(*calibration, 1, kOutput).activation_bound(), 0);
  // Nothing to cut: no bound was tried.
  EXPECT_EQ(Find(*calibration, 1, kQkv).activation_bound(), 0);
}

TEST(CalibrationTest, TheMostSensitiveAreKeptUntilItIsGoodEnough) {
  FakeModel model;
  model.error(0, kOutput) = {.plain = 0.3, .bounded = 0.3};
  model.error(1, kOutput) = {.plain = 0.5, .bounded = 0.5};
  model.error(1, kIntermediate) = {.plain = 0.1, .bounded = 0.1};
  CalibrationOptions options;
  options.max_kept = 4;
  options.max_loss = 0.15;
  const auto calibration = model.Calibrate(options);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_TRUE(calibration->good_enough);
  EXPECT_LE(calibration->loss, 0.15);
  EXPECT_THAT(Kept(*calibration), ElementsAre(std::make_pair(0, kOutput),
                                              std::make_pair(1, kOutput)));

  // A quarter of eight is two, which is the default.
  options.max_kept = -1;
  options.max_loss = 0.01;
  const auto two = model.Calibrate(options);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_FALSE(two->good_enough);
  EXPECT_EQ(Kept(*two), Kept(*calibration));

  options.max_kept = 0;
  const auto none = model.Calibrate(options);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->good_enough);
  EXPECT_TRUE(Kept(*none).empty());
  EXPECT_GT(none->loss, 0.4);
}

TEST(CalibrationTest, OutputsThatAreNoNumbersLoseToAnyOthers) {
  FakeModel model;
  model.error(0, kQkv) = {.plain = std::numeric_limits<double>::quiet_NaN(),
                          .bounded = 0.01};
  const auto calibration = model.Calibrate({});
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_TRUE(std::isinf(calibration->dynamic_loss));
  EXPECT_TRUE(calibration->good_enough);
  EXPECT_GT(Find(*calibration, 0, kQkv).activation_bound(), 0);
}

TEST(CalibrationTest, ErrorsAndInterruptionsEndIt) {
  FakeModel model;
  std::atomic<bool> stop{false};
  int runs = 0;
  const auto calibrate = [&](bool interrupt) {
    runs = 0;
    return Calibrate(
               2, {}, model.maxima,
               [&](const internal::Quantization&)
                   -> absl::StatusOr<std::vector<HeadOutputs>> {
                 if (++runs < 3) return std::vector<HeadOutputs>();
                 if (!interrupt) return absl::InternalError("the third run");
                 stop = true;
                 return std::vector<HeadOutputs>();
               },
               {}, [](int, int, double) {}, stop)
        .status();
  };
  EXPECT_THAT(std::string(calibrate(false).message()),
              HasSubstr("the third run"));
  EXPECT_TRUE(absl::IsCancelled(calibrate(true)));
  EXPECT_EQ(runs, 3);
}

TEST(ActivationMaximaTest, QuantilesAreOfAllRowsSeen) {
  ActivationMaxima maxima;
  const float first[] = {4, 1, 3}, second[] = {5, 2};
  maxima.Observe(0, kQkv, first, 3);
  maxima.Observe(0, kQkv, second, 2);
  EXPECT_EQ(maxima.Quantile(0, kQkv, 0), 1);
  EXPECT_EQ(maxima.Quantile(0, kQkv, 0.5), 3);
  EXPECT_EQ(maxima.Quantile(0, kQkv, 0.99), 5);
  EXPECT_EQ(maxima.Quantile(0, kQkv, 1), 5);
  EXPECT_EQ(maxima.Quantile(1, kQkv, 1), 0);  // nothing seen
}

TEST(RelativeErrorTest, IsAShareOfTheSpreadAboutEachColumnsMean) {
  // Columns with means 2 and 10, deviations of 1 in each.
  const HeadOutputs expected = {"h", 2, {1, 9, 3, 11}};
  EXPECT_EQ(RelativeError(expected, expected), 0);
  EXPECT_NEAR(RelativeError(expected, {"h", 2, {1.1f, 9.1f, 2.9f, 10.9f}}), 0.1,
              1e-6);
  EXPECT_TRUE(std::isinf(RelativeError(expected, {"h", 2, {1, 9}})));
  EXPECT_TRUE(
      std::isinf(RelativeError(expected, {"h", 2, {1, 9, 3, std::nanf("")}})));
  // The worst head's counts.
  const HeadOutputs off = {"h", 2, {1.2f, 9.2f, 2.8f, 10.8f}};
  EXPECT_NEAR(CalibrationLoss({expected, expected}, {expected, off}), 0.2,
              1e-6);
}

}  // namespace
}  // namespace vitrine
