#include "trainer/calibration.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "trainer/fit_task.h"

namespace vitrine {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr internal::Product kProducts[] = {
    internal::PRODUCT_QUERY_KEY_VALUE, internal::PRODUCT_ATTENTION_OUTPUT,
    internal::PRODUCT_INTERMEDIATE, internal::PRODUCT_OUTPUT};

// A smaller gain than this may be the rows' chance: the plainer choice stays.
constexpr double kGain = 0.01;
// Bounds nearer to each other than this are one.
constexpr float kSameBound = 0.01f;

class Search {
 public:
  Search(int layers, absl::Span<const HeadOutputs> expected,
         const ActivationMaxima& maxima, const RunQuantized& run,
         const CalibrationOptions& options, const CalibrationProgress& progress,
         const std::atomic<bool>& stop)
      : expected_(expected),
        run_(run),
        options_(options),
        progress_(progress),
        stop_(stop) {
    for (int layer = 0; layer < layers; ++layer) {
      for (const internal::Product product : kProducts) {
        internal::QuantizedProduct* const choice = best_.add_products();
        choice->set_layer(layer);
        choice->set_product(product);
        bounds_.push_back(Bounds(maxima, layer, product));
      }
    }
    max_kept_ =
        options.max_kept >= 0 ? options.max_kept : best_.products_size() / 4;
    max_kept_ = std::min(max_kept_, best_.products_size());
    at_most_ = 1 + static_cast<int>(options.quantiles.size());
    for (const std::vector<float>& bounds : bounds_) {
      at_most_ += static_cast<int>(bounds.size());
    }
    if (max_kept_ > 0) at_most_ += best_.products_size() + max_kept_;
  }

  absl::StatusOr<Calibration> Go() {
    ASSIGN_OR_RETURN(loss_, Measure(best_));
    Calibration out;
    out.dynamic_loss = loss_;
    RETURN_IF_ERROR(OneQuantileForAll());
    RETURN_IF_ERROR(ABoundForEach());
    if (!(loss_ <= options_.max_loss)) RETURN_IF_ERROR(KeepTheMostSensitive());
    out.quantization = best_;
    out.loss = loss_;
    out.good_enough = loss_ <= options_.max_loss;
    out.runs = runs_;
    return out;
  }

 private:
  // What product (layer, product) may be cut to, by falling quantile; 0: not
  // at all.
  std::vector<float> Bounds(const ActivationMaxima& maxima, int layer,
                            internal::Product product) const {
    const float largest = maxima.Quantile(layer, product, 1);
    std::vector<float> bounds = {0};
    float last = largest;
    for (const double quantile : options_.quantiles) {
      const float bound = maxima.Quantile(layer, product, quantile);
      if (bound > 0 && bound < last * (1 - kSameBound)) {
        bounds.push_back(bound);
        last = bound;
      }
    }
    return bounds;
  }

  absl::StatusOr<double> Measure(const internal::Quantization& candidate) {
    RETURN_IF_ERROR(CheckStop(stop_));
    ASSIGN_OR_RETURN(const std::vector<HeadOutputs> actual, run_(candidate));
    ++runs_;
    const double loss = CalibrationLoss(expected_, actual);
    progress_(runs_, std::max(runs_, at_most_), std::min(loss, loss_));
    return loss;
  }

  // Takes `candidate` where it is better by enough.
  absl::Status Try(const internal::Quantization& candidate, double gain) {
    ASSIGN_OR_RETURN(const double loss, Measure(candidate));
    if (loss < loss_ * (1 - gain) || (loss_ == kInfinity && loss < loss_)) {
      loss_ = loss;
      best_ = candidate;
    }
    return absl::OkStatus();
  }

  absl::Status OneQuantileForAll() {
    size_t most = 0;
    for (const auto& bounds : bounds_) most = std::max(most, bounds.size());
    for (size_t i = 1; i < most; ++i) {
      internal::Quantization candidate = best_;
      for (size_t p = 0; p < bounds_.size(); ++p) {
        candidate.mutable_products(static_cast<int>(p))
            ->set_activation_bound(
                bounds_[p][std::min(i, bounds_[p].size() - 1)]);
      }
      RETURN_IF_ERROR(Try(candidate, kGain));
    }
    return absl::OkStatus();
  }

  absl::Status ABoundForEach() {
    for (int p = 0; p < best_.products_size(); ++p) {
      const float now = best_.products(p).activation_bound();
      for (const float bound : bounds_[p]) {
        if (bound == now) continue;
        internal::Quantization candidate = best_;
        candidate.mutable_products(p)->set_activation_bound(bound);
        // Back to no bound takes no gain: it is the plainer choice.
        RETURN_IF_ERROR(Try(candidate, bound == 0 ? 0 : kGain));
      }
    }
    return absl::OkStatus();
  }

  static internal::Quantization Keep(internal::Quantization quantization,
                                     int product) {
    quantization.mutable_products(product)->set_keep(true);
    quantization.mutable_products(product)->clear_activation_bound();
    return quantization;
  }

  absl::Status KeepTheMostSensitive() {
    if (max_kept_ == 0) return absl::OkStatus();
    std::vector<std::pair<double, int>> without;  // loss, product
    for (int p = 0; p < best_.products_size(); ++p) {
      ASSIGN_OR_RETURN(const double loss, Measure(Keep(best_, p)));
      without.emplace_back(loss, p);
    }
    std::sort(without.begin(), without.end());
    int kept = 0;
    for (const auto& [loss, product] : without) {
      if (loss_ <= options_.max_loss || kept == max_kept_) break;
      const double before = loss_;
      // The first one has been measured.
      if (kept == 0 && loss < loss_) {
        best_ = Keep(best_, product);
        loss_ = loss;
      } else {
        RETURN_IF_ERROR(Try(Keep(best_, product), 0));
      }
      if (loss_ < before) ++kept;
    }
    return absl::OkStatus();
  }

  const absl::Span<const HeadOutputs> expected_;
  const RunQuantized& run_;
  const CalibrationOptions& options_;
  const CalibrationProgress& progress_;
  const std::atomic<bool>& stop_;
  std::vector<std::vector<float>> bounds_;  // of each product
  int max_kept_ = 0;
  int at_most_ = 0;

  internal::Quantization best_;
  double loss_ = kInfinity;  // of best_
  int runs_ = 0;
};

}  // namespace

void ActivationMaxima::Observe(int layer, internal::Product product,
                               const float* maxima, int64_t rows) {
  const MutexLock lock(mu_);
  std::vector<float>& all = maxima_[{layer, product}];
  all.insert(all.end(), maxima, maxima + rows);
}

float ActivationMaxima::Quantile(int layer, internal::Product product,
                                 double q) const {
  const MutexLock lock(mu_);
  const auto it = maxima_.find({layer, product});
  if (it == maxima_.end() || it->second.empty()) return 0;
  std::vector<float> all = it->second;
  const auto last = static_cast<double>(all.size() - 1);
  const auto nth = all.begin() + static_cast<int64_t>(
                                     std::ceil(std::clamp(q, 0.0, 1.0) * last));
  std::nth_element(all.begin(), nth, all.end());
  return *nth;
}

double RelativeError(const HeadOutputs& expected, const HeadOutputs& actual) {
  const size_t width = expected.width;
  if (width == 0 || expected.values.empty() ||
      expected.values.size() != actual.values.size()) {
    return kInfinity;
  }
  const double rows = static_cast<double>(expected.values.size() / width);
  std::vector<double> mean(width);
  for (size_t i = 0; i < expected.values.size(); ++i) {
    mean[i % width] += expected.values[i] / rows;
  }
  double difference = 0, spread = 0;
  for (size_t i = 0; i < expected.values.size(); ++i) {
    difference += std::pow(double{actual.values[i]} - expected.values[i], 2);
    spread += std::pow(expected.values[i] - mean[i % width], 2);
  }
  if (difference == 0) return 0;
  const double error = std::sqrt(difference / spread);
  return std::isfinite(error) ? error : kInfinity;
}

double CalibrationLoss(absl::Span<const HeadOutputs> expected,
                       absl::Span<const HeadOutputs> actual) {
  if (expected.size() != actual.size()) return kInfinity;
  double worst = 0;
  for (size_t h = 0; h < expected.size(); ++h) {
    worst = std::max(worst, RelativeError(expected[h], actual[h]));
  }
  return worst;
}

absl::StatusOr<Calibration> Calibrate(int layers,
                                      absl::Span<const HeadOutputs> expected,
                                      const ActivationMaxima& maxima,
                                      const RunQuantized& run,
                                      const CalibrationOptions& options,
                                      const CalibrationProgress& progress,
                                      const std::atomic<bool>& stop) {
  return Search(layers, expected, maxima, run, options, progress, stop).Go();
}

const char* ProductName(internal::Product product) {
  switch (product) {
    case internal::PRODUCT_QUERY_KEY_VALUE:
      return "query_key_value";
    case internal::PRODUCT_ATTENTION_OUTPUT:
      return "attention_output";
    case internal::PRODUCT_INTERMEDIATE:
      return "intermediate";
    default:
      return "output";
  }
}

}  // namespace vitrine
