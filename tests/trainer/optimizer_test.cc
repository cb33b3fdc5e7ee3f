#include "trainer/optimizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "model/dropout.h"
#include "tests/testing/other_device.h"

namespace vitrine {
namespace {

at::Tensor Leaf(const std::vector<float>& values) {
  at::Tensor tensor = at::tensor(values);
  tensor.set_requires_grad(true);
  return tensor;
}

void SetGradient(const at::Tensor& tensor, const std::vector<float>& values) {
  tensor.mutable_grad() = at::tensor(values);
}

float At(const at::Tensor& tensor, int i) {
  return tensor.detach()[i].item<float>();
}

TEST(AdamW, StepsByTheFormula) {
  Workers workers(2);
  const at::Tensor p = Leaf({1, -2});
  const auto adamw = NewAdamW({{{p}, 0.1, 0.5}}, &workers);
  SetGradient(p, {0.5, -3});
  adamw->Step(1, 1);
  // The first step's moments are the gradient and its square after correction.
  EXPECT_NEAR(At(p, 0), 1 * (1 - 0.1 * 0.5) - 0.1, 1e-6);
  EXPECT_NEAR(At(p, 1), -2 * (1 - 0.1 * 0.5) + 0.1, 1e-6);
  EXPECT_FALSE(p.grad().defined());

  // A second one, at half the rate.
  const double before = At(p, 0);
  SetGradient(p, {1, 1});
  adamw->Step(0.5, 1);
  const double m = (0.9 * 0.1 * 0.5 + 0.1 * 1) / (1 - 0.81);
  const double v = (0.999 * 0.001 * 0.25 + 0.001 * 1) / (1 - 0.999 * 0.999);
  EXPECT_NEAR(At(p, 0),
              before * (1 - 0.05 * 0.5) - 0.05 * m / (std::sqrt(v) + 1e-8),
              1e-5);
}

// Where operators take the steps, they are the same.
TEST(Optimizer, StepsOnAnotherDeviceToo) {
  Workers workers(2);
  for (const bool sgd : {false, true}) {
    std::vector<at::Tensor> here, there;
    for (const int size : {5, 1, 12}) {
      here.push_back(at::arange(size).to(at::kFloat) - 2);
      there.push_back(here.back().to(ToTorchDevice(testing::OtherDevice()),
                                     at::kFloat,
                                     /*non_blocking=*/false, /*copy=*/true));
      here.back().set_requires_grad(true);
      there.back().set_requires_grad(true);
    }
    const auto make = [&](const std::vector<at::Tensor>& p) {
      const std::vector<ParameterGroup> groups = {{{p[0]}, 0.1, 0.5},
                                                  {{p[1], p[2]}, 0.2, 0}};
      return sgd ? NewSgd(groups, &workers) : NewAdamW(groups, &workers);
    };
    const auto ours = make(here), theirs = make(there);
    for (int step = 0; step < 4; ++step) {
      for (size_t i = 0; i < here.size(); ++i) {
        if (step == 1 && i == 2) continue;  // it has no gradient
        const at::Tensor gradient = at::sin(here[i].detach() * (step + 1));
        here[i].mutable_grad() = gradient;
        there[i].mutable_grad() =
            gradient.to(ToTorchDevice(testing::OtherDevice()));
      }
      EXPECT_NEAR(GradientNorm(there, &workers), GradientNorm(here, &workers),
                  1e-6);
      ours->Step(1.0 / (step + 1), 0.5);
      theirs->Step(1.0 / (step + 1), 0.5);
      for (size_t i = 0; i < here.size(); ++i) {
        EXPECT_FALSE(there[i].grad().defined());
        EXPECT_TRUE(
            at::allclose(here[i].detach(), there[i].detach().cpu(), 1e-4, 1e-6))
            << sgd << " " << step << " " << i;
      }
    }
    const auto a = ours->GetState().moments, b = theirs->GetState().moments;
    ASSERT_EQ(a.size(), sgd ? 1u : 2u);
    for (size_t m = 0; m < a.size(); ++m) {
      for (size_t i = 0; i < a[m].size(); ++i) {
        EXPECT_EQ(b[m][i].device(), ToTorchDevice(testing::OtherDevice()));
        EXPECT_TRUE(at::allclose(a[m][i], b[m][i].cpu(), 1e-4, 1e-6));
      }
    }
  }
}

TEST(Sgd, KeepsMomentum) {
  Workers workers(1);
  const at::Tensor p = Leaf({1});
  const auto sgd = NewSgd({{{p}, 0.1, 0}}, &workers);
  SetGradient(p, {2});
  sgd->Step(1, 0.5);
  EXPECT_NEAR(At(p, 0), 1 - 0.1 * 1, 1e-6);
  SetGradient(p, {0});
  sgd->Step(1, 1);
  EXPECT_NEAR(At(p, 0), 0.9 - 0.1 * 0.9, 1e-6);
}

TEST(Optimizer, LeavesTensorsWithoutGradientAlone) {
  Workers workers(2);
  const at::Tensor p = Leaf({1}), q = Leaf({1});
  const auto adamw = NewAdamW({{{p, q}, 0.1, 0.5}}, &workers);
  SetGradient(q, {1});
  adamw->Step(1, 1);
  EXPECT_EQ(At(p, 0), 1);
  EXPECT_LT(At(q, 0), 1);
}

TEST(Optimizer, CoversLargeTensorsToTheEnd) {
  Workers workers(3);
  const int64_t size = 3 * (1 << 16) + 17;
  at::Tensor p = at::ones({size});
  p.set_requires_grad(true);
  const auto sgd = NewSgd({{{p}, 1, 0}}, &workers);
  p.mutable_grad() = at::full({size}, 0.25);
  sgd->Step(1, 1);
  EXPECT_EQ(p.detach().min().item<float>(), 0.75f);
  EXPECT_EQ(p.detach().max().item<float>(), 0.75f);
}

TEST(Optimizer, NormIsOfAllGradientsTogether) {
  Workers workers(2);
  const at::Tensor p = Leaf({0, 0}), q = Leaf({0}), r = Leaf({9});
  SetGradient(p, {2, 3});
  SetGradient(q, {6});
  EXPECT_NEAR(GradientNorm({p, q, r}, &workers), 7, 1e-6);
}

TEST(Dropout, DropsTheShareAndKeepsTheMean) {
  Dropout dropout(3);
  const at::Tensor x = at::ones({100, 1003});
  const at::Tensor y = dropout.Apply(x, 0.1);
  const double zeros =
      (y == 0).sum().item<double>() / static_cast<double>(x.numel());
  EXPECT_NEAR(zeros, 0.1, 0.005);
  EXPECT_NEAR(y.mean().item<double>(), 1, 0.01);
  EXPECT_NEAR(y.max().item<double>(), 1 / 0.9, 1e-6);
}

TEST(Dropout, RepeatsWithItsSeedAndMovesOn) {
  Dropout one(3), same(3), other(4);
  const at::Tensor x = at::ones({1000});
  const at::Tensor first = one.Apply(x, 0.5);
  EXPECT_TRUE(at::equal(first, same.Apply(x, 0.5)));
  EXPECT_FALSE(at::equal(first, one.Apply(x, 0.5)));
  EXPECT_FALSE(at::equal(first, other.Apply(x, 0.5)));
  EXPECT_TRUE(at::equal(one.Apply(x, 0), x));
}

}  // namespace
}  // namespace vitrine
