#pragma once

// Chooses how each product of an encoder runs in int8. Measures nothing by
// itself: what a choice costs is asked of a function, so that the search knows
// neither engines nor models.

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/mutex.h"
#include "model/engine.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

// Collects the largest magnitudes of the rows that go into each product.
// Thread-safe.
class ActivationMaxima : public ActivationObserver {
 public:
  void Observe(int layer, internal::Product product, const float* maxima,
               int64_t rows) override;

  // The value below which a share `q` of the rows of (layer, product) has its
  // largest magnitude; 0 where none were seen.
  float Quantile(int layer, internal::Product product, double q) const;

 private:
  mutable Mutex mu_;
  std::map<std::pair<int, internal::Product>, std::vector<float>> maxima_
      ABSL_GUARDED_BY(mu_);
};

// What one head gives for the calibration's sequences: (sequences, width),
// row-major.
struct HeadOutputs {
  std::string head;
  int width = 0;
  std::vector<float> values;
};

// How far `actual` is off `expected`, as a share of what tells the sequences
// apart: the root mean square of the difference over that of the expected
// outputs' deviations from their mean over all sequences. 0.1 leaves a
// correlation of about 0.995. Infinite where it is no number.
double RelativeError(const HeadOutputs& expected, const HeadOutputs& actual);

// The worst head's.
double CalibrationLoss(absl::Span<const HeadOutputs> expected,
                       absl::Span<const HeadOutputs> actual);

struct CalibrationOptions {
  // The loss that is good enough: no product is kept out of int8 below it.
  double max_loss = 0.05;
  // Products that may be kept out of int8; negative: a quarter of them.
  int max_kept = -1;
  // Shares of rows whose largest magnitude a bound leaves as it is.
  std::vector<double> quantiles = {0.999, 0.99, 0.97};
};

struct Calibration {
  // A line for each product, by layer.
  internal::Quantization quantization;
  double loss = 0;          // with it
  double dynamic_loss = 0;  // without bounds, all in int8
  bool good_enough = false;
  int runs = 0;
};

// The outputs of an engine made with `quantization`.
using RunQuantized = std::function<absl::StatusOr<std::vector<HeadOutputs>>(
    const internal::Quantization& quantization)>;
// After each run: how many there were, how many there will be at most, the
// least loss so far.
using CalibrationProgress =
    std::function<void(int run, int at_most, double loss)>;

// First one quantile for all products, then each product by itself, taking
// what makes the loss smaller. Where that is not good enough, products are kept
// out of int8 one after the other, those first whose absence takes most off the
// loss. Passes errors of `run` on; kCancelled once `stop` is set.
absl::StatusOr<Calibration> Calibrate(int layers,
                                      absl::Span<const HeadOutputs> expected,
                                      const ActivationMaxima& maxima,
                                      const RunQuantized& run,
                                      const CalibrationOptions& options,
                                      const CalibrationProgress& progress,
                                      const std::atomic<bool>& stop);

// "query_key_value" and so on.
const char* ProductName(internal::Product product);

}  // namespace vitrine
