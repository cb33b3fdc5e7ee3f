#include "trainer/parity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace vitrine {
namespace {

std::vector<double> Ranks(absl::Span<const float> values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&values](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) {
      ++end;
    }
    for (size_t i = begin; i < end; ++i) {
      ranks[order[i]] = static_cast<double>(begin + end - 1) / 2;
    }
    begin = end;
  }
  return ranks;
}

}  // namespace

Parity CompareOutputs(absl::Span<const float> expected,
                      absl::Span<const float> actual) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  Parity parity;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(double{actual[i]} - expected[i]);
    if (!std::isfinite(difference)) return {kNan, kNan};
    parity.largest_difference = std::max(parity.largest_difference, difference);
  }
  const std::vector<double> a = Ranks(expected), b = Ranks(actual);
  const double mean = (static_cast<double>(a.size()) - 1) / 2;
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean) * (b[i] - mean);
    aa += (a[i] - mean) * (a[i] - mean);
    bb += (b[i] - mean) * (b[i] - mean);
  }
  // All equal on both sides: the same order. On one side: none at all.
  if (aa == 0 && bb == 0) return parity;
  parity.rank_correlation = aa == 0 || bb == 0 ? 0 : ab / std::sqrt(aa * bb);
  return parity;
}

}  // namespace vitrine
