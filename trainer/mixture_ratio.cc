#include "trainer/mixture_ratio.h"

#include <cmath>

namespace vitrine {
namespace {

// Fewer make a standard error that is itself mostly chance.
constexpr size_t kLeastUnits = 30;
constexpr double kErrors = 2;

}  // namespace

size_t PickRatio(const std::vector<std::vector<double>>& gains, size_t usual) {
  const std::vector<double>& base = gains[usual];
  if (base.size() < kLeastUnits) return usual;
  const auto units = static_cast<double>(base.size());
  size_t best = usual;
  double most = 0;
  for (size_t w = 0; w < gains.size(); ++w) {
    double sum = 0, squares = 0;
    for (size_t u = 0; u < base.size(); ++u) {
      const double difference = gains[w][u] - base[u];
      sum += difference;
      squares += difference * difference;
    }
    if (!(sum > most)) continue;
    // Of the sum, not of the mean: the root of units * variance.
    const double error = std::sqrt(squares - sum * sum / units);
    if (sum <= kErrors * error) continue;
    most = sum;
    best = w;
  }
  return best;
}

}  // namespace vitrine
