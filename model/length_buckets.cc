#include "model/length_buckets.h"

#include <algorithm>
#include <numeric>

namespace vitrine {

std::vector<LengthBucket> GroupByLength(const std::vector<int32_t>& offsets,
                                        double stretch, int slack) {
  const auto length = [&offsets](int s) { return offsets[s + 1] - offsets[s]; };
  std::vector<int> order(offsets.size() - 1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&length](int a, int b) { return length(a) < length(b); });
  std::vector<LengthBucket> buckets;
  int limit = 0;
  for (const int s : order) {
    if (buckets.empty() || length(s) > limit) {
      buckets.emplace_back();
      buckets.back().shortest = length(s);
      limit =
          std::max(length(s) + slack, static_cast<int>(length(s) * stretch));
    }
    buckets.back().sequences.push_back(s);
    buckets.back().longest = length(s);
  }
  return buckets;
}

}  // namespace vitrine
