#pragma once

// Latencies in buckets of at most 1/128 of their value, from 1 ns to hours:
// constant memory however long a run is, quantiles within 0.8%. Not
// thread-safe.

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace vitrine {

class Histogram {
 public:
  void Add(absl::Duration latency);

  int64_t count() const { return count_; }
  absl::Duration mean() const;  // exact
  absl::Duration max() const;   // exact
  // The smallest bucket's upper end that at least `q` of the values are at or
  // below, never above max(); zero when there are none. `q` in [0, 1].
  absl::Duration Quantile(double q) const;

 private:
  std::vector<int64_t> buckets_;
  int64_t count_ = 0;
  int64_t max_ns_ = 0;
  double sum_ns_ = 0;
};

}  // namespace vitrine
