#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "model/checkpoint.h"
#include "model/engine.h"
#include "nlohmann/json.hpp"
#include "tests/testing/reference.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

using testing::AllHeads;
using ::testing::HasSubstr;
using testing::RandomSequences;
using testing::ReferenceOutput;
using testing::RunReference;
using testing::TinyModelOptions;
using testing::WriteTinyModel;

EngineOptions OnCpu(internal::Dtype dtype) {
  EngineOptions options;
  options.device = internal::DEVICE_CPU;
  options.dtype = dtype;
  options.inner_threads = 2;
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

// The engine of a Hugging Face folder with its classifier as the one head.
absl::StatusOr<std::unique_ptr<Engine>> EngineOfClassifier(
    const std::string& folder, const EngineOptions& options,
    EncoderConfig* config) {
  absl::StatusOr<Checkpoint> checkpoint = LoadCheckpoint(folder, {});
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<std::vector<ImportedHead>> heads =
      HeadsOfHuggingFaceFolder(folder);
  if (!heads.ok()) return heads.status();
  AddHeads(*heads, &*checkpoint);
  *config = checkpoint->config;
  return NewTorchEngine(*checkpoint, {(*heads)[0].head}, options);
}

struct Case {
  const char* name;
  const char* type;
  int64_t layers, hidden, heads, intermediate, vocab;
  int labels;
};

class EngineReferenceTest : public ::testing::TestWithParam<Case> {};

TEST_P(EngineReferenceTest, AgreesWithNumPyInFp32AndBf16) {
  const Case& c = GetParam();
  TinyModelOptions options;
  options.model_type = c.type;
  options.num_layers = c.layers;
  options.hidden_size = c.hidden;
  options.num_heads = c.heads;
  options.intermediate_size = c.intermediate;
  options.vocab_size = c.vocab;
  options.labels = c.labels;
  options.max_positions = std::string(c.type) == "bert" ? 512 : 514;
  options.type_vocab_size = std::string(c.type) == "bert" ? 2 : 1;
  TempFolder folder;
  const std::string model = folder.File("model");
  ASSERT_TRUE(WriteTinyModel(model, options).ok());

  EncoderConfig config;
  std::vector<std::vector<Encoding>> batches;
  std::vector<Encoding> all;
  std::vector<ReferenceOutput> expected;
  for (const internal::Dtype dtype :
       {internal::DTYPE_FP32, internal::DTYPE_BF16}) {
    absl::StatusOr<std::unique_ptr<Engine>> engine =
        EngineOfClassifier(model, OnCpu(dtype), &config);
    ASSERT_TRUE(engine.ok()) << engine.status();
    if (batches.empty()) {
      for (const std::vector<int>& lengths :
           {std::vector<int>{1},
            {512},
            {2, 3},
            {31, 31, 31, 31},
            {128, 1, 511, 31, 2, 3, 30, 16, 17, 64}}) {
        batches.push_back(RandomSequences(config, lengths, batches.size()));
        all.insert(all.end(), batches.back().begin(), batches.back().end());
      }
    }
    if (dtype == internal::DTYPE_FP32) {
      absl::StatusOr<std::vector<ReferenceOutput>> outputs =
          RunReference(model, all);
      ASSERT_TRUE(outputs.ok()) << outputs.status();
      expected = *outputs;
    }
    const float tolerance = dtype == internal::DTYPE_FP32 ? 1e-4f : 5e-2f;
    EXPECT_EQ((*engine)->dtype(),
              dtype == internal::DTYPE_FP32 ? "fp32" : "bf16");
    EXPECT_EQ((*engine)->width(0), c.labels);
    size_t next = 0;
    for (const std::vector<Encoding>& batch : batches) {
      absl::StatusOr<Outputs> outputs = (*engine)->Run(Pack(batch));
      ASSERT_TRUE(outputs.ok()) << outputs.status();
      for (size_t s = 0; s < batch.size(); ++s, ++next) {
        EXPECT_LT(
            Distance(outputs->Of(static_cast<int>(s)), expected[next].logits),
            tolerance)
            << (*engine)->dtype() << ", " << batch[s].ids.size() << " tokens";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, EngineReferenceTest,
    ::testing::Values(Case{"small", "bert", 2, 128, 2, 512, 1000, 1},
                      Case{"medium", "bert", 4, 256, 8, 1024, 1500, 3},
                      Case{"odd", "bert", 2, 320, 5, 1000, 997, 2},
                      Case{"roberta", "roberta", 2, 192, 3, 768, 800, 4}),
    [](const auto& info) { return std::string(info.param.name); });

// tests/data/golden_bert holds a random fp16 checkpoint and, per line of
// golden.jsonl, a sequence and the logits that another implementation, in
// plain PyTorch, gives for it.
TEST(EngineGoldenTest, AgreesWithPyTorchOnTheCommittedCheckpoint) {
  const std::string folder = absl::StrCat(VITRINE_TEST_DATA, "/golden_bert");
  std::ifstream lines(folder + "/golden.jsonl");
  std::vector<Encoding> sequences;
  std::vector<std::vector<float>> expected;
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json row = nlohmann::json::parse(line);
    sequences.push_back({row["ids"], row["type_ids"]});
    expected.push_back(row["logits"]);
  }
  ASSERT_EQ(sequences.size(), 10);
  for (const internal::Dtype dtype :
       {internal::DTYPE_FP32, internal::DTYPE_BF16}) {
    EncoderConfig config;
    absl::StatusOr<std::unique_ptr<Engine>> engine =
        EngineOfClassifier(folder, OnCpu(dtype), &config);
    ASSERT_TRUE(engine.ok()) << engine.status();
    absl::StatusOr<Outputs> outputs = (*engine)->Run(Pack(sequences));
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    for (size_t s = 0; s < sequences.size(); ++s) {
      EXPECT_LT(Distance(outputs->Of(static_cast<int>(s)), expected[s]),
                dtype == internal::DTYPE_FP32 ? 1e-4f : 5e-2f)
          << (*engine)->dtype() << ", sequence " << s;
    }
  }
}

class TorchEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.heads = AllHeads();
    ASSERT_TRUE(WriteTinyModel(folder_.path(), options_).ok());
    absl::StatusOr<Checkpoint> checkpoint =
        LoadCheckpoint(folder_.path(), options_.heads);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
  }
  std::unique_ptr<Engine> Make(internal::Dtype dtype = internal::DTYPE_FP32) {
    absl::StatusOr<std::unique_ptr<Engine>> engine =
        NewTorchEngine(checkpoint_, options_.heads, OnCpu(dtype));
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

TEST_F(TorchEngineTest, SaysWhatItIs) {
  const std::unique_ptr<Engine> engine = Make();
  EXPECT_EQ(engine->name(), "torch");
  EXPECT_EQ(engine->device(), "cpu");
  EXPECT_EQ(engine->width(0), 1);
  EXPECT_EQ(engine->width(1), options_.hidden_size);
  EXPECT_EQ(engine->width(2), 3);
  EXPECT_EQ(engine->width(3), 2);
}

TEST_F(TorchEngineTest, RunsEachSequencesHeadsInOnePass) {
  const std::unique_ptr<Engine> engine = Make();
  const std::vector<Encoding> sequences = Sequences({5, 9, 9, 30, 2, 7});
  const std::vector<HeadMask> masks = {0b0001, 0b1111, 0b0100,
                                       0b1010, 0b0010, 0b1001};
  Batch mixed;
  for (size_t s = 0; s < sequences.size(); ++s) {
    mixed.Add(sequences[s], masks[s]);
  }
  absl::StatusOr<Outputs> outputs = engine->Run(mixed);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  for (size_t s = 0; s < sequences.size(); ++s) {
    absl::Span<const float> row = outputs->Of(static_cast<int>(s));
    for (int h = 0; h < 4; ++h) {
      if ((masks[s] >> h & 1) == 0) continue;
      // By rising head number, each as if it were alone.
      absl::StatusOr<Outputs> alone =
          engine->Run(Pack({sequences[s]}, HeadMask{1} << h));
      ASSERT_TRUE(alone.ok()) << alone.status();
      ASSERT_GE(row.size(), engine->width(h));
      EXPECT_LT(Distance(row.subspan(0, engine->width(h)), alone->Of(0)), 1e-5)
          << "sequence " << s << " head " << h;
      row.remove_prefix(engine->width(h));
    }
    EXPECT_TRUE(row.empty());
  }
}

TEST_F(TorchEngineTest, KeepsTheOrderOfLargeBatches) {
  // Several blocks for each of the engine's two threads.
  const std::unique_ptr<Engine> engine = Make();
  std::vector<int> lengths;
  for (int i = 0; i < 70; ++i) lengths.push_back(i * 37 % 100 + 20);
  const std::vector<Encoding> sequences = Sequences(lengths);
  Batch batch;
  for (size_t s = 0; s < sequences.size(); ++s) {
    batch.Add(sequences[s], HeadMask{1} << s % 4);
  }
  ASSERT_GT(batch.tokens(), 4000);
  absl::StatusOr<Outputs> outputs = engine->Run(batch);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  for (size_t s = 0; s < sequences.size(); ++s) {
    absl::StatusOr<Outputs> alone =
        engine->Run(Pack({sequences[s]}, HeadMask{1} << s % 4));
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_LT(Distance(outputs->Of(static_cast<int>(s)), alone->Of(0)), 2e-5)
        << "sequence " << s;
  }
}

TEST_F(TorchEngineTest, TakesBf16OfItselfWhereTheProcessorMultipliesIt) {
  std::ifstream file("/proc/cpuinfo");
  std::string cpu;
  for (std::string line; std::getline(file, line);) cpu += line;
  const bool fast =
      cpu.find("amx_bf16") != cpu.npos || cpu.find("avx512_bf16") != cpu.npos;
  EXPECT_EQ(Make(internal::DTYPE_AUTO)->dtype(), fast ? "bf16" : "fp32");
}

TEST_F(TorchEngineTest, EmbedsOnTheUnitSphere) {
  for (const internal::Dtype dtype :
       {internal::DTYPE_FP32, internal::DTYPE_BF16}) {
    absl::StatusOr<Outputs> outputs =
        Make(dtype)->Run(Pack(Sequences({1, 20, 77}), 0b0010));
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    for (int s = 0; s < 3; ++s) {
      double squares = 0;
      for (const float x : outputs->Of(s)) squares += double{x} * x;
      EXPECT_NEAR(squares, 1, 1e-5);
    }
  }
}

TEST_F(TorchEngineTest, NeverLetsCompanionsChangeAResult) {
  const struct {
    internal::Dtype dtype;
    float tolerance;
  } cases[] = {{internal::DTYPE_FP32, 2e-5f}, {internal::DTYPE_BF16, 3e-2f}};
  for (const auto& c : cases) {
    const std::unique_ptr<Engine> engine = Make(c.dtype);
    const Encoding subject = Sequences({24}, 99)[0];
    absl::StatusOr<Outputs> alone = engine->Run(Pack({subject}, 0b1111));
    ASSERT_TRUE(alone.ok()) << alone.status();
    const std::vector<std::vector<int>> companions = {
        {24}, {25, 26, 28}, {1, 128}, {23, 22, 21, 20, 3, 90, 128, 127}};
    for (const std::vector<int>& lengths : companions) {
      for (uint64_t seed = 0; seed < 3; ++seed) {
        std::vector<Encoding> sequences = Sequences(lengths, seed);
        const size_t at = seed % (sequences.size() + 1);
        sequences.insert(sequences.begin() + static_cast<int64_t>(at), subject);
        absl::StatusOr<Outputs> outputs = engine->Run(Pack(sequences, 0b1111));
        ASSERT_TRUE(outputs.ok()) << outputs.status();
        EXPECT_LT(Distance(outputs->Of(static_cast<int>(at)), alone->Of(0)),
                  c.tolerance)
            << engine->dtype() << ", " << lengths.size() << " companions";
      }
    }
  }
}

TEST_F(TorchEngineTest, GivesTheSameBatchTheSameBits) {
  for (const internal::Dtype dtype :
       {internal::DTYPE_FP32, internal::DTYPE_BF16}) {
    const std::unique_ptr<Engine> engine = Make(dtype);
    const Batch batch = Pack(Sequences({3, 40, 41, 128, 1, 64}), 0b1111);
    absl::StatusOr<Outputs> first = engine->Run(batch);
    ASSERT_TRUE(first.ok()) << first.status();
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(engine->Run(batch)->values, first->values);
    }
  }
}

TEST_F(TorchEngineTest, RunsOnSeveralThreadsAtOnce) {
  const std::unique_ptr<Engine> engine = Make();
  const Batch batch = Pack(Sequences({3, 40, 41, 128, 1, 64}), 0b1111);
  absl::StatusOr<Outputs> expected = engine->Run(batch);
  ASSERT_TRUE(expected.ok()) << expected.status();
  std::vector<std::thread> threads;
  std::vector<float> worst(4, INFINITY);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      float most = 0;
      for (int i = 0; i < 20; ++i) {
        absl::StatusOr<Outputs> outputs = engine->Run(batch);
        most = outputs.ok()
                   ? std::max(most, Distance(outputs->values, expected->values))
                   : INFINITY;
      }
      worst[t] = most;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const float most : worst) EXPECT_LT(most, 1e-5);
}

// oneDNN makes code for each shape it meets, here in several threads at once.
TEST_F(TorchEngineTest, MeetsNewShapesOnSeveralThreadsInBf16) {
  const std::unique_ptr<Engine> engine = Make(internal::DTYPE_BF16);
  std::vector<Batch> batches;
  for (int i = 0; i < 120; ++i) {
    std::vector<int> lengths(i % 9 + 1, i * 7919 % 96 + 1);
    lengths.push_back(i * 104729 % 96 + 1);
    batches.push_back(Pack(Sequences(lengths)));
  }
  std::vector<std::vector<float>> outputs(batches.size());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < batches.size(); i += 4) {
        absl::StatusOr<Outputs> result = engine->Run(batches[i]);
        if (result.ok()) outputs[i] = result->values;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < batches.size(); ++i) {
    const absl::StatusOr<Outputs> alone = engine->Run(batches[i]);
    ASSERT_TRUE(alone.ok()) << alone.status();
    ASSERT_EQ(outputs[i].size(), alone->values.size()) << i;
    EXPECT_LT(Distance(outputs[i], alone->values), 1e-3) << i;
  }
}

TEST_F(TorchEngineTest, OutlivesTheCheckpoint) {
  const std::unique_ptr<Engine> engine = Make();
  const Batch batch = Pack(Sequences({12}));
  checkpoint_ = Checkpoint();
  EXPECT_TRUE(engine->Run(batch).ok());
}

TEST_F(TorchEngineTest, AnswersAnEmptyBatch) {
  absl::StatusOr<Outputs> outputs = Make()->Run(Batch());
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_TRUE(outputs->values.empty());
}

TEST_F(TorchEngineTest, NamesTheSequenceThatIsWrong) {
  const std::unique_ptr<Engine> engine = Make();
  const Batch good = Pack(Sequences({4, 6}));
  const auto error = [&](const std::function<void(Batch*)>& change) {
    Batch batch = good;
    change(&batch);
    const absl::Status status = engine->Run(batch).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  const int vocab = static_cast<int>(checkpoint_.config.vocab_size);
  EXPECT_EQ(error([&](Batch* b) { b->ids[5] = vocab; }),
            absl::StrCat("sequence 1: token id ", vocab,
                         " is not in the vocabulary of ", vocab));
  EXPECT_THAT(error([](Batch* b) { b->ids[0] = -1; }),
              HasSubstr("sequence 0: token id -1"));
  EXPECT_THAT(error([](Batch* b) { b->segment_ids[9] = 2; }),
              HasSubstr("sequence 1: segment id 2"));
  EXPECT_THAT(error([](Batch* b) { b->segment_ids[9] = -1; }),
              HasSubstr("sequence 1: segment id -1"));
  EXPECT_THAT(error([](Batch* b) { b->heads[1] = 0; }),
              HasSubstr("sequence 1: no head"));
  EXPECT_THAT(error([](Batch* b) { b->heads[1] = 0b10000; }),
              HasSubstr("sequence 1: a head that is not there"));
  EXPECT_THAT(error([](Batch* b) {
                b->offsets = {0, 0, 10};
              }),
              HasSubstr("sequence 0: it is empty"));
  EXPECT_THAT(error([](Batch* b) {
                b->offsets = {0, -5, 10};
              }),
              HasSubstr("sequence 0: it is empty"));
  EXPECT_THAT(error([](Batch* b) {
                b->offsets = {0, 12, 10};
              }),
              HasSubstr("sequence 0"));
  EXPECT_THAT(error([](Batch* b) {
                b->offsets = {0, 4, 9};
              }),
              HasSubstr("parts do not fit"));
  EXPECT_THAT(error([](Batch* b) {
                b->offsets = {0, 10};
              }),
              HasSubstr("parts do not fit"));
  EXPECT_THAT(error([](Batch* b) { b->segment_ids.pop_back(); }),
              HasSubstr("parts do not fit"));
  EXPECT_THAT(error([this](Batch* b) { b->Add(Sequences({129})[0], 1); }),
              HasSubstr("sequence 2: 129 tokens > 128"));
}

TEST_F(TorchEngineTest, RefusesWhatTheMachineHasNot) {
  EngineOptions options = OnCpu(internal::DTYPE_FP16);
  EXPECT_EQ(
      NewTorchEngine(checkpoint_, options_.heads, options).status().code(),
      absl::StatusCode::kFailedPrecondition);
  std::vector<internal::Head> unknown = options_.heads;
  unknown[0].set_name("other");
  EXPECT_THAT(NewTorchEngine(checkpoint_, unknown, OnCpu(internal::DTYPE_FP32))
                  .status()
                  .ToString(),
              HasSubstr("no tensor other.out_proj.weight"));
}

}  // namespace
}  // namespace vitrine
