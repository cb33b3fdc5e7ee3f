#include "model/gpu_batch.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace vitrine {
namespace {

int64_t Places(const LengthBucket& bucket) {
  return static_cast<int64_t>(bucket.sequences.size()) * bucket.longest;
}

int Length(const Batch& batch, int sequence) {
  return batch.offsets[sequence + 1] - batch.offsets[sequence];
}

}  // namespace

GpuShape ShapeOf(const Batch& batch) {
  GpuShape shape{batch.tokens(), batch.sequences(), 0};
  for (int s = 0; s < batch.sequences(); ++s) {
    shape.longest = std::max(shape.longest, Length(batch, s));
  }
  return shape;
}

GpuShape RoundedShapeOf(const Batch& batch) {
  // Attention works on blocks of this many tokens at least.
  constexpr unsigned kShortest = 64;
  const GpuShape exact = ShapeOf(batch);
  const auto tokens = static_cast<unsigned>(exact.tokens) + 1;
  const unsigned step = std::max(16u, std::bit_floor(tokens) / 4);
  return {static_cast<int>((tokens + step - 1) / step * step),
          static_cast<int>(
              std::bit_ceil(static_cast<unsigned>(exact.sequences) + 1)),
          static_cast<int>(std::bit_ceil(
              std::max(kShortest, static_cast<unsigned>(exact.longest))))};
}

at::Tensor PackBlock(const Batch& batch, const EncoderConfig& config,
                     const GpuShape& shape,
                     absl::Span<const LengthBucket> buckets, bool pinned) {
  int64_t size = 3 * int64_t{shape.tokens} + shape.sequences + 1;
  for (const LengthBucket& bucket : buckets) {
    size += Places(bucket) + static_cast<int64_t>(bucket.sequences.size());
  }
  if (!buckets.empty()) size += shape.tokens;

  at::Tensor block = at::empty(
      {size}, at::TensorOptions().dtype(at::kInt).pinned_memory(pinned));
  auto* out = block.data_ptr<int32_t>();
  const auto spare = [&out](int64_t count, int32_t value) {
    out = std::fill_n(out, count, value);
  };
  const int spare_tokens = shape.tokens - batch.tokens();
  out = std::copy(batch.ids.begin(), batch.ids.end(), out);
  spare(spare_tokens, 0);
  out = std::copy(batch.segment_ids.begin(), batch.segment_ids.end(), out);
  spare(spare_tokens, 0);
  for (int s = 0; s < batch.sequences(); ++s) {
    const int length = Length(batch, s);
    std::iota(out, out + length, static_cast<int32_t>(config.first_position()));
    out += length;
  }
  spare(spare_tokens, 0);
  out = std::copy(batch.offsets.begin(), batch.offsets.end(), out);
  spare(shape.sequences - batch.sequences(), batch.tokens());

  if (buckets.empty()) return block;
  // The last part, filled along with the buckets.
  int32_t* const places = block.data_ptr<int32_t>() + size - shape.tokens;
  std::fill_n(places, shape.tokens, 0);
  int32_t place = 0;
  for (const LengthBucket& bucket : buckets) {
    for (const int s : bucket.sequences) {
      const int32_t begin = batch.offsets[s];
      for (int i = 0; i < bucket.longest; ++i, ++place) {
        const bool padded = i >= Length(batch, s);
        *out++ = padded ? begin : begin + i;
        if (!padded) places[begin + i] = place;
      }
    }
    for (const int s : bucket.sequences) *out++ = Length(batch, s);
  }
  return block;
}

GpuBatch ViewBlock(const at::Tensor& block, const GpuShape& shape,
                   absl::Span<const LengthBucket> buckets) {
  int64_t begin = 0;
  const auto next = [&block, &begin](int64_t count) {
    begin += count;
    return block.narrow(0, begin - count, count);
  };
  GpuBatch batch;
  batch.ids = next(shape.tokens);
  batch.segments = next(shape.tokens);
  batch.positions = next(shape.tokens);
  batch.offsets = next(shape.sequences + 1);
  batch.longest = shape.longest;
  for (const LengthBucket& lengths : buckets) {
    const auto sequences = static_cast<int64_t>(lengths.sequences.size());
    GpuBatch::Bucket bucket;
    bucket.length = lengths.longest;
    bucket.tokens = next(Places(lengths)).view({sequences, lengths.longest});
    const at::Tensor each = next(sequences);
    if (lengths.shortest != lengths.longest) bucket.lengths = each;
    batch.buckets.push_back(bucket);
  }
  if (!buckets.empty()) batch.places = next(shape.tokens);
  return batch;
}

}  // namespace vitrine
