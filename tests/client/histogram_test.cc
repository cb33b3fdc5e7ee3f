#include "client/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace vitrine {
namespace {

TEST(HistogramTest, EmptyIsZero) {
  const Histogram histogram;
  EXPECT_EQ(histogram.count(), 0);
  EXPECT_EQ(histogram.mean(), absl::ZeroDuration());
  EXPECT_EQ(histogram.Quantile(0.99), absl::ZeroDuration());
  EXPECT_EQ(histogram.max(), absl::ZeroDuration());
}

TEST(HistogramTest, OneValueIsEveryQuantile) {
  Histogram histogram;
  histogram.Add(absl::Milliseconds(12));
  for (const double q : {0.0, 0.5, 0.999, 1.0}) {
    EXPECT_EQ(histogram.Quantile(q), absl::Milliseconds(12));
  }
  EXPECT_EQ(histogram.mean(), absl::Milliseconds(12));
}

TEST(HistogramTest, QuantilesAreWithinOneBucketOfSortedValues) {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> latency(13, 2);  // ns
  Histogram histogram;
  std::vector<int64_t> values;
  for (int i = 0; i < 20000; ++i) {
    const int64_t ns = static_cast<int64_t>(latency(random));
    values.push_back(ns);
    histogram.Add(absl::Nanoseconds(ns));
  }
  std::sort(values.begin(), values.end());
  for (const double q : {0.001, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0}) {
    const size_t rank = static_cast<size_t>(std::ceil(q * values.size()));
    const double exact = static_cast<double>(values[rank - 1]);
    const double found =
        static_cast<double>(absl::ToInt64Nanoseconds(histogram.Quantile(q)));
    EXPECT_GE(found, exact) << q;
    EXPECT_LE(found, exact * (1 + 1.0 / 128) + 1) << q;
  }
  EXPECT_EQ(histogram.max(), absl::Nanoseconds(values.back()));
}

TEST(HistogramTest, SmallValuesAreExact) {
  Histogram histogram;
  for (int ns = 1; ns <= 200; ++ns) histogram.Add(absl::Nanoseconds(ns));
  EXPECT_EQ(histogram.Quantile(0.5), absl::Nanoseconds(100));
  EXPECT_EQ(histogram.Quantile(0.01), absl::Nanoseconds(2));
}

TEST(HistogramTest, TakesDaysAndNegatives) {
  Histogram histogram;
  histogram.Add(absl::Hours(48));
  histogram.Add(absl::Seconds(-1));  // a clock that steps back: zero
  EXPECT_EQ(histogram.max(), absl::Hours(48));
  EXPECT_EQ(histogram.Quantile(0.5), absl::ZeroDuration());
}

}  // namespace
}  // namespace vitrine
