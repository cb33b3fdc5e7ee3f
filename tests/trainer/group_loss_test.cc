#include "trainer/group_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace vitrine {
namespace {

constexpr int kSize = 3;

// Straight from the formula in the header.
double Reference(const std::vector<double>& scores) {
  double loss = 0;
  for (size_t group = 0; group < scores.size(); group += kSize) {
    double sum = 0;
    for (int i = 0; i < kSize; ++i) sum += std::exp(scores[group + i]);
    loss -= std::log(std::exp(scores[group]) / sum);
  }
  return loss;
}

at::Tensor Tensor(const std::vector<double>& values) {
  return at::tensor(std::vector<float>(values.begin(), values.end()))
      .view({-1, 1});  // as a head gives them
}

const std::vector<double> kScores = {0.3, -1, 2,    1.5, 0.2, 0.1,
                                     -2,  -2, -2.5, 0,   0,   0};

TEST(GroupLossTest, IsTheFormula) {
  int64_t found = -1;
  const double loss = GroupLoss(Tensor(kScores), kSize, &found).item<double>();
  EXPECT_NEAR(loss, Reference(kScores), 1e-5);
  EXPECT_EQ(found, 1);  // a tie is not found
}

TEST(GroupLossTest, GradientIsTheSlope) {
  at::Tensor scores = Tensor(kScores).requires_grad_();
  GroupLoss(scores, kSize).backward();
  const at::Tensor gradient = scores.grad().view(-1);
  for (size_t i = 0; i < kScores.size(); ++i) {
    constexpr double kStep = 1e-5;
    std::vector<double> up = kScores, down = kScores;
    up[i] += kStep;
    down[i] -= kStep;
    EXPECT_NEAR(gradient[static_cast<int64_t>(i)].item<double>(),
                (Reference(up) - Reference(down)) / (2 * kStep), 1e-5)
        << "score " << i;
  }
}

}  // namespace
}  // namespace vitrine
