#include "model/length_buckets.h"

#include <algorithm>
#include <numeric>

namespace vitrine {

namespace {

int Length(const std::vector<int32_t>& offsets, int s) {
  return offsets[s + 1] - offsets[s];
}

// By rising length, equal ones as they came.
std::vector<int> OrderByLength(const std::vector<int32_t>& offsets) {
  std::vector<int> order(offsets.size() - 1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&offsets](int a, int b) {
    return Length(offsets, a) < Length(offsets, b);
  });
  return order;
}

}  // namespace

std::vector<LengthBucket> GroupByLength(const std::vector<int32_t>& offsets,
                                        double stretch, int round) {
  std::vector<LengthBucket> buckets;
  int limit = 0;
  for (const int s : OrderByLength(offsets)) {
    const int length = Length(offsets, s);
    if (buckets.empty() || length > limit) {
      buckets.emplace_back();
      buckets.back().shortest = length;
      const int rounded = (length + round - 1) / round * round;
      const int stretched = static_cast<int>(length * stretch);
      limit = std::max(rounded, stretched / round * round);
    }
    buckets.back().sequences.push_back(s);
    buckets.back().longest = length;
  }
  return buckets;
}

std::vector<std::vector<int>> ShareByLength(const std::vector<int32_t>& offsets,
                                            int parts) {
  const int64_t tokens = offsets.back();
  std::vector<std::vector<int>> shares;
  int64_t before = 0;
  int64_t last_part = -1;
  for (const int s : OrderByLength(offsets)) {
    // Where the sequence's middle lies, in parts.
    const int64_t part =
        (2 * before + Length(offsets, s)) * parts / (2 * tokens);
    if (part != last_part) shares.emplace_back();
    shares.back().push_back(s);
    last_part = part;
    before += Length(offsets, s);
  }
  return shares;
}

std::vector<std::vector<int>> ShareByTokens(const std::vector<int32_t>& offsets,
                                            int parts) {
  const std::vector<int> order = OrderByLength(offsets);
  struct Share {
    int64_t tokens = 0;
    std::vector<int> sequences;
  };
  std::vector<Share> shares(std::min<size_t>(parts, order.size()));
  const auto fuller = [](const Share& a, const Share& b) {
    return a.tokens > b.tokens;
  };
  // A heap with the emptiest on top.
  for (auto s = order.rbegin(); s != order.rend(); ++s) {
    std::pop_heap(shares.begin(), shares.end(), fuller);
    shares.back().tokens += Length(offsets, *s);
    shares.back().sequences.push_back(*s);
    std::push_heap(shares.begin(), shares.end(), fuller);
  }
  std::sort(shares.begin(), shares.end(), fuller);
  std::vector<std::vector<int>> out;
  for (Share& share : shares) out.push_back(std::move(share.sequences));
  return out;
}

double Imbalance(const std::vector<int32_t>& offsets, int parts) {
  const std::vector<std::vector<int>> shares = ShareByTokens(offsets, parts);
  int64_t most = 0;
  for (const int s : shares.front()) {
    most += Length(offsets, s);
  }
  return static_cast<double>(most) * parts / offsets.back();
}

}  // namespace vitrine
