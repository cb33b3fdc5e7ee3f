#include "client/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace vitrine {
namespace {

// Values below 2^kBits have a bucket each; above, each power of two has 2^kBits
// / 2 of them.
constexpr int kBits = 8;
constexpr int64_t kHalf = 1 << (kBits - 1);

size_t BucketOf(int64_t ns) {
  const int shift = std::max(
      0, static_cast<int>(std::bit_width(static_cast<uint64_t>(ns))) - kBits);
  return static_cast<size_t>(shift * kHalf + (ns >> shift));
}

// The largest value in a bucket.
int64_t TopOf(size_t bucket) {
  const int64_t b = static_cast<int64_t>(bucket);
  if (b < 2 * kHalf) return b;
  const int64_t shift = b / kHalf - 1;
  return ((b - shift * kHalf + 1) << shift) - 1;
}

}  // namespace

void Histogram::Add(absl::Duration latency) {
  const int64_t ns = std::max<int64_t>(0, absl::ToInt64Nanoseconds(latency));
  const size_t bucket = BucketOf(ns);
  if (bucket >= buckets_.size()) buckets_.resize(bucket + 1);
  ++buckets_[bucket];
  ++count_;
  max_ns_ = std::max(max_ns_, ns);
  sum_ns_ += static_cast<double>(ns);
}

absl::Duration Histogram::mean() const {
  if (count_ == 0) return absl::ZeroDuration();
  return absl::Nanoseconds(sum_ns_ / static_cast<double>(count_));
}

absl::Duration Histogram::max() const { return absl::Nanoseconds(max_ns_); }

absl::Duration Histogram::Quantile(double q) const {
  const int64_t rank = std::max<int64_t>(
      1, static_cast<int64_t>(std::ceil(q * static_cast<double>(count_))));
  int64_t seen = 0;
  for (size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    seen += buckets_[bucket];
    if (seen >= rank) {
      return absl::Nanoseconds(std::min(TopOf(bucket), max_ns_));
    }
  }
  return absl::ZeroDuration();
}

}  // namespace vitrine
