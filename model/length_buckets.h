#pragma once

// Groups the sequences of a packed batch by like lengths, so that attention
// can run as batched products with little padding.

#include <cstdint>
#include <vector>

namespace vitrine {

struct LengthBucket {
  std::vector<int> sequences;  // by rising length
  int shortest = 0;            // tokens
  int longest = 0;
};

// Sequences of which the longest has at most `stretch` times the shortest's
// tokens, or whose lengths round up to the same multiple of `round`. Buckets by
// rising length; equal batches give equal buckets.
std::vector<LengthBucket> GroupByLength(const std::vector<int32_t>& offsets,
                                        double stretch = 1.2, int round = 8);

// Shares the sequences out to at most `parts` threads: like lengths together,
// token counts as even as that allows; no part is empty.
std::vector<std::vector<int>> ShareByLength(const std::vector<int32_t>& offsets,
                                            int parts);

// Shares the sequences out so that the fullest of at most `parts` shares is as
// small as giving each sequence, the longest first, to the emptiest share makes
// it. No share is empty; the fullest come first.
std::vector<std::vector<int>> ShareByTokens(const std::vector<int32_t>& offsets,
                                            int parts);

// The tokens of the fullest of ShareByTokens' shares over the average of
// `parts`.
double Imbalance(const std::vector<int32_t>& offsets, int parts);

}  // namespace vitrine
