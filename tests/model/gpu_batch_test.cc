#include "model/gpu_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/testing/reference.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using testing::RandomSequences;
using testing::TinyConfig;

Batch BatchOf(const std::vector<int>& lengths) {
  Batch batch;
  for (const Encoding& e : RandomSequences(TinyConfig(), lengths, 1)) {
    batch.Add(e, 1);
  }
  return batch;
}

std::vector<int32_t> Values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.contiguous();
  const auto* data = flat.data_ptr<int32_t>();
  return {data, data + flat.numel()};
}

TEST(GpuBatch, HoldsTheBatchInOneBlock) {
  const Batch batch = BatchOf({3, 1, 5});
  EncoderConfig config = TinyConfig();
  config.model_type = "roberta";  // positions begin after the padding's
  config.pad_token_id = 1;
  const GpuShape shape = ShapeOf(batch);
  EXPECT_EQ(shape, (GpuShape{9, 3, 5}));
  const at::Tensor block = PackBlock(batch, config, shape, {}, false);
  const GpuBatch view = ViewBlock(block, shape, {});
  EXPECT_EQ(Values(view.ids), batch.ids);
  EXPECT_EQ(Values(view.segments), batch.segment_ids);
  EXPECT_THAT(Values(view.positions), ElementsAre(2, 3, 4, 2, 2, 3, 4, 5, 6));
  EXPECT_EQ(Values(view.offsets), batch.offsets);
  EXPECT_EQ(view.longest, 5);
  EXPECT_FALSE(view.places.defined());
}

TEST(GpuBatch, PutsLikeLengthsSideBySide) {
  const Batch batch = BatchOf({3, 5, 20, 4});
  const std::vector<LengthBucket> buckets = {
      {{0, 3}, 3, 4}, {{1}, 5, 5}, {{2}, 20, 20}};
  const GpuShape shape{34, 5, 32};
  const at::Tensor block =
      PackBlock(batch, TinyConfig(), shape, buckets, false);
  const GpuBatch view = ViewBlock(block, shape, buckets);
  ASSERT_EQ(view.buckets.size(), 3);
  EXPECT_EQ(view.buckets[0].length, 4);
  // The short one's padding repeats its first token.
  EXPECT_THAT(Values(view.buckets[0].tokens),
              ElementsAre(0, 1, 2, 0, 28, 29, 30, 31));
  EXPECT_THAT(Values(view.buckets[0].lengths), ElementsAre(3, 4));
  EXPECT_THAT(Values(view.buckets[1].tokens), ElementsAre(3, 4, 5, 6, 7));
  EXPECT_FALSE(view.buckets[1].lengths.defined());

  // Every token finds its place again.
  std::vector<int32_t> order;
  for (const GpuBatch::Bucket& bucket : view.buckets) {
    for (const int32_t token : Values(bucket.tokens)) order.push_back(token);
  }
  const std::vector<int32_t> places = Values(view.places);
  for (int t = 0; t < batch.tokens(); ++t) EXPECT_EQ(order[places[t]], t);
}

TEST(GpuBatch, FillsWhatIsToSpareWithNothing) {
  const Batch batch = BatchOf({3, 4});
  const GpuShape shape{16, 4, 64};
  const GpuBatch view =
      ViewBlock(PackBlock(batch, TinyConfig(), shape, {}, false), shape, {});
  EXPECT_THAT(Values(view.ids.narrow(0, 7, 9)), Each(0));
  EXPECT_THAT(Values(view.segments.narrow(0, 7, 9)), Each(0));
  EXPECT_THAT(Values(view.positions.narrow(0, 7, 9)), Each(0));
  EXPECT_THAT(Values(view.offsets), ElementsAre(0, 3, 7, 7, 7));
}

TEST(GpuBatch, RoundsToFewShapesWithSomethingToSpare) {
  EXPECT_EQ(RoundedShapeOf(BatchOf({1})), (GpuShape{16, 2, 64}));
  EXPECT_EQ(RoundedShapeOf(BatchOf({15})), (GpuShape{16, 2, 64}));
  EXPECT_EQ(RoundedShapeOf(BatchOf({16})), (GpuShape{32, 2, 64}));
  EXPECT_EQ(RoundedShapeOf(BatchOf({100, 100, 65})), (GpuShape{320, 4, 128}));
  for (int n = 1; n < 80; ++n) {
    const Batch batch = BatchOf(std::vector<int>(n, n));
    const GpuShape exact = ShapeOf(batch), rounded = RoundedShapeOf(batch);
    EXPECT_GT(rounded.tokens, exact.tokens);
    EXPECT_GT(rounded.sequences, exact.sequences);
    EXPECT_GE(rounded.longest, exact.longest);
    EXPECT_LE(rounded.tokens, exact.tokens * 5 / 4 + 16);
    EXPECT_LE(rounded.sequences, exact.sequences * 2);
  }
}

}  // namespace
}  // namespace vitrine
