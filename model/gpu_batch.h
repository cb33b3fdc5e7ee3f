#pragma once

// A batch on its way to a GPU: one block of int32, so that one copy takes it
// there. One of few headers that include LibTorch.

#include <ATen/ATen.h>

#include <compare>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/batch.h"
#include "model/length_buckets.h"
#include "model/model_config.h"

namespace vitrine {

// At least what the batch has. Spare tokens belong to no sequence: what is
// computed of them means nothing, and no other token sees them. Spare sequences
// are empty and begin after the batch's tokens, so where there are any there
// must be a spare token too.
struct GpuShape {
  int tokens = 0;
  int sequences = 0;
  int longest = 0;  // tokens of a sequence

  auto operator<=>(const GpuShape&) const = default;
};

GpuShape ShapeOf(const Batch& batch);

// The batch's shape rounded up, for there to be few: tokens to a quarter of a
// power of two, with one to spare; sequences and lengths to a power of two.
GpuShape RoundedShapeOf(const Batch& batch);

// On the host; `pinned`: in memory that a GPU can read by itself. `buckets`
// hold each sequence of the batch once, or are none where attention needs none.
at::Tensor PackBlock(const Batch& batch, const EncoderConfig& config,
                     const GpuShape& shape,
                     absl::Span<const LengthBucket> buckets, bool pinned);

// The parts of a block, as views of it. All int32.
struct GpuBatch {
  struct Bucket {
    int64_t length = 0;  // of the longest sequence
    // (sequences, length): the token of each place; a padded place repeats the
    // first token of its own sequence.
    at::Tensor tokens;
    // (sequences): how many places are not padded; undefined where none is.
    at::Tensor lengths;
  };

  at::Tensor ids;        // (tokens)
  at::Tensor segments;   // (tokens)
  at::Tensor positions;  // (tokens)
  at::Tensor offsets;    // (sequences + 1)
  int64_t longest = 0;
  std::vector<Bucket> buckets;
  // (tokens): where each token is in the concatenated buckets; undefined
  // without buckets.
  at::Tensor places;
};

// `block` as PackBlock made it of `shape` and `buckets`, on any device.
GpuBatch ViewBlock(const at::Tensor& block, const GpuShape& shape,
                   absl::Span<const LengthBucket> buckets);

}  // namespace vitrine
