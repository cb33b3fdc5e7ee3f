#include "model/bert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/task_head.h"
#include "tests/testing/reference.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

using testing::RandomSequences;
using testing::ReferenceOutput;
using testing::RunReference;
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
      checkpoint->config, {1, 31, 2, 512, 3, 128, 511, 30, 33, 31, 5, 128}, 7);
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

INSTANTIATE_TEST_SUITE_P(
    Shapes, BertReferenceTest,
    ::testing::Values(
        Shape{"small", Options("bert", 2, 128, 2, 512, 1000, 1, "gelu")},
        Shape{"odd", Options("bert", 3, 320, 5, 1000, 997, 3, "gelu")},
        Shape{"medium", Options("bert", 4, 256, 4, 1024, 2000, 5, "gelu_new",
                                TensorType::kF16)},
        Shape{"relu", Options("bert", 2, 64, 4, 256, 500, 2, "relu",
                              TensorType::kBF16)},
        Shape{"roberta", Options("roberta", 2, 192, 3, 768, 1500, 3, "gelu")},
        Shape{"xlmr", Options("xlm-roberta", 2, 128, 4, 512, 3000, 1, "gelu")}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace vitrine
