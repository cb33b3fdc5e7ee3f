#include "trainer/network.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/testing/other_device.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_model.h"
#include "trainer/pass_device.h"

namespace vitrine {
namespace {

using ::testing::HasSubstr;

class NetworkTest : public ::testing::Test {
 protected:
  NetworkTest() {
    EXPECT_TRUE(testing::WriteTinyModel(folder_.path(), {}).ok());
    auto checkpoint = LoadCheckpoint(folder_.path(), {});
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    for (const int length : {3, 9, 5, 14}) {
      Encoding& text = texts_.emplace_back();
      for (int i = 0; i < length; ++i) {
        text.ids.push_back((7 * i + length) % 20);
        text.segment_ids.push_back(i > 2);
      }
    }
    for (const Encoding& text : texts_) sequences_.push_back(&text);
  }

  // Two heads with fresh weights; all is trained but the last layer's.
  std::unique_ptr<Network> Make(bool bf16, PassDevice device) {
    auto network = Network::Create(checkpoint_, {}, bf16, &workers_, device);
    EXPECT_TRUE(network.ok()) << network.status();
    internal::Head head;
    head.set_kind(internal::HEAD_KIND_CLASSIFICATION);
    head.set_pooling(internal::POOLING_MEAN);
    for (const char* const label : {"a", "b", "c"}) head.add_labels(label);
    std::vector<at::Tensor> trained;
    for (const auto& [name, tensor] : (*network)->EncoderParameters()) {
      if (name.rfind("encoder.layer.1.", 0) != 0) trained.push_back(tensor);
    }
    for (const char* const name : {"one", "two"}) {
      head.set_name(name);
      EXPECT_TRUE((*network)->PutHead(head, 7).ok());
    }
    for (const int h : {0, 1}) {
      for (const auto& [name, tensor] : (*network)->HeadParameters(h)) {
        trained.push_back(tensor);
      }
    }
    (*network)->StartTraining(trained, 3);
    return *std::move(network);
  }

  static double Step(Network* network, int h,
                     absl::Span<const Encoding* const> sequences) {
    return network->ForwardBackward(
        h, sequences,
        [](const at::Tensor& outputs) {
          EXPECT_TRUE(outputs.is_cpu());
          return outputs.pow(2).sum();
        },
        0.5);
  }

  TempFolder folder_;
  Checkpoint checkpoint_;
  Workers workers_{1};
  std::vector<Encoding> texts_;
  std::vector<const Encoding*> sequences_;
};

TEST_F(NetworkTest, TrainsOnAnotherDevice) {
  checkpoint_.config.hidden_dropout = checkpoint_.config.attention_dropout = 0;
  const auto here = Make(false, {}),
             there = Make(false, testing::OtherDevice());
  for (const int h : {0, 1}) {
    EXPECT_NEAR(Step(here.get(), h, sequences_),
                Step(there.get(), h, sequences_), 1e-5);
    for (const int of : {0, 1}) {
      const auto ours = here->HeadParameters(of);
      const auto theirs = there->HeadParameters(of);
      for (size_t i = 0; i < ours.size(); ++i) {
        EXPECT_EQ(theirs[i].second.device(),
                  ToTorchDevice(testing::OtherDevice()));
        // Of the head that took no part: none.
        EXPECT_EQ(theirs[i].second.grad().defined(), of == h);
        EXPECT_EQ(ours[i].second.grad().defined(), of == h);
      }
    }
    const auto ours = here->EncoderParameters();
    const auto theirs = there->EncoderParameters();
    for (size_t i = 0; i < ours.size(); ++i) {
      const at::Tensor a = ours[i].second.grad(), b = theirs[i].second.grad();
      ASSERT_EQ(a.defined(), b.defined()) << ours[i].first;
      if (!a.defined()) continue;
      EXPECT_EQ(b.device(), ToTorchDevice(testing::OtherDevice()))
          << ours[i].first;
      EXPECT_TRUE(at::allclose(a, b.cpu(), 1e-4, 1e-5)) << ours[i].first;
      // What the optimizer changes, the next pass sees.
      const at::NoGradGuard no_grad;
      at::Tensor(ours[i].second).add_(a, -0.1);
      at::Tensor(theirs[i].second).add_(b, -0.1);
    }
    const std::vector<float> a = here->Infer(h, sequences_);
    const std::vector<float> b = there->Infer(h, sequences_);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4);
  }
}

// In bf16 a GPU is to be as near to fp32 as a CPU is.
TEST_F(NetworkTest, Bf16OnAGpuIsAsNear) {
  const PassDevice gpu = testing::OtherDevice();
  if (!gpu.cuda()) GTEST_SKIP() << "LibTorch sees no GPU here";
  checkpoint_.config.hidden_dropout = checkpoint_.config.attention_dropout = 0;
  const auto gradients = [&](bool bf16, PassDevice device) {
    const auto network = Make(bf16, device);
    Step(network.get(), 0, sequences_);
    std::vector<at::Tensor> all;
    for (const auto& parameters :
         {network->EncoderParameters(), network->HeadParameters(0)}) {
      for (const auto& [name, tensor] : parameters) {
        if (!tensor.grad().defined()) continue;
        all.push_back(tensor.grad().reshape(-1).cpu());
      }
    }
    return at::cat(all);
  };
  const at::Tensor exact = gradients(false, {});
  const auto distance = [&](PassDevice device) {
    return (gradients(true, device) - exact).norm().item<double>();
  };
  EXPECT_LT(distance(gpu), 2 * distance({}));
}

TEST(PassDeviceTest, IsChosenByNameAndByWhatIsThere) {
  EXPECT_EQ(DeviceOf("auto"), internal::DEVICE_AUTO);
  EXPECT_EQ(DeviceOf("cpu"), internal::DEVICE_CPU);
  EXPECT_EQ(DeviceOf("cuda"), internal::DEVICE_CUDA);
  const auto cpu = ChoosePassDevice(internal::DEVICE_CPU);
  ASSERT_TRUE(cpu.ok());
  EXPECT_STREQ(cpu->name(), "cpu");
  if (at::hasCUDA()) GTEST_SKIP() << "there is a GPU";
  EXPECT_STREQ(ChoosePassDevice(internal::DEVICE_AUTO)->name(), "cpu");
  const auto cuda = ChoosePassDevice(internal::DEVICE_CUDA);
  EXPECT_TRUE(absl::IsFailedPrecondition(cuda.status()));
  EXPECT_THAT(cuda.status().ToString(), HasSubstr("--device cuda"));
}

}  // namespace
}  // namespace vitrine
