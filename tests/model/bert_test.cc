#include "model/bert.h"

#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/dropout.h"
#include "model/task_head.h"
#include "tests/testing/reference.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

using testing::RandomSequences;
using testing::ReferenceOutput;
using testing::RunReference;
using testing::TinyConfig;
using testing::TinyModelOptions;
using testing::WriteTinyModel;

Batch Pack(const std::vector<Encoding>& sequences) {
  Batch batch;
  for (const Encoding& sequence : sequences) batch.Add(sequence, 1);
  return batch;
}

float MaxDifference(const at::Tensor& a, const std::vector<float>& b) {
  const at::Tensor flat = a.to(at::kFloat).contiguous().view(-1);
  EXPECT_EQ(flat.numel(), b.size());
  float most = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    most = std::max(most, std::abs(flat.data_ptr<float>()[i] - b[i]));
  }
  return most;
}

struct Shape {
  const char* name;
  TinyModelOptions options;
};

TinyModelOptions Options(const std::string& type, int64_t layers,
                         int64_t hidden, int64_t heads, int64_t intermediate,
                         int64_t vocab, int labels, const std::string& act,
                         TensorType dtype = TensorType::kF32) {
  TinyModelOptions options;
  options.model_type = type;
  options.num_layers = layers;
  options.hidden_size = hidden;
  options.num_heads = heads;
  options.intermediate_size = intermediate;
  options.vocab_size = vocab;
  options.max_positions = type == "bert" ? 512 : 514;
  options.type_vocab_size = type == "bert" ? 2 : 1;
  options.labels = labels;
  options.hidden_act = act;
  options.dtype = dtype;
  return options;
}

class BertReferenceTest : public ::testing::TestWithParam<Shape> {};

TEST_P(BertReferenceTest, AgreesWithNumPy) {
  const std::string folder =
      absl::StrCat(::testing::TempDir(), "/bert_", GetParam().name);
  ASSERT_TRUE(WriteTinyModel(folder, GetParam().options).ok());
  absl::StatusOr<Checkpoint> checkpoint = LoadCheckpoint(folder, {});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  absl::StatusOr<std::vector<ImportedHead>> heads =
      HeadsOfHuggingFaceFolder(folder);
  ASSERT_TRUE(heads.ok()) << heads.status();
  ASSERT_EQ(heads->size(), 1);
  AddHeads(*heads, &*checkpoint);

  const std::vector<Encoding> sequences = RandomSequences(
      checkpoint->config, {1, 31, 2, 200, 3, 128, 30, 33, 31, 5, 512}, 7);
  absl::StatusOr<std::vector<ReferenceOutput>> expected =
      RunReference(folder, sequences);
  ASSERT_TRUE(expected.ok()) << expected.status();
  ASSERT_EQ(expected->size(), sequences.size());

  absl::StatusOr<Bert> bert = Bert::FromCheckpoint(*checkpoint);
  ASSERT_TRUE(bert.ok()) << bert.status();
  absl::StatusOr<TaskHead> head =
      TaskHead::FromCheckpoint(*checkpoint, (*heads)[0].head);
  ASSERT_TRUE(head.ok()) << head.status();
  const Batch batch = Pack(sequences);
  for (const bool prepared : {false, true}) {
    const at::InferenceMode inference(prepared);
    if (prepared) bert->PrepareForInference(at::kCPU, at::kFloat);
    const at::Tensor hidden =
        bert->Forward(ToPackedInput(batch, checkpoint->config, at::kCPU));
    const at::Tensor logits =
        head->Forward(Pool(hidden, batch.offsets, (*heads)[0].head.pooling()));
    const at::Tensor mean = Pool(hidden, batch.offsets, internal::POOLING_MEAN);
    for (size_t s = 0; s < sequences.size(); ++s) {
      const ReferenceOutput& reference = (*expected)[s];
      EXPECT_LT(MaxDifference(logits[s], reference.logits), 1e-4)
          << "sequence " << s << ", prepared " << prepared;
      EXPECT_LT(MaxDifference(mean[s], reference.mean), 1e-4)
          << "sequence " << s << ", prepared " << prepared;
    }
  }
}

// Shapes that engine_test.cc leaves out: activations, file types.
INSTANTIATE_TEST_SUITE_P(
    Shapes, BertReferenceTest,
    ::testing::Values(Shape{"tanh_f16", Options("bert", 2, 128, 2, 512, 1000, 5,
                                                "gelu_new", TensorType::kF16)},
                      Shape{"relu_bf16", Options("bert", 2, 64, 4, 256, 500, 2,
                                                 "relu", TensorType::kBF16)},
                      Shape{"xlmr", Options("xlm-roberta", 2, 96, 3, 384, 900,
                                            1, "gelu")}),
    [](const auto& info) { return std::string(info.param.name); });

EncoderConfig SmallConfig() {
  EncoderConfig config = TinyConfig();
  config.hidden_size = 16;
  config.intermediate_size = 24;
  config.num_heads = 2;
  return config;
}

TEST(BertTest, StartsAsBertDid) {
  const EncoderConfig config = SmallConfig();
  const Bert bert = Bert::Random(config, 3);
  const auto parameters = bert.parameters();
  for (const auto& [name, tensor] : parameters) {
    if (tensor.dim() == 2) {
      EXPECT_NEAR(tensor.std().item<float>(), 0.02, 0.005) << name;
      EXPECT_NEAR(tensor.mean().item<float>(), 0, 0.005) << name;
    } else {
      const bool norm_weight = name.find("LayerNorm.weight") != name.npos;
      EXPECT_TRUE(at::equal(tensor, at::full_like(tensor, norm_weight)))
          << name;
    }
  }
  const auto again = Bert::Random(config, 3).parameters();
  const auto other = Bert::Random(config, 4).parameters();
  EXPECT_TRUE(at::equal(again[0].second, parameters[0].second));
  EXPECT_FALSE(at::equal(other[0].second, parameters[0].second));
}

TEST(BertTest, NamesItsParametersAsCheckpointsDo) {
  testing::TinyModelOptions options;
  options.labels = 0;
  std::vector<std::string> expected, actual;
  for (const NamedTensor& tensor : testing::TinyTensors(options)) {
    expected.push_back(tensor.name);
  }
  const Bert bert = Bert::Random(TinyConfig(options), 1);
  for (const auto& [name, tensor] : bert.parameters()) actual.push_back(name);
  EXPECT_THAT(actual, ::testing::UnorderedElementsAreArray(expected));
}

// What the trainer does: leaves that ask for gradients.
std::vector<std::pair<std::string, at::Tensor>> Trainable(const Bert& bert) {
  auto parameters = bert.parameters();
  for (auto& [name, tensor] : parameters) tensor.set_requires_grad(true);
  return parameters;
}

TEST(BertTest, SendsGradientsToEveryParameter) {
  const EncoderConfig config = SmallConfig();
  const Bert bert = Bert::Random(config, 3);
  const auto parameters = Trainable(bert);
  // Several buckets, and padding within one.
  const Batch batch = Pack(RandomSequences(config, {5, 7, 30, 8, 6}, 1));
  const PackedInput input = ToPackedInput(batch, config, at::kCPU);
  const at::Tensor weight =
      at::randn({batch.tokens(), config.hidden_size}, at::kFloat);
  const auto loss = [&] { return (bert.Forward(input) * weight).sum(); };
  loss().backward();
  for (const auto& [name, tensor] : parameters) {
    if (name.rfind("pooler.", 0) == 0) continue;  // a head's
    ASSERT_TRUE(tensor.grad().defined()) << name;
    // A key's bias shifts all scores of a query alike: softmax takes it out.
    if (name.find("key.bias") != name.npos) continue;
    EXPECT_GT(tensor.grad().abs().max().item<float>(), 1e-6) << name;
  }
  // Against the difference quotient, for one weight of each kind of layer.
  for (const auto& [name, tensor] : parameters) {
    if (name.find("layer.0") == name.npos || tensor.dim() != 2) continue;
    const float gradient = tensor.grad()[1][2].item<float>();
    const at::NoGradGuard no_grad;
    constexpr float kStep = 1e-2f;
    at::Tensor element = tensor.detach()[1][2];
    element.add_(kStep);
    const double above = loss().item<double>();
    element.sub_(2 * kStep);
    const double below = loss().item<double>();
    element.add_(kStep);
    EXPECT_NEAR((above - below) / (2 * kStep), gradient,
                0.02 + 0.05 * std::abs(gradient))
        << name;
  }
}

TEST(BertTest, DropsOutOnlyWhenAskedAndAsSeeded) {
  const EncoderConfig config = SmallConfig();
  const Bert bert = Bert::Random(config, 3);
  const PackedInput input = ToPackedInput(
      Pack(RandomSequences(config, {5, 7, 30}, 1)), config, at::kCPU);
  const auto run = [&](uint64_t seed, bool dropout) {
    Dropout masks(seed);
    return bert.Forward(input, dropout ? &masks : nullptr);
  };
  EXPECT_TRUE(at::equal(run(1, false), run(2, false)));
  EXPECT_TRUE(at::equal(run(1, true), run(1, true)));
  EXPECT_FALSE(at::allclose(run(1, true), run(2, true)));
  EXPECT_FALSE(at::allclose(run(1, true), run(1, false)));
}

TEST(DropoutTest, NeighbouringSeedsGiveUnrelatedMasks) {
  const at::Tensor ones = at::ones({4096});
  const at::Tensor a = Dropout(1).Apply(ones, 0.5);
  const at::Tensor b = Dropout(2).Apply(ones, 0.5);
  for (int64_t shift = 0; shift < 64; ++shift) {
    const double same = a.slice(0, shift)
                            .eq(b.slice(0, 0, 4096 - shift))
                            .to(at::kFloat)
                            .mean()
                            .item<double>();
    EXPECT_NEAR(same, 0.5, 0.05) << shift;
  }
}

TEST(BertTest, KeepsSequencesApart) {
  const EncoderConfig config = SmallConfig();
  const Bert bert = Bert::Random(config, 3);
  // Mixed; and in order already, in buckets of one length each.
  for (const std::vector<int>& lengths :
       {std::vector<int>{6, 7, 30, 8}, std::vector<int>{6, 6, 30, 30, 30}}) {
    const std::vector<Encoding> sequences = RandomSequences(config, lengths, 1);
    const at::Tensor together =
        bert.Forward(ToPackedInput(Pack(sequences), config, at::kCPU));
    int64_t row = 0;
    for (const Encoding& sequence : sequences) {
      const at::Tensor alone =
          bert.Forward(ToPackedInput(Pack({sequence}), config, at::kCPU));
      EXPECT_TRUE(at::allclose(together.narrow(0, row, alone.size(0)), alone,
                               1e-5, 1e-5));
      row += alone.size(0);
    }
  }
}

}  // namespace
}  // namespace vitrine
