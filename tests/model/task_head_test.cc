#include "model/task_head.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/dropout.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

using testing::AllHeads;
using ::testing::ElementsAre;

std::vector<std::string> Names(const TaskHead& head) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : head.parameters()) names.push_back(name);
  return names;
}

TEST(PoolTest, TakesTheFirstTokenOrTheMean) {
  const at::Tensor hidden =
      at::arange(12, at::kFloat).view({6, 2});  // rows 0 1 | 2 3 4 | 5
  const std::vector<int32_t> offsets = {0, 2, 5, 6};
  const at::Tensor first = Pool(hidden, offsets, internal::POOLING_CLS);
  EXPECT_TRUE(at::equal(
      first, at::tensor({0.f, 1.f, 4.f, 5.f, 10.f, 11.f}).view({3, 2})));
  const at::Tensor mean = Pool(hidden, offsets, internal::POOLING_MEAN);
  EXPECT_TRUE(at::equal(
      mean, at::tensor({1.f, 2.f, 6.f, 7.f, 10.f, 11.f}).view({3, 2})));
}

TEST(PoolTest, IsFp32AndPassesGradientsOn) {
  for (const internal::Pooling pooling :
       {internal::POOLING_CLS, internal::POOLING_MEAN}) {
    at::Tensor hidden = at::ones({5, 3}, at::kBFloat16).set_requires_grad(true);
    const at::Tensor pooled = Pool(hidden, {0, 2, 5}, pooling);
    EXPECT_EQ(pooled.scalar_type(), at::kFloat);
    pooled.sum().backward();
    EXPECT_NEAR(hidden.grad().to(at::kFloat).sum().item<float>(), 6, 0.05);
  }
}

TEST(TaskHeadTest, NamesAndShapesItsPartsByKind) {
  const std::vector<internal::Head> heads = AllHeads();
  const TaskHead relevance = TaskHead::Random(heads[0], 8, 1);
  EXPECT_THAT(
      Names(relevance),
      ElementsAre("relevance.dense.weight", "relevance.dense.bias",
                  "relevance.out_proj.weight", "relevance.out_proj.bias"));
  EXPECT_EQ(relevance.width(), 1);
  const TaskHead recommendation = TaskHead::Random(heads[1], 8, 1);
  EXPECT_THAT(Names(recommendation),
              ElementsAre("recommendation.projection.weight",
                          "recommendation.projection.bias"));
  EXPECT_EQ(recommendation.width(), 8);
  EXPECT_EQ(TaskHead::Random(heads[2], 8, 1).width(), 3);
  EXPECT_EQ(TaskHead::Random(heads[3], 8, 1).width(), 2);
}

TEST(TaskHeadTest, StartsRecommendationAsTheIdentity) {
  const TaskHead head = TaskHead::Random(AllHeads()[1], 4, 1);
  const at::Tensor x = at::tensor({3.f, 0.f, 4.f, 0.f}).view({1, 4});
  EXPECT_TRUE(at::allclose(head.Forward(x), x / 5));
}

TEST(TaskHeadTest, MakesNoNumberOutOfNothing) {
  const TaskHead head = TaskHead::Random(AllHeads()[1], 4, 1);
  EXPECT_TRUE(at::equal(head.Forward(at::zeros({2, 4})), at::zeros({2, 4})));
}

TEST(TaskHeadTest, ComputesTanhThenTheLastLayer) {
  const TaskHead head = TaskHead::Random(AllHeads()[0], 4, 1);
  const auto parts = head.parameters();
  const at::Tensor x = at::randn({3, 4});
  const at::Tensor expected =
      at::tanh(x.matmul(parts[0].second.t()) + parts[1].second)
          .matmul(parts[2].second.t()) +
      parts[3].second;
  EXPECT_TRUE(at::allclose(head.Forward(x), expected));
}

TEST(TaskHeadTest, LoadsWhatTheCheckpointHolds) {
  // Without its optional dense part: the last layer alone.
  const internal::Head relevance = AllHeads()[0];
  Checkpoint checkpoint;
  checkpoint.config.hidden_size = 2;
  ImportedHead imported{
      relevance,
      {{"relevance.out_proj.weight", TensorType::kF32, {1, 2}, {2, -3}},
       {"relevance.out_proj.bias", TensorType::kF32, {1}, {0.5f}}}};
  AddHeads({imported}, &checkpoint);
  absl::StatusOr<TaskHead> head =
      TaskHead::FromCheckpoint(checkpoint, relevance);
  ASSERT_TRUE(head.ok()) << head.status();
  const at::Tensor x = at::tensor({1.f, 10.f}).view({1, 2});
  EXPECT_EQ(head->Forward(x).item<float>(), 2 - 30 + 0.5f);
  EXPECT_FALSE(TaskHead::FromCheckpoint(checkpoint, AllHeads()[2]).ok());
  // A recommendation head needs none.
  absl::StatusOr<TaskHead> plain =
      TaskHead::FromCheckpoint(checkpoint, AllHeads()[1]);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->width(), 2);
}

TEST(TaskHeadTest, DropsOutOnlyWhenAsked) {
  const TaskHead head = TaskHead::Random(AllHeads()[3], 64, 1);
  const at::Tensor x = at::ones({1, 64});
  EXPECT_TRUE(at::equal(head.Forward(x), head.Forward(x)));
  Dropout masks(1);
  EXPECT_FALSE(
      at::equal(head.Forward(x, &masks, 0.5), head.Forward(x, &masks, 0.5)));
}

}  // namespace
}  // namespace vitrine
