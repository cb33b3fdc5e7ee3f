#include "model/gpu_engine.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "model/checkpoint.h"
#include "model/gpu_encoder.h"
#include "model/task_head.h"
#include "tests/testing/reference.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

using testing::AllHeads;
using testing::RandomSequences;
using testing::ReferenceOutput;
using testing::RunReference;
using testing::TinyModelOptions;
using testing::WriteTinyModel;

// Also on CUDA where there is any: the same operations, but for packed
// attention, fused activations and graphs.
std::vector<internal::Device> Devices() {
  std::vector<internal::Device> devices = {internal::DEVICE_CPU};
  if (at::hasCUDA()) devices.push_back(internal::DEVICE_CUDA);
  return devices;
}

EngineOptions On(internal::Device device, internal::Dtype dtype) {
  EngineOptions options;
  options.device = device;
  options.dtype = dtype;
  return options;
}

Batch Pack(const std::vector<Encoding>& sequences, HeadMask mask = 1) {
  Batch batch;
  for (const Encoding& sequence : sequences) batch.Add(sequence, mask);
  return batch;
}

float Distance(absl::Span<const float> a, absl::Span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  float most = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    most = std::max(most, std::abs(a[i] - b[i]));
  }
  return most;
}

struct Case {
  const char* name;
  const char* type;
  int64_t layers, hidden, heads, intermediate, vocab;
  int labels;
  const char* act;
};

class GpuEngineReferenceTest : public ::testing::TestWithParam<Case> {};

TEST_P(GpuEngineReferenceTest, AgreesWithNumPy) {
  const Case& c = GetParam();
  TinyModelOptions options;
  options.model_type = c.type;
  options.num_layers = c.layers;
  options.hidden_size = c.hidden;
  options.num_heads = c.heads;
  options.intermediate_size = c.intermediate;
  options.vocab_size = c.vocab;
  options.labels = c.labels;
  options.hidden_act = c.act;
  options.max_positions = std::string(c.type) == "bert" ? 512 : 514;
  options.type_vocab_size = std::string(c.type) == "bert" ? 2 : 1;
  TempFolder folder;
  const std::string model = folder.File("model");
  ASSERT_TRUE(WriteTinyModel(model, options).ok());
  absl::StatusOr<Checkpoint> checkpoint = LoadCheckpoint(model, {});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  absl::StatusOr<std::vector<ImportedHead>> heads =
      HeadsOfHuggingFaceFolder(model);
  ASSERT_TRUE(heads.ok()) << heads.status();
  AddHeads(*heads, &*checkpoint);

  std::vector<std::vector<Encoding>> batches;
  std::vector<Encoding> all;
  for (const std::vector<int>& lengths :
       {std::vector<int>{1},
        {512},
        {2, 3},
        {31, 31, 31, 31},
        {128, 1, 511, 31, 2, 3, 30, 16, 17, 64}}) {
    batches.push_back(
        RandomSequences(checkpoint->config, lengths, batches.size()));
    all.insert(all.end(), batches.back().begin(), batches.back().end());
  }
  absl::StatusOr<std::vector<ReferenceOutput>> expected =
      RunReference(model, all);
  ASSERT_TRUE(expected.ok()) << expected.status();

  for (const internal::Device device : Devices()) {
    for (const internal::Dtype dtype :
         {internal::DTYPE_FP32, internal::DTYPE_BF16, internal::DTYPE_FP16}) {
      // Half precision has no products on a CPU in LibTorch 1.13.
      if (device == internal::DEVICE_CPU && dtype == internal::DTYPE_FP16) {
        continue;
      }
      absl::StatusOr<std::unique_ptr<Engine>> engine =
          NewGpuEngine(*checkpoint, {(*heads)[0].head}, On(device, dtype));
      ASSERT_TRUE(engine.ok()) << engine.status();
      const float tolerance = dtype == internal::DTYPE_FP32 ? 1e-4f : 5e-2f;
      // Several times, for a graph to be captured and replayed.
      for (int time = 0; time < 4; ++time) {
        size_t next = 0;
        for (const std::vector<Encoding>& batch : batches) {
          absl::StatusOr<Outputs> outputs = (*engine)->Run(Pack(batch));
          ASSERT_TRUE(outputs.ok()) << outputs.status();
          for (size_t s = 0; s < batch.size(); ++s, ++next) {
            EXPECT_LT(Distance(outputs->Of(static_cast<int>(s)),
                               (*expected)[next].logits),
                      tolerance)
                << (*engine)->device() << " " << (*engine)->dtype() << ", "
                << batch[s].ids.size() << " tokens, time " << time;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GpuEngineReferenceTest,
    ::testing::Values(Case{"small", "bert", 2, 128, 2, 512, 1000, 1, "gelu"},
                      Case{"odd", "bert", 2, 320, 5, 1000, 997, 2, "gelu"},
                      Case{"tanh", "bert", 2, 128, 2, 512, 1000, 1, "gelu_new"},
                      Case{"relu", "bert", 2, 64, 4, 256, 500, 2, "relu"},
                      Case{"roberta", "roberta", 2, 192, 3, 768, 800, 4,
                           "gelu"}),
    [](const auto& info) { return std::string(info.param.name); });

class GpuEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.heads = AllHeads();
    ASSERT_TRUE(WriteTinyModel(folder_.path(), options_).ok());
    absl::StatusOr<Checkpoint> checkpoint =
        LoadCheckpoint(folder_.path(), options_.heads);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
  }
  std::unique_ptr<Engine> Make(internal::Device device,
                               internal::Dtype dtype = internal::DTYPE_FP32) {
    absl::StatusOr<std::unique_ptr<Engine>> engine =
        NewGpuEngine(checkpoint_, options_.heads, On(device, dtype));
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  std::vector<Encoding> Sequences(const std::vector<int>& lengths,
                                  uint64_t seed = 1) {
    return RandomSequences(checkpoint_.config, lengths, seed);
  }

  TempFolder folder_;
  TinyModelOptions options_;
  Checkpoint checkpoint_;
};

TEST_F(GpuEngineTest, GivesEachSequenceTheHeadsItAsksFor) {
  const std::vector<Encoding> sequences = Sequences({5, 9, 9, 30, 2, 7});
  const std::vector<HeadMask> masks = {0b0001, 0b1111, 0b0100,
                                       0b1010, 0b0010, 0b1001};
  Batch mixed;
  for (size_t s = 0; s < sequences.size(); ++s) {
    mixed.Add(sequences[s], masks[s]);
  }
  for (const internal::Device device : Devices()) {
    const std::unique_ptr<Engine> engine = Make(device);
    absl::StatusOr<Outputs> outputs = engine->Run(mixed);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    for (size_t s = 0; s < sequences.size(); ++s) {
      absl::Span<const float> row = outputs->Of(static_cast<int>(s));
      for (int h = 0; h < 4; ++h) {
        if ((masks[s] >> h & 1) == 0) continue;
        absl::StatusOr<Outputs> alone =
            engine->Run(Pack({sequences[s]}, HeadMask{1} << h));
        ASSERT_TRUE(alone.ok()) << alone.status();
        ASSERT_GE(row.size(), engine->width(h));
        EXPECT_LT(Distance(row.subspan(0, engine->width(h)), alone->Of(0)),
                  1e-5)
            << "sequence " << s << " head " << h;
        row.remove_prefix(engine->width(h));
      }
      EXPECT_TRUE(row.empty());
    }
  }
}

TEST_F(GpuEngineTest, NeverLetsCompanionsChangeAResult) {
  const Encoding subject = Sequences({24}, 99)[0];
  for (const internal::Device device : Devices()) {
    for (const internal::Dtype dtype :
         {internal::DTYPE_FP32, internal::DTYPE_BF16}) {
      const std::unique_ptr<Engine> engine = Make(device, dtype);
      absl::StatusOr<Outputs> alone = engine->Run(Pack({subject}, 0b1111));
      ASSERT_TRUE(alone.ok()) << alone.status();
      for (const std::vector<int>& lengths :
           {std::vector<int>{24},
            {25, 26, 28},
            {1, 128},
            {23, 22, 21, 20, 3, 90, 128, 127}}) {
        for (uint64_t seed = 0; seed < 3; ++seed) {
          std::vector<Encoding> sequences = Sequences(lengths, seed);
          const auto at = static_cast<int>(seed % (sequences.size() + 1));
          sequences.insert(sequences.begin() + at, subject);
          absl::StatusOr<Outputs> outputs =
              engine->Run(Pack(sequences, 0b1111));
          ASSERT_TRUE(outputs.ok()) << outputs.status();
          EXPECT_LT(Distance(outputs->Of(at), alone->Of(0)),
                    dtype == internal::DTYPE_FP32 ? 2e-5 : 3e-2)
              << engine->device() << " " << engine->dtype() << ", "
              << lengths.size() << " companions";
        }
      }
    }
  }
}

TEST_F(GpuEngineTest, RunsOnSeveralThreadsAtOnce) {
  for (const internal::Device device : Devices()) {
    for (const internal::Dtype dtype :
         {internal::DTYPE_FP32, internal::DTYPE_BF16}) {
      const std::unique_ptr<Engine> engine = Make(device, dtype);
      // Of two shapes, so that graphs alternate.
      const std::vector<Batch> batches = {
          Pack(Sequences({3, 40, 41, 128, 1, 64}), 0b1111),
          Pack(Sequences({9, 7, 20}, 2), 0b0011)};
      std::vector<std::vector<float>> expected;
      for (const Batch& batch : batches) {
        absl::StatusOr<Outputs> outputs = engine->Run(batch);
        ASSERT_TRUE(outputs.ok()) << outputs.status();
        expected.push_back(outputs->values);
      }
      std::vector<std::thread> threads;
      std::vector<float> worst(4, INFINITY);
      for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
          float most = 0;
          for (int i = 0; i < 20; ++i) {
            const int which = (t + i) % 2;
            absl::StatusOr<Outputs> outputs = engine->Run(batches[which]);
            most =
                outputs.ok()
                    ? std::max(most, Distance(outputs->values, expected[which]))
                    : INFINITY;
          }
          worst[t] = most;
        });
      }
      for (std::thread& thread : threads) thread.join();
      for (const float most : worst) {
        EXPECT_LT(most, dtype == internal::DTYPE_FP32 ? 1e-5 : 3e-2);
      }
    }
  }
}

// What a graph runs: a batch with tokens and sequences to spare.
TEST_F(GpuEngineTest, SpareTokensAndSequencesChangeNothing) {
  const c10::InferenceMode inference;
  absl::StatusOr<GpuEncoder> encoder =
      GpuEncoder::FromCheckpoint(checkpoint_, at::kCPU, at::kFloat);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  const Batch batch = Pack(Sequences({9, 30, 8, 1, 64}));
  const std::vector<LengthBucket> buckets = GroupByLength(batch.offsets);
  const auto run = [&](const GpuShape& shape, internal::Pooling pooling) {
    const GpuBatch view =
        ViewBlock(PackBlock(batch, checkpoint_.config, shape, buckets, false),
                  shape, buckets);
    return Pool(encoder->Forward(view),
                view.offsets.narrow(0, 0, shape.sequences), pooling);
  };
  for (const internal::Pooling pooling :
       {internal::POOLING_MEAN, internal::POOLING_CLS}) {
    const at::Tensor exact = run(ShapeOf(batch), pooling);
    const at::Tensor spared =
        run(RoundedShapeOf(batch), pooling).narrow(0, 0, batch.sequences());
    EXPECT_TRUE(at::allclose(exact, spared, 1e-5, 1e-5));
  }
}

TEST_F(GpuEngineTest, AnswersNothingAndRefusesWhatIsWrong) {
  for (const internal::Device device : Devices()) {
    const std::unique_ptr<Engine> engine = Make(device);
    absl::StatusOr<Outputs> outputs = engine->Run(Batch());
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    EXPECT_TRUE(outputs->values.empty());
    Batch batch = Pack(Sequences({4, 6}));
    batch.ids[5] = static_cast<int32_t>(checkpoint_.config.vocab_size);
    EXPECT_EQ(engine->Run(batch).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(NewGpuEngine(checkpoint_, options_.heads,
                         On(internal::DEVICE_CPU, internal::DTYPE_INT8))
                .status()
                .code(),
            absl::StatusCode::kFailedPrecondition);
  if (!at::hasCUDA()) {
    EXPECT_EQ(NewGpuEngine(checkpoint_, options_.heads,
                           On(internal::DEVICE_AUTO, internal::DTYPE_AUTO))
                  .status()
                  .code(),
              absl::StatusCode::kFailedPrecondition);
  }
}

}  // namespace
}  // namespace vitrine
