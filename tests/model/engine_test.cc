// The facts that hold for every engine and dtype on a CPU.

#include "model/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <thread>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"
#include "tests/model/engine_fixture.h"
#include "tests/testing/reference.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

using testing::AllHeads;
using testing::CompanyTolerance;
using testing::Distance;
using testing::EngineMode;
using testing::Has;
using ::testing::HasSubstr;
using testing::kEngineModes;
using testing::NameOf;
using testing::OnCpu;
using testing::Pack;
using testing::RandomSequences;
using testing::ReferenceOutput;
using testing::RunReference;
using testing::TinyModelOptions;
using testing::WriteTinyModel;

// A Hugging Face folder with its classifier as the one head.
struct Classifier {
  Checkpoint checkpoint;
  internal::Head head;
};
absl::StatusOr<Classifier> LoadClassifier(const std::string& folder) {
  absl::StatusOr<Checkpoint> checkpoint = LoadCheckpoint(folder, {});
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<std::vector<ImportedHead>> heads =
      HeadsOfHuggingFaceFolder(folder);
  if (!heads.ok()) return heads.status();
  AddHeads(*heads, &*checkpoint);
  return Classifier{*std::move(checkpoint), (*heads)[0].head};
}

// ---------------------------------------------------- against the reference

struct Case {
  const char* name;
  const char* type;
  int64_t layers, hidden, heads, intermediate, vocab;
  int labels;
  const char* activation;
  TensorType on_disk;
  // Of int8's logits: as measured with random weights, and a quarter more.
  // Twice that where inputs have 7 bits.
  float int8_tolerance;
  // How many short sequences are ranked.
  int ranked;
  std::vector<std::vector<int>> lengths;  // of each batch's sequences
};

const std::vector<std::vector<int>> kLengths = {
    {1},
    {512},
    {2, 3},
    {31, 31, 31, 31},
    {128, 1, 511, 31, 2, 3, 30, 16, 17, 64}};
const std::vector<std::vector<int>> kFewLengths = {{512},
                                                   {1, 128, 3, 511, 31, 2}};

const Case kCases[] = {
    {"small", "bert", 2, 128, 2, 512, 1000, 1, "gelu", TensorType::kF32, 0.1f,
     0, kLengths},
    {"medium", "bert", 4, 256, 8, 1024, 1500, 3, "gelu", TensorType::kF32,
     0.16f, 150, kLengths},
    {"odd", "bert", 2, 320, 5, 1000, 997, 2, "gelu", TensorType::kF32, 0.1f, 0,
     kLengths},
    {"roberta", "roberta", 2, 192, 3, 768, 800, 4, "gelu", TensorType::kF32,
     0.1f, 0, kLengths},
    {"heads_of_16", "bert", 3, 96, 6, 400, 500, 2, "relu", TensorType::kBF16,
     0.1f, 0, kLengths},
    {"gelu_new", "xlm-roberta", 2, 64, 2, 256, 500, 2, "gelu_new",
     TensorType::kF16, 0.1f, 0, kLengths},
    {"minilm", "bert", 6, 384, 12, 1536, 1000, 1, "gelu", TensorType::kF32,
     0.18f, 150, kFewLengths},
    {"bert_base", "bert", 12, 768, 12, 3072, 500, 1, "gelu", TensorType::kF16,
     0.13f, 0, kFewLengths},
};

// A case's model, sequences and what the reference says of them. Made once in a
// process, where several tests want it.
struct Example {
  TempFolder folder;
  absl::StatusOr<Classifier> classifier;
  std::vector<std::vector<Encoding>> batches;  // the last one is to be ranked
  std::vector<std::vector<ReferenceOutput>> expected;
};

std::unique_ptr<Example> MakeExample(const Case& c) {
  auto out = std::make_unique<Example>();
  TinyModelOptions options;
  options.model_type = c.type;
  options.num_layers = c.layers;
  options.hidden_size = c.hidden;
  options.num_heads = c.heads;
  options.intermediate_size = c.intermediate;
  options.vocab_size = c.vocab;
  options.labels = c.labels;
  options.hidden_act = c.activation;
  options.dtype = c.on_disk;
  const bool bert = options.model_type == "bert";
  options.max_positions = bert ? 512 : 514;
  options.type_vocab_size = bert ? 2 : 1;
  const std::string model = out->folder.File("model");
  const absl::Status written = WriteTinyModel(model, options);
  EXPECT_TRUE(written.ok()) << written;
  out->classifier = LoadClassifier(model);
  EXPECT_TRUE(out->classifier.ok()) << out->classifier.status();
  if (!out->classifier.ok()) return out;
  const EncoderConfig& config = out->classifier->checkpoint.config;
  std::vector<std::vector<int>> lengths = c.lengths;
  lengths.emplace_back();
  for (int i = 0; i < c.ranked; ++i) {
    lengths.back().push_back(4 + i * 7919 % 20);
  }
  std::vector<Encoding> all;
  for (const std::vector<int>& batch : lengths) {
    out->batches.push_back(RandomSequences(config, batch, all.size()));
    all.insert(all.end(), out->batches.back().begin(),
               out->batches.back().end());
  }
  const absl::StatusOr<std::vector<ReferenceOutput>> expected =
      RunReference(model, all);
  EXPECT_TRUE(expected.ok()) << expected.status();
  if (!expected.ok()) return out;
  auto next = expected->begin();
  for (const std::vector<Encoding>& batch : out->batches) {
    const auto end = next + static_cast<int64_t>(batch.size());
    out->expected.emplace_back(next, end);
    next = end;
  }
  return out;
}

const Example& ExampleOf(const Case& c) {
  static auto* const made = new std::map<std::string, std::unique_ptr<Example>>;
  std::unique_ptr<Example>& example = (*made)[c.name];
  if (example == nullptr) {
    // One at a time, for the large ones' sake.
    made->clear();
    (*made)[c.name] = MakeExample(c);
  }
  return *(*made)[c.name];
}

float ToleranceOf(internal::Dtype dtype, float int8) {
  return dtype == internal::DTYPE_FP32   ? 1e-4f
         : dtype == internal::DTYPE_BF16 ? 5e-2f
         : HasExactInt8()                ? int8
                                         : 2 * int8;
}

// Spearman's: how far two orders of the same things agree.
double RankCorrelation(const std::vector<float>& a,
                       const std::vector<float>& b) {
  const auto ranks = [](const std::vector<float>& values) {
    std::vector<int> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&values](int x, int y) { return values[x] < values[y]; });
    std::vector<double> out(values.size());
    for (size_t i = 0; i < order.size(); ++i) {
      out[order[i]] = static_cast<double>(i);
    }
    return out;
  };
  const std::vector<double> x = ranks(a), y = ranks(b);
  double squares = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    squares += (x[i] - y[i]) * (x[i] - y[i]);
  }
  const auto n = static_cast<double>(x.size());
  return 1 - 6 * squares / (n * (n * n - 1));
}

class EngineReferenceTest
    : public ::testing::TestWithParam<std::tuple<Case, internal::EngineKind>> {
};

TEST_P(EngineReferenceTest, AgreesWithNumPyInEveryDtype) {
  const auto& [c, kind] = GetParam();
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  if (c.layers > 6) GTEST_SKIP() << "large, and slow under a sanitizer";
#endif
  const Example& example = ExampleOf(c);
  ASSERT_FALSE(example.expected.empty());
  for (const EngineMode& mode : kEngineModes) {
    if (mode.kind != kind || !Has(mode)) continue;
    SCOPED_TRACE(NameOf(mode.dtype));
    absl::StatusOr<std::unique_ptr<Engine>> engine =
        NewEngine(example.classifier->checkpoint, {example.classifier->head},
                  OnCpu(mode));
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ((*engine)->width(0), c.labels);
    const float tolerance = ToleranceOf(mode.dtype, c.int8_tolerance);
    float most = 0;
    for (size_t b = 0; b < example.batches.size(); ++b) {
      const std::vector<Encoding>& batch = example.batches[b];
      absl::StatusOr<Outputs> outputs = (*engine)->Run(Pack(batch));
      ASSERT_TRUE(outputs.ok()) << outputs.status();
      std::vector<float> scores, expected_scores;
      for (size_t s = 0; s < batch.size(); ++s) {
        const absl::Span<const float> actual = outputs->Of(static_cast<int>(s));
        const std::vector<float>& expected = example.expected[b][s].logits;
        const float distance = Distance(actual, expected);
        EXPECT_LT(distance, tolerance) << batch[s].ids.size() << " tokens";
        most = std::max(most, distance);
        scores.push_back(actual[0]);
        expected_scores.push_back(expected[0]);
      }
      if (b + 1 < example.batches.size() || c.ranked == 0) continue;
      const double correlation = RankCorrelation(scores, expected_scores);
      EXPECT_GE(correlation, mode.dtype == internal::DTYPE_INT8 ? 0.99 : 0.999);
      RecordProperty("rank_correlation_" + NameOf(mode.dtype),
                     absl::StrCat(correlation));
    }
    RecordProperty("distance_" + NameOf(mode.dtype), absl::StrCat(most));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, EngineReferenceTest,
    ::testing::Combine(::testing::ValuesIn(kCases),
                       ::testing::Values(internal::ENGINE_KIND_TORCH,
                                         internal::ENGINE_KIND_ONEDNN)),
    [](const auto& info) {
      return absl::StrCat(NameOf(std::get<1>(info.param)), "_",
                          std::get<0>(info.param).name);
    });

// ------------------------------------------------- each engine and each dtype

class EveryEngineTest : public testing::EngineTest,
                        public ::testing::WithParamInterface<EngineMode> {
 protected:
  void SetUp() override {
    if (!Has(GetParam())) {
      GTEST_SKIP() << "this processor has no products of bf16";
    }
    EngineTest::SetUp();
  }
  std::unique_ptr<Engine> Make(int threads = 2) {
    return EngineTest::Make(OnCpu(GetParam(), threads));
  }
  float tolerance() const { return ToleranceOf(GetParam().dtype, 0.15f); }
};

INSTANTIATE_TEST_SUITE_P(Modes, EveryEngineTest,
                         ::testing::ValuesIn(kEngineModes),
                         [](const auto& info) {
                           return absl::StrCat(NameOf(info.param.kind), "_",
                                               NameOf(info.param.dtype));
                         });

// tests/data/golden_bert holds a random fp16 checkpoint and, per line of
// golden.jsonl, a sequence and the logits that another implementation, in
// plain PyTorch, gives for it.
TEST_P(EveryEngineTest, AgreesWithPyTorchOnTheCommittedCheckpoint) {
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
  const absl::StatusOr<Classifier> classifier = LoadClassifier(folder);
  ASSERT_TRUE(classifier.ok()) << classifier.status();
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      NewEngine(classifier->checkpoint, {classifier->head}, OnCpu(GetParam()));
  ASSERT_TRUE(engine.ok()) << engine.status();
  absl::StatusOr<Outputs> outputs = (*engine)->Run(Pack(sequences));
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  for (size_t s = 0; s < sequences.size(); ++s) {
    EXPECT_LT(Distance(outputs->Of(static_cast<int>(s)), expected[s]),
              tolerance())
        << "sequence " << s;
  }
}

TEST_P(EveryEngineTest, SaysWhatItIs) {
  const std::unique_ptr<Engine> engine = Make();
  EXPECT_EQ(engine->name(), NameOf(GetParam().kind));
  EXPECT_EQ(engine->dtype(), NameOf(GetParam().dtype));
  EXPECT_EQ(engine->device(), "cpu");
  EXPECT_EQ(engine->width(0), 1);
  EXPECT_EQ(engine->width(1), options_.hidden_size);
  EXPECT_EQ(engine->width(2), 3);
  EXPECT_EQ(engine->width(3), 2);
}

// What a head makes of a sequence's hidden states, by plain loops.
std::vector<float> HeadOutputs(const Checkpoint& checkpoint,
                               const internal::Head& head,
                               const ReferenceOutput& hidden) {
  const std::vector<float>& pooled =
      head.pooling() == internal::POOLING_MEAN ? hidden.mean : hidden.first;
  std::vector<double> x(pooled.begin(), pooled.end());
  const auto linear = [&](const std::string& part) {
    const std::string name = absl::StrCat(head.name(), ".", part);
    const auto it = checkpoint.heads.find(name + ".weight");
    if (it == checkpoint.heads.end()) return false;
    const std::vector<float> weights = *ToFloats(it->second);
    const std::vector<float> bias =
        *ToFloats(checkpoint.heads.at(name + ".bias"));
    std::vector<double> y(bias.begin(), bias.end());
    for (size_t r = 0; r < y.size(); ++r) {
      for (size_t i = 0; i < x.size(); ++i) {
        y[r] += x[i] * weights[r * x.size() + i];
      }
    }
    x = y;
    return true;
  };
  if (linear("dense")) {
    for (double& v : x) v = std::tanh(v);
  }
  linear("out_proj");
  linear("projection");
  if (head.kind() == internal::HEAD_KIND_RECOMMENDATION) {
    double squares = 0;
    for (const double v : x) squares += v * v;
    for (double& v : x) v /= std::sqrt(squares);
  }
  return {x.begin(), x.end()};
}

// Where all heads of a share read first tokens only, the last layer finishes
// no other; so batches of the one kind, of the other and of both.
TEST_P(EveryEngineTest, EveryHeadAgreesWithNumPy) {
  constexpr HeadMask kFirst = 0b1001, kMean = 0b0110;
  const std::vector<std::vector<HeadMask>> masks = {
      {kFirst},
      {0b0001, 0b1000},
      {kMean},
      {0b0010, 0b0100},
      {0b1111},
      {kFirst, kMean},
      {0b0001, 0b1111, 0b0100, 0b1000}};
  for (const char* const activation : {"gelu", "gelu_new", "relu"}) {
    options_.hidden_act = activation;
    EngineTest::SetUp();
    const std::unique_ptr<Engine> engine = Make();
    const std::vector<Encoding> sequences =
        Sequences({31, 1, 2, 3, 300, 16, 17, 128, 5, 90, 64, 33});
    const absl::StatusOr<std::vector<ReferenceOutput>> hidden =
        RunReference(folder_.path(), sequences);
    ASSERT_TRUE(hidden.ok()) << hidden.status();
    for (size_t m = 0; m < masks.size(); ++m) {
      Batch batch;
      for (size_t s = 0; s < sequences.size(); ++s) {
        batch.Add(sequences[s], masks[m][s % masks[m].size()]);
      }
      absl::StatusOr<Outputs> outputs = engine->Run(batch);
      ASSERT_TRUE(outputs.ok()) << outputs.status();
      for (size_t s = 0; s < sequences.size(); ++s) {
        std::vector<float> expected;
        for (int h = 0; h < 4; ++h) {
          if ((batch.heads[s] >> h & 1) == 0) continue;
          const std::vector<float> one =
              HeadOutputs(checkpoint_, options_.heads[h], (*hidden)[s]);
          expected.insert(expected.end(), one.begin(), one.end());
        }
        EXPECT_LT(Distance(outputs->Of(static_cast<int>(s)), expected),
                  tolerance())
            << activation << ", masks " << m << ", sequence " << s;
      }
    }
  }
}

TEST_P(EveryEngineTest, RunsEachSequencesHeadsInOnePass) {
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
      EXPECT_LT(Distance(row.subspan(0, engine->width(h)), alone->Of(0)),
                CompanyTolerance(GetParam()))
          << "sequence " << s << " head " << h;
      row.remove_prefix(engine->width(h));
    }
    EXPECT_TRUE(row.empty());
  }
}

TEST_P(EveryEngineTest, KeepsTheOrderOfLargeBatches) {
  // Several blocks for each of the engine's two threads.
  const std::unique_ptr<Engine> engine = Make();
  std::vector<int> lengths;
  std::vector<HeadMask> masks;
  for (int i = 0; i < 70; ++i) {
    lengths.push_back(i * 37 % 100 + 20);
    masks.push_back(HeadMask{1} << i % 4);
  }
  const std::vector<Encoding> sequences = Sequences(lengths);
  Batch batch;
  for (size_t s = 0; s < sequences.size(); ++s) {
    batch.Add(sequences[s], masks[s]);
  }
  ASSERT_GT(batch.tokens(), 4000);
  absl::StatusOr<Outputs> outputs = engine->Run(batch);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  const std::vector<std::vector<float>> alone =
      RunAlone(*engine, sequences, masks);
  for (size_t s = 0; s < sequences.size(); ++s) {
    EXPECT_LT(Distance(outputs->Of(static_cast<int>(s)), alone[s]),
              CompanyTolerance(GetParam()))
        << "sequence " << s;
  }
}

TEST_P(EveryEngineTest, EmbedsOnTheUnitSphere) {
  absl::StatusOr<Outputs> outputs =
      Make()->Run(Pack(Sequences({1, 20, 77}), 0b0010));
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  for (int s = 0; s < 3; ++s) {
    double squares = 0;
    for (const float x : outputs->Of(s)) squares += double{x} * x;
    EXPECT_NEAR(squares, 1, 1e-5);
  }
}

TEST_P(EveryEngineTest, NeverLetsCompanionsChangeAResult) {
  const std::unique_ptr<Engine> engine = Make();
  const Encoding subject = Sequences({24}, 99)[0];
  absl::StatusOr<Outputs> alone = engine->Run(Pack({subject}, 0b1111));
  ASSERT_TRUE(alone.ok()) << alone.status();
  const std::vector<std::vector<int>> companions = {
      {24}, {25, 26, 28}, {1, 128}, {23, 22, 21, 20, 3, 90, 128, 127}, {512}};
  for (const std::vector<int>& lengths : companions) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      std::vector<Encoding> sequences = Sequences(lengths, seed);
      const size_t at = seed % (sequences.size() + 1);
      sequences.insert(sequences.begin() + static_cast<int64_t>(at), subject);
      absl::StatusOr<Outputs> outputs = engine->Run(Pack(sequences, 0b1111));
      ASSERT_TRUE(outputs.ok()) << outputs.status();
      EXPECT_LT(Distance(outputs->Of(static_cast<int>(at)), alone->Of(0)),
                CompanyTolerance(GetParam()))
          << lengths.size() << " companions";
    }
  }
}

TEST_P(EveryEngineTest, AnswersTheSameHoweverBatchesAreShuffledSplitAndMerged) {
  const std::unique_ptr<Engine> engine = Make();
  std::mt19937 random(3);
  std::vector<int> lengths = {1, 512, 300, 2};
  while (lengths.size() < 64) lengths.push_back(random() % 90 + 1);
  const std::vector<Encoding> sequences = Sequences(lengths);
  std::vector<HeadMask> masks;
  for (size_t s = 0; s < sequences.size(); ++s) {
    masks.push_back(random() % 15 + 1);
  }
  const std::vector<std::vector<float>> alone =
      RunAlone(*engine, sequences, masks);
  std::vector<int> order(sequences.size());
  std::iota(order.begin(), order.end(), 0);
  for (const size_t most : {64, 64, 40, 12, 5, 3, 2}) {
    std::shuffle(order.begin(), order.end(), random);
    for (size_t begin = 0; begin < order.size();) {
      const size_t end = std::min(
          order.size(), begin + (most == 64 ? most : random() % most + 1));
      Batch batch;
      for (size_t i = begin; i < end; ++i) {
        batch.Add(sequences[order[i]], masks[order[i]]);
      }
      const absl::StatusOr<Outputs> outputs = engine->Run(batch);
      ASSERT_TRUE(outputs.ok()) << outputs.status();
      for (size_t i = begin; i < end; ++i) {
        EXPECT_LT(
            Distance(outputs->Of(static_cast<int>(i - begin)), alone[order[i]]),
            CompanyTolerance(GetParam()))
            << "sequence " << order[i] << " of " << lengths[order[i]]
            << " tokens among " << end - begin;
      }
      begin = end;
    }
  }
}

TEST_P(EveryEngineTest, GivesTheSameBatchTheSameBits) {
  const std::unique_ptr<Engine> engine = Make();
  const Batch batch = Pack(Sequences({3, 40, 41, 128, 1, 64}), 0b1111);
  absl::StatusOr<Outputs> first = engine->Run(batch);
  ASSERT_TRUE(first.ok()) << first.status();
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(engine->Run(batch)->values, first->values);
  }
}

TEST_P(EveryEngineTest, RunsOnSeveralThreadsAtOnce) {
  for (const int inner_threads : {1, 2}) {
    const std::unique_ptr<Engine> engine = Make(inner_threads);
    std::vector<Batch> batches;
    for (const std::vector<int>& lengths :
         {std::vector<int>{3, 40, 41, 128, 1, 64},
          {500},
          {20, 20, 20},
          std::vector<int>(50, 30)}) {
      batches.push_back(Pack(Sequences(lengths), 0b1111));
    }
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
        for (int i = 0; i < 12; ++i) {
          const size_t b = (i + t) % batches.size();
          absl::StatusOr<Outputs> outputs = engine->Run(batches[b]);
          const float distance =
              outputs.ok() ? Distance(outputs->values, expected[b]) : INFINITY;
          if (!(distance <= most)) most = distance;
        }
        worst[t] = most;
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const float most : worst) {
      EXPECT_LT(most, CompanyTolerance(GetParam()));
    }
  }
}

// oneDNN makes code for each shape that it meets, for LibTorch in several
// threads at once.
TEST_P(EveryEngineTest, MeetsNewShapesOnSeveralThreads) {
  const std::unique_ptr<Engine> engine = Make();
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

TEST_P(EveryEngineTest, OutlivesTheCheckpoint) {
  const std::unique_ptr<Engine> engine = Make();
  const Batch batch = Pack(Sequences({12}));
  checkpoint_ = Checkpoint();
  EXPECT_TRUE(engine->Run(batch).ok());
}

TEST_P(EveryEngineTest, AnswersAnEmptyBatch) {
  absl::StatusOr<Outputs> outputs = Make()->Run(Batch());
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_TRUE(outputs->values.empty());
}

TEST_P(EveryEngineTest, NamesTheSequenceThatIsWrong) {
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
  EXPECT_THAT(error([this](Batch* b) { b->Add(Sequences({513})[0], 1); }),
              HasSubstr("sequence 2: 513 tokens > 512"));
}

TEST_P(EveryEngineTest, NamesTheTensorThatIsMissing) {
  const std::map<std::string, TensorView> encoder = checkpoint_.encoder;
  const auto error = [this] {
    const absl::Status status =
        NewEngine(checkpoint_, options_.heads, OnCpu(GetParam())).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  for (const char* const name :
       {"embeddings.word_embeddings.weight", "embeddings.LayerNorm.bias",
        "encoder.layer.0.attention.self.key.weight",
        "encoder.layer.1.attention.output.dense.bias",
        "encoder.layer.1.intermediate.dense.weight",
        "encoder.layer.1.output.LayerNorm.weight"}) {
    checkpoint_.encoder = encoder;
    ASSERT_EQ(checkpoint_.encoder.erase(name), 1) << name;
    EXPECT_THAT(error(), HasSubstr(absl::StrCat("no tensor ", name)));
  }
  checkpoint_.encoder = encoder;
  options_.heads[0].set_name("other");
  EXPECT_THAT(error(), HasSubstr("no tensor other.out_proj.weight"));
}

}  // namespace
}  // namespace vitrine
