#include "trainer/bootstrap.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

absl::Status CheckPair(const Evaluation& candidate, const Evaluation& incumbent,
                       const BootstrapOptions& options) {
  if (!(options.confidence > 0 && options.confidence < 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bootstrap: confidence ", options.confidence, ": outside (0, 1)"));
  }
  if (options.resamples < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("bootstrap: ", options.resamples, " resamples"));
  }
  if (candidate.units() == 0) {
    return absl::InvalidArgumentError("bootstrap: no units");
  }
  if (candidate.units() != incumbent.units() ||
      candidate.unit_digest() != incumbent.unit_digest()) {
    return absl::InvalidArgumentError(
        absl::StrCat("bootstrap: the evaluations are over different units (",
                     candidate.units(), " and ", incumbent.units(), ")"));
  }
  const auto same = [](const MetricValue& a, const MetricValue& b) {
    return a.name == b.name;
  };
  if (!std::equal(candidate.metrics().begin(), candidate.metrics().end(),
                  incumbent.metrics().begin(), incumbent.metrics().end(),
                  same)) {
    return absl::InvalidArgumentError(
        "bootstrap: the evaluations are of different metrics");
  }
  return absl::OkStatus();
}

// Between the two values nearest to `share` of the way through.
double Quantile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = at - static_cast<double>(below);
  return sorted[below] + part * (sorted[above] - sorted[below]);
}

Interval Middle(std::vector<double> changes, double confidence) {
  if (!std::all_of(changes.begin(), changes.end(),
                   [](double x) { return std::isfinite(x); })) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    return {nan, nan};
  }
  std::sort(changes.begin(), changes.end());
  const double tail = (1 - confidence) / 2;
  return {Quantile(changes, tail), Quantile(changes, 1 - tail)};
}

}  // namespace

absl::StatusOr<std::vector<Interval>> BootstrapChanges(
    const Evaluation& candidate, const Evaluation& incumbent,
    const BootstrapOptions& options) {
  RETURN_IF_ERROR(CheckPair(candidate, incumbent, options));
  const size_t metrics = candidate.metrics().size();
  const auto units = static_cast<uint64_t>(candidate.units());
  std::mt19937_64 random(options.seed);
  std::vector<int32_t> drawn(units);
  std::vector<std::vector<double>> changes(metrics);
  for (int i = 0; i < options.resamples; ++i) {
    // 32 random bits scaled to the number of units: the standard library's
    // distributions may differ between implementations.
    for (int32_t& unit : drawn) {
      unit = static_cast<int32_t>((random() >> 32) * units >> 32);
    }
    for (size_t m = 0; m < metrics; ++m) {
      changes[m].push_back(candidate.Value(m, drawn) -
                           incumbent.Value(m, drawn));
    }
  }
  std::vector<Interval> intervals;
  for (std::vector<double>& of : changes) {
    intervals.push_back(Middle(std::move(of), options.confidence));
  }
  return intervals;
}

}  // namespace vitrine
