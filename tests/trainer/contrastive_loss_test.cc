#include "trainer/contrastive_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace vitrine {
namespace {

constexpr int kPairs = 5, kWidth = 4;
constexpr double kTemperature = 0.3;

// Straight from the formula in the header.
double Reference(const std::vector<double>& v,
                 const std::vector<uint64_t>& keys) {
  const auto cosine = [&](int a, int b) {
    double sum = 0;
    for (int i = 0; i < kWidth; ++i) {
      sum += v[a * kWidth + i] * v[b * kWidth + i];
    }
    return sum;
  };
  double loss = 0;
  for (int i = 0; i < 2 * kPairs; ++i) {
    const int own = (i + kPairs) % (2 * kPairs);
    const int first = i < kPairs ? kPairs : 0;  // of the other side
    double sum = 0;
    for (int j = first; j < first + kPairs; ++j) {
      if (j != own && keys[j] == keys[own]) continue;
      sum += std::exp(cosine(i, j) / kTemperature);
    }
    loss -= std::log(std::exp(cosine(i, own) / kTemperature) / sum);
  }
  return loss;
}

class ContrastiveLossTest : public ::testing::Test {
 protected:
  ContrastiveLossTest() {
    std::mt19937_64 random(3);
    for (int i = 0; i < 2 * kPairs * kWidth; ++i) {
      values_.push_back(static_cast<double>(random() % 2000) / 1000 - 1);
    }
  }
  static at::Tensor Tensor(const std::vector<double>& values) {
    return at::tensor(std::vector<float>(values.begin(), values.end()))
        .view({2 * kPairs, kWidth});
  }

  std::vector<double> values_;
  const std::vector<uint64_t> apart_ = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  // Two left halves are equal, and three right ones.
  const std::vector<uint64_t> shared_ = {1, 2, 1, 4, 5, 6, 6, 8, 6, 10};
};

TEST_F(ContrastiveLossTest, IsTheFormula) {
  for (const auto& keys : {apart_, shared_}) {
    const double loss =
        ContrastiveLoss(Tensor(values_), keys, kTemperature).item<double>();
    EXPECT_NEAR(loss, Reference(values_, keys), 1e-4);
  }
}

TEST_F(ContrastiveLossTest, GradientIsTheSlope) {
  at::Tensor vectors = Tensor(values_).requires_grad_();
  ContrastiveLoss(vectors, shared_, kTemperature).backward();
  const at::Tensor gradient = vectors.grad().view(-1);
  for (size_t i = 0; i < values_.size(); ++i) {
    constexpr double kStep = 1e-5;
    std::vector<double> up = values_, down = values_;
    up[i] += kStep;
    down[i] -= kStep;
    const double slope =
        (Reference(up, shared_) - Reference(down, shared_)) / (2 * kStep);
    EXPECT_NEAR(gradient[static_cast<int64_t>(i)].item<double>(), slope, 1e-3)
        << "value " << i;
  }
}

TEST_F(ContrastiveLossTest, CountsHalvesThatFindTheirOwn) {
  const at::Tensor halves = at::eye(4).repeat({2, 1});  // each its own
  const std::vector<uint64_t> keys = {1, 2, 3, 4, 5, 6, 7, 8};
  int64_t found = 0;
  const at::Tensor loss = ContrastiveLoss(halves, keys, 0.01, &found);
  EXPECT_EQ(found, 8);
  EXPECT_NEAR(loss.item<double>(), 0, 1e-6);
  const at::Tensor crossed = at::cat({at::eye(4), at::eye(4).flip({0})});
  ContrastiveLoss(crossed, keys, 0.01, &found);
  EXPECT_EQ(found, 0);
}

}  // namespace
}  // namespace vitrine
