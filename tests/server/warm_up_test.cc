#include "server/warm_up.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/fake_model.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The lengths of the sequences of each batch that WarmUpOn ran.
std::vector<std::vector<int>> Ran(const std::vector<std::vector<int>>& shapes) {
  const FakeModel model = NewFakeModel();
  EXPECT_TRUE(WarmUpOn(*model.model, shapes).ok());
  std::vector<std::vector<int>> out;
  for (const Batch& batch : model.engine->batches()) {
    std::vector<int>& lengths = out.emplace_back();
    for (int s = 0; s < batch.sequences(); ++s) {
      lengths.push_back(batch.offsets[s + 1] - batch.offsets[s]);
      EXPECT_EQ(batch.heads[s], (1u << model.model->heads().size()) - 1);
    }
  }
  return out;
}

TEST(WarmUpTest, RunsTheLargestOfEachSize) {
  EXPECT_THAT(Ran({{9}, {20, 20}, {10, 30, 1}, {4, 4, 4}, {8}, {8}}),
              ElementsAre(ElementsAre(10, 30, 1), ElementsAre(4, 4, 4)));
}

TEST(WarmUpTest, NothingServedNothingRun) {
  EXPECT_THAT(Ran({}), IsEmpty());
  EXPECT_THAT(Ran({{}}), IsEmpty());
}

TEST(WarmUpTest, CutsWhatTheVersionDoesNotAllow) {
  const int most = NewFakeModel().model->encoding().max_tokens();
  EXPECT_THAT(Ran({{most + 100}}), ElementsAre(ElementsAre(most)));
}

TEST(WarmUpTest, CutsLargeBatchesOnACpu) {
  const std::vector<int> large(2000, 10);
  const std::vector<int> cut(kMaxWarmUpTokens / 10, 10);
  EXPECT_THAT(Ran({large, large}), ElementsAre(cut));
}

TEST(WarmUpTest, SaysWhyAVersionCannotRun) {
  const FakeModel model = NewFakeModel();
  model.engine->FailWhere(
      [](const Batch&) { return absl::InternalError("too hot"); });
  EXPECT_EQ(WarmUpOn(*model.model, {{8}}).message(), "too hot");
}

}  // namespace
}  // namespace vitrine
