#pragma once

// What goes into an engine and what comes out: packed, without padding.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/tokenizer.h"

namespace vitrine {

// Bit h set: run head number h (its index in the servable model's list).
using HeadMask = uint32_t;
inline constexpr int kMaxHeads = 32;

// Sequence s is the half-open range [offsets[s], offsets[s + 1]) of `ids` and
// `segment_ids`; it is never empty.
struct Batch {
  std::vector<int32_t> ids;            // (tokens)
  std::vector<int32_t> segment_ids;    // (tokens)
  std::vector<int32_t> offsets = {0};  // (sequences + 1)
  std::vector<HeadMask> heads;         // (sequences), each nonzero

  int sequences() const { return static_cast<int>(heads.size()); }
  int tokens() const { return static_cast<int>(ids.size()); }

  void Add(const Encoding& encoding, HeadMask mask) {
    ids.insert(ids.end(), encoding.ids.begin(), encoding.ids.end());
    segment_ids.insert(segment_ids.end(), encoding.segment_ids.begin(),
                       encoding.segment_ids.end());
    offsets.push_back(static_cast<int32_t>(ids.size()));
    heads.push_back(mask);
  }
};

// Sequence s has the outputs of its heads, by rising head number, one after
// the other: logits, or a unit vector for heads that embed. fp32.
struct Outputs {
  std::vector<float> values;
  std::vector<int64_t> offsets = {0};  // (sequences + 1)

  absl::Span<const float> Of(int sequence) const {
    return absl::MakeConstSpan(values).subspan(
        offsets[sequence], offsets[sequence + 1] - offsets[sequence]);
  }
};

}  // namespace vitrine
