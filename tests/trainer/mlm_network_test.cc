#include "trainer/mlm_network.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/bert.h"
#include "tests/testing/other_device.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_model.h"
#include "trainer/softmax_loss.h"

namespace vitrine {
namespace {

using testing::TinyModelOptions;
using testing::WriteTinyModel;

class MlmNetworkTest : public ::testing::Test {
 protected:
  MlmNetworkTest() {
    TinyModelOptions options;
    options.labels = 0;
    EXPECT_TRUE(WriteTinyModel(folder_.path(), options).ok());
    auto checkpoint = LoadCheckpoint(folder_.path(), {});
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    checkpoint_.config.hidden_dropout = checkpoint_.config.attention_dropout =
        0;
  }
  std::unique_ptr<MlmNetwork> Load(bool bf16, PassDevice device = {}) {
    auto network = MlmNetwork::Load(folder_.path(), checkpoint_, 3, bf16,
                                    &workers_, device);
    EXPECT_TRUE(network.ok()) << network.status();
    (*network)->StartTraining(1);
    return *std::move(network);
  }
  // Any tokens, and any places to find.
  MaskedText Text(int size) {
    MaskedText text;
    for (int i = 0; i < size; ++i) text.ids.push_back(Draw());
    for (int i = 0; i < size; i += 3) {
      text.places.push_back(i);
      text.targets.push_back(Draw());
    }
    return text;
  }
  static MaskedBatch Pack(const std::vector<MaskedText>& texts) {
    MaskedBatch batch;
    for (const MaskedText& text : texts) batch.Add(text);
    return batch;
  }
  int32_t Draw() {
    return static_cast<int32_t>(random_() % checkpoint_.config.vocab_size);
  }

  TempFolder folder_;
  Checkpoint checkpoint_;
  Workers workers_{2};
  std::mt19937_64 random_{5};
};

// The loss with LibTorch's own functions and gradients throughout; the
// transform's tensors are `network`'s.
at::Tensor Reference(const Bert& bert, const MlmNetwork& network,
                     const MaskedBatch& batch,
                     std::map<std::string, at::Tensor>* tensors) {
  for (const auto& [name, tensor] : bert.parameters()) {
    at::Tensor leaf = tensor;
    leaf.set_requires_grad(true);
    (*tensors)["bert." + name] = leaf;
  }
  for (const auto& [name, tensor] : network.parameters()) {
    if (tensors->count(name) > 0) continue;
    at::Tensor leaf = tensor.detach().clone();
    leaf.set_requires_grad(true);
    (*tensors)[name] = leaf;
  }
  const auto t = [&](const std::string& name) { return (*tensors)[name]; };
  const std::string head = "cls.predictions.transform.";
  const at::Tensor states =
      bert.Forward(ToPackedInput(batch.batch, bert.config(), at::kCPU))
          .index_select(0, at::tensor(batch.places));
  const at::Tensor hidden =
      at::layer_norm(at::gelu(at::linear(states, t(head + "dense.weight"),
                                         t(head + "dense.bias"))),
                     {bert.config().hidden_size}, t(head + "LayerNorm.weight"),
                     t(head + "LayerNorm.bias"), bert.config().layer_norm_eps);
  const at::Tensor logits =
      at::linear(hidden, t("bert.embeddings.word_embeddings.weight"),
                 t("cls.predictions.bias"));
  return at::cross_entropy_loss(logits, at::tensor(batch.targets), {},
                                at::Reduction::Sum);
}

TEST_F(MlmNetworkTest, GradientsAreThoseOfAPlainReference) {
  const auto network = Load(/*bf16=*/false);
  // What the tied table gets as input and as output layer is apart in the
  // padding, too.
  MaskedBatch padded = Pack({Text(7), Text(12), Text(30)});
  const MaskedBatch plain = padded;
  padded.Pad(0, 64);
  auto bert = Bert::FromCheckpoint(checkpoint_);
  ASSERT_TRUE(bert.ok());
  std::map<std::string, at::Tensor> tensors;
  const at::Tensor loss = Reference(*bert, *network, plain, &tensors);
  loss.backward();

  const MaskedLoss ours = network->ForwardBackward({&padded, 1});
  EXPECT_EQ(ours.places, plain.targets.size());
  EXPECT_NEAR(ours.loss, loss.item<double>(), 1e-4 * ours.loss);
  for (const auto& [name, tensor] : network->parameters()) {
    const at::Tensor expected = tensors[name].grad();
    ASSERT_TRUE(expected.defined()) << name;
    const double scale = expected.abs().max().item<double>();
    EXPECT_LT((tensor.grad() - expected).abs().max().item<double>(),
              1e-4 * scale + 1e-6)
        << name;
  }
}

TEST_F(MlmNetworkTest, Bf16GradientsAreCloseToFp32) {
  const auto fp32 = Load(false), bf16 = Load(true);
  const std::vector<MaskedBatch> batches = {Pack({Text(20), Text(31)}),
                                            Pack({Text(25)})};
  const MaskedLoss one = fp32->ForwardBackward(batches);
  const MaskedLoss two = bf16->ForwardBackward(batches);
  EXPECT_NEAR(two.loss, one.loss, 0.02 * one.loss);
  const auto names = fp32->parameters();
  for (size_t p = 0; p < names.size(); ++p) {
    const at::Tensor a = names[p].second.grad();
    const at::Tensor b = bf16->parameters()[p].second.grad();
    // But for a key's bias, whose gradient is 0 but for rounding.
    if (names[p].first.find("key.bias") != std::string::npos) continue;
    EXPECT_LT((a - b).norm().item<double>(), 0.1 * a.norm().item<double>())
        << names[p].first;
  }
}

TEST_F(MlmNetworkTest, SharingOutChangesNoSum) {
  const MaskedText a = Text(9), b = Text(33), c = Text(17);
  const auto together = Load(false), apart = Load(false);
  const MaskedBatch all = Pack({a, b, c});
  const std::vector<MaskedBatch> shares = {Pack({a}), Pack({b}), Pack({c})};
  const MaskedLoss one = together->ForwardBackward({&all, 1});
  const MaskedLoss three = apart->ForwardBackward(shares);
  EXPECT_NEAR(one.loss, three.loss, 1e-5 * one.loss);
  EXPECT_EQ(one.found, three.found);
  const auto names = together->parameters();
  for (size_t p = 0; p < names.size(); ++p) {
    const at::Tensor x = names[p].second.grad();
    EXPECT_LT((x - apart->parameters()[p].second.grad()).norm().item<double>(),
              1e-4 * x.norm().item<double>() + 1e-5)
        << names[p].first;
  }
}

TEST_F(MlmNetworkTest, ATextsStatesDoNotDependOnItsNeighbours) {
  auto bert = Bert::FromCheckpoint(checkpoint_);
  ASSERT_TRUE(bert.ok());
  const at::NoGradGuard no_grad;
  const auto states = [&](const std::vector<MaskedText>& texts) {
    return bert->Forward(
        ToPackedInput(Pack(texts).batch, bert->config(), at::kCPU));
  };
  const MaskedText before = Text(11), text = Text(23), after = Text(40);
  const at::Tensor packed = states({before, text, after}).narrow(0, 11, 23);
  // Other neighbours of the same lengths: the same bits.
  EXPECT_TRUE(
      packed.equal(states({Text(11), text, Text(40)}).narrow(0, 11, 23)));
  // None at all: products of another shape, so the last bits may differ.
  EXPECT_LT((packed - states({text})).abs().max().item<double>(), 1e-5);
}

TEST_F(MlmNetworkTest, EvaluationIsTheTrainingLossAndCountsWhatIsFound) {
  const auto network = Load(false);
  MaskedBatch batch = Pack({Text(12), Text(8)});
  batch.Pad(0, 64);
  const MaskedLoss evaluated = network->Evaluate({&batch, 1});
  const MaskedLoss trained = network->ForwardBackward({&batch, 1});
  EXPECT_NEAR(evaluated.loss, trained.loss, 1e-5 * trained.loss);
  EXPECT_EQ(evaluated.places, trained.places);
  EXPECT_EQ(evaluated.found, trained.found);
}

// All gradients of a step, one after the other, on the CPU.
at::Tensor Gradients(MlmNetwork* network, absl::Span<const MaskedBatch> step,
                     double* loss) {
  *loss = network->ForwardBackward(step).loss;
  std::vector<at::Tensor> all;
  for (const auto& [name, tensor] : network->parameters()) {
    EXPECT_EQ(tensor.grad().device(), tensor.device()) << name;
    all.push_back(tensor.grad().reshape(-1).cpu());
  }
  return at::cat(all);
}

TEST_F(MlmNetworkTest, TrainsOnAnotherDevice) {
  const std::vector<MaskedBatch> step = {Pack({Text(7), Text(12)}),
                                         Pack({Text(30)})};
  const auto here = Load(false), there = Load(false, testing::OtherDevice());
  for (const auto& [name, tensor] : there->parameters()) {
    EXPECT_EQ(tensor.device(), ToTorchDevice(testing::OtherDevice())) << name;
  }
  double loss = 0, other_loss = 0;
  const at::Tensor gradients = Gradients(here.get(), step, &loss);
  const at::Tensor others = Gradients(there.get(), step, &other_loss);
  EXPECT_NEAR(other_loss, loss, 1e-5 * loss);
  EXPECT_TRUE(at::allclose(gradients, others, 1e-4, 1e-5));
  EXPECT_NEAR(there->Evaluate(step).loss, loss, 1e-5 * loss);
  const auto saved = here->Save(TensorType::kF32);
  const auto other_saved = there->Save(TensorType::kF32);
  ASSERT_EQ(saved.size(), other_saved.size());
  for (size_t i = 0; i < saved.size(); ++i) {
    EXPECT_EQ(saved[i].values, other_saved[i].values) << saved[i].name;
  }
}

// In bf16 a GPU is to be as near to fp32 as a CPU is.
TEST_F(MlmNetworkTest, Bf16OnAGpuIsAsNear) {
  const PassDevice gpu = testing::OtherDevice();
  if (!gpu.cuda()) GTEST_SKIP() << "LibTorch sees no GPU here";
  const std::vector<MaskedBatch> step = {Pack({Text(7), Text(12)}),
                                         Pack({Text(30)})};
  double loss = 0, exact_loss = 0;
  const at::Tensor exact = Gradients(Load(false).get(), step, &exact_loss);
  const auto distance = [&](PassDevice device) {
    const auto network = Load(true, device);
    const at::Tensor gradients = Gradients(network.get(), step, &loss);
    EXPECT_NEAR(loss, exact_loss, 3e-2 * exact_loss);
    EXPECT_NEAR(network->Evaluate(step).loss, loss, 1e-3 * loss);
    return (gradients - exact).norm().item<double>();
  };
  EXPECT_LT(distance(gpu), 2 * distance({}));
}

TEST(SoftmaxLossTest, OperatorsGiveWhatTheFusedPassDoes) {
  const std::vector<int64_t> targets = {2, -1, 0, 4, -1};
  const at::Tensor logits = at::randn({5, 7}) * 3;
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    at::Tensor fused = logits.to(type, false, /*copy=*/true);
    at::Tensor plain = fused.clone();
    const SoftmaxLoss a = SoftmaxCrossEntropy(targets, &fused);
    const SoftmaxLoss b = SoftmaxByOperators(targets, &plain);
    EXPECT_NEAR(a.loss, b.loss, 1e-4);
    EXPECT_EQ(a.found, b.found);
    EXPECT_EQ(plain.scalar_type(), type);
    EXPECT_TRUE(at::allclose(fused.to(at::kFloat), plain.to(at::kFloat),
                             /*rtol=*/1e-2, /*atol=*/1e-6));
  }
}

}  // namespace
}  // namespace vitrine
