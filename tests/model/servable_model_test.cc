#include "model/servable_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/textproto.h"
#include "nlohmann/json.hpp"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

using testing::AllHeads;
using ::testing::HasSubstr;
using testing::TinyModelOptions;
using testing::WriteManifest;
using testing::WriteTinyModel;

ServableOptions OnCpu(bool verify_digests = true) {
  ServableOptions options;
  options.engine.device = internal::DEVICE_CPU;
  options.engine.dtype = internal::DTYPE_FP32;
  options.verify_digests = verify_digests;
  return options;
}

TinyModelOptions Version() {
  TinyModelOptions options;
  options.hidden_size = 16;
  options.intermediate_size = 32;
  options.num_layers = 1;
  options.max_positions = 48;
  options.heads = AllHeads();
  options.model_name = "shop";
  options.version = 12;
  return options;
}

class ServableModelTest : public ::testing::Test {
 protected:
  ServableModelTest() : model_(folder_.File("model")) {}

  void Write(const TinyModelOptions& options) {
    ASSERT_TRUE(WriteTinyModel(model_, options).ok());
  }
  absl::StatusOr<std::shared_ptr<const ServableModel>> Load(
      const ServableOptions& options = OnCpu()) {
    return ServableModel::Load(model_, options);
  }
  std::string Error(const ServableOptions& options = OnCpu()) {
    return Load(options).status().ToString();
  }
  std::string File(const std::string& name) const {
    return JoinPath(model_, name);
  }
  internal::Manifest ReadManifest() {
    internal::Manifest manifest;
    EXPECT_TRUE(
        ReadSealedTextProto(File("manifest.textproto"), &manifest).ok());
    return manifest;
  }

  TempFolder folder_;
  const std::string model_;
};

TEST_F(ServableModelTest, LoadsAVersionWithAllItsHeads) {
  Write(Version());
  absl::StatusOr<std::shared_ptr<const ServableModel>> loaded = Load();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const ServableModel& model = **loaded;
  EXPECT_EQ(model.name(), "shop");
  EXPECT_EQ(model.version(), "12");
  EXPECT_EQ(model.tokenizer().kind(), "wordpiece");
  EXPECT_EQ(model.engine().device(), "cpu");
  EXPECT_EQ(model.encoder().hidden_size, 16);
  EXPECT_EQ(model.encoding().max_tokens(), 48);  // what the encoder takes
  EXPECT_EQ(model.relevance_head(), 0);
  EXPECT_EQ(model.recommendation_head(), 1);
  EXPECT_EQ(model.interest_head(), 2);
  EXPECT_EQ(model.embedding_head(), 1);
  EXPECT_EQ(*model.classification_head(""), 3);
  EXPECT_EQ(*model.classification_head("sentiment"), 3);
  EXPECT_THAT(model.classification_head("topic").status().ToString(),
              HasSubstr("has: sentiment"));
  ASSERT_EQ(model.heads().size(), 5);
  EXPECT_EQ(model.heads()[4].name(), "embedding");

  absl::StatusOr<Encoding> text = model.featurizer().Text("red sofa");
  ASSERT_TRUE(text.ok()) << text.status();
  Batch batch;
  batch.Add(*text, 0b11111);
  absl::StatusOr<Outputs> outputs = model.engine().Run(batch);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_EQ(outputs->Of(0).size(), 1 + 16 + 3 + 2 + 16);
}

TEST_F(ServableModelTest, LoadsAPlainHuggingFaceFolder) {
  TinyModelOptions options = Version();
  options.heads.clear();
  options.labels = 1;
  Write(options);
  absl::StatusOr<std::shared_ptr<const ServableModel>> loaded = Load();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const ServableModel& model = **loaded;
  EXPECT_EQ(model.name(), "model");
  EXPECT_EQ(model.version(), "0");
  EXPECT_EQ(model.relevance_head(), 0);
  EXPECT_EQ(model.recommendation_head(), -1);
  EXPECT_EQ(model.interest_head(), -1);
  EXPECT_EQ(model.embedding_head(), 1);
  EXPECT_THAT(model.classification_head("").status().ToString(),
              HasSubstr("no classification head"));
  options.labels = 3;
  Write(options);
  loaded = Load();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(*(*loaded)->classification_head("classifier"), 0);
}

TEST_F(ServableModelTest, AsksForANameAmongSeveralClassifiers) {
  TinyModelOptions options = Version();
  options.heads.push_back(options.heads.back());
  options.heads.back().set_name("topic");
  Write(options);
  absl::StatusOr<std::shared_ptr<const ServableModel>> loaded = Load();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(*(*loaded)->classification_head("topic"), 4);
  const absl::Status status = (*loaded)->classification_head("").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.ToString(), HasSubstr("sentiment, topic"));
}

TEST_F(ServableModelTest, OverridesTheManifestsEncoding) {
  Write(Version());
  internal::Manifest manifest = ReadManifest();
  manifest.mutable_encoding()->set_max_tokens(40);
  manifest.mutable_encoding()->set_max_query_tokens(10);
  ASSERT_TRUE(WriteManifest(model_, manifest).ok());
  ServableOptions options = OnCpu();
  options.encoding.set_max_tokens(30);
  absl::StatusOr<std::shared_ptr<const ServableModel>> loaded = Load(options);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->encoding().max_tokens(), 30);
  EXPECT_EQ((*loaded)->encoding().max_query_tokens(), 10);
}

TEST_F(ServableModelTest, ChecksTheDigests) {
  Write(Version());
  internal::Manifest manifest = ReadManifest();
  ASSERT_GE(manifest.files_size(), 4);
  for (const internal::FileDigest& file : manifest.files()) {
    const std::string path = File(file.name());
    const std::string good = *ReadFile(path);
    std::string bad = good;
    bad[bad.size() / 2] ^= 1;
    ASSERT_TRUE(WriteFile(path, bad).ok());
    EXPECT_THAT(Error(), HasSubstr(absl::StrCat(path, ": its SHA-256 is ")));
    ASSERT_TRUE(WriteFile(path, good + "\n").ok());
    EXPECT_THAT(Error(), HasSubstr(absl::StrCat(path, ": ")));
    ASSERT_EQ(remove(path.c_str()), 0);
    EXPECT_THAT(Error(), HasSubstr(absl::StrCat(path, ": missing")));
    ASSERT_TRUE(WriteFile(path, good).ok());
  }
  ASSERT_TRUE(WriteFile(File("tokenizer_config.json"), "{}").ok());
  EXPECT_THAT(Error(), HasSubstr("does not list it"));
  EXPECT_EQ(Error(OnCpu(/*verify_digests=*/false)), "OK");
  ASSERT_EQ(remove(File("tokenizer_config.json").c_str()), 0);
  manifest.mutable_files(0)->set_name("../outside");
  ASSERT_TRUE(
      WriteFile(File("manifest.textproto"), PrintSealedTextProto(manifest))
          .ok());
  EXPECT_THAT(Error(), HasSubstr("\"../outside\" is not a plain file name"));
}

TEST_F(ServableModelTest, RefusesAManifestThatIsNone) {
  Write(Version());
  ASSERT_TRUE(WriteFile(File("manifest.textproto"), "modell: \"x\"").ok());
  EXPECT_THAT(Error(), HasSubstr("manifest.textproto: cut off"));
}

TEST_F(ServableModelTest, KeepsTheNameEmbeddingToItself) {
  TinyModelOptions options = Version();
  options.heads[3].set_name("embedding");
  Write(options);
  EXPECT_THAT(Error(), HasSubstr("head embedding is there twice"));
}

TEST_F(ServableModelTest, RefusesATokenizerThatTheEncoderDoesNotCover) {
  TinyModelOptions options = Version();
  options.heads.clear();
  Write(options);
  std::string vocab = *ReadFile(File("vocab.txt"));
  ASSERT_TRUE(WriteFile(File("vocab.txt"), vocab + "extra\n").ok());
  EXPECT_THAT(Error(), HasSubstr("vocab_size"));
  ASSERT_EQ(remove(File("vocab.txt").c_str()), 0);
  EXPECT_THAT(Error(), HasSubstr(model_));
}

class GoldenTest : public ServableModelTest {
 protected:
  // What the model answers now, recorded as a trainer would.
  void SetUp() override {
    Write(Version());
    absl::StatusOr<std::shared_ptr<const ServableModel>> loaded = Load();
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    for (int h = 0; h < 4; ++h) {
      for (const char* text : {"red sofa", "a lamp for the desk", "rug"}) {
        absl::StatusOr<Encoding> encoding = (*loaded)->featurizer().Text(text);
        ASSERT_TRUE(encoding.ok());
        Batch batch;
        batch.Add(*encoding, HeadMask{1} << h);
        absl::StatusOr<Outputs> outputs = (*loaded)->engine().Run(batch);
        ASSERT_TRUE(outputs.ok()) << outputs.status();
        internal::Golden::Sequence* sequence = golden_.add_sequences();
        sequence->mutable_ids()->Assign(encoding->ids.begin(),
                                        encoding->ids.end());
        sequence->mutable_segment_ids()->Assign(encoding->segment_ids.begin(),
                                                encoding->segment_ids.end());
        sequence->set_head((*loaded)->heads()[h].name());
        const absl::Span<const float> row = outputs->Of(0);
        sequence->mutable_outputs()->Assign(row.begin(), row.end());
      }
    }
  }
  std::string ErrorWith(const std::function<void(internal::Golden*)>& change,
                        const ServableOptions& options = OnCpu()) {
    internal::Golden golden = golden_;
    change(&golden);
    EXPECT_TRUE(
        WriteFile(File("golden.textproto"), PrintTextProto(golden)).ok());
    EXPECT_TRUE(WriteManifest(model_, ReadManifest()).ok());
    return Error(options);
  }

  internal::Golden golden_;
};

TEST_F(GoldenTest, AcceptsWhatTheTrainerSaw) {
  EXPECT_EQ(ErrorWith([](internal::Golden*) {}), "OK");
  ServableOptions bf16 = OnCpu();
  bf16.engine.dtype = internal::DTYPE_BF16;
  EXPECT_EQ(ErrorWith([](internal::Golden*) {}, bf16), "OK");
}

TEST_F(GoldenTest, NamesTheHeadTheSequenceAndTheDifference) {
  EXPECT_THAT(
      ErrorWith([](internal::Golden* golden) {
        auto* outputs = golden->mutable_sequences(7)->mutable_outputs();
        outputs->Set(2, outputs->Get(2) + 0.01f);
      }),
      ::testing::AllOf(HasSubstr("golden.textproto: sequence 7"),
                       HasSubstr("head interest"), HasSubstr("output 2"),
                       HasSubstr("differ by 0.0")));
  EXPECT_THAT(ErrorWith([](internal::Golden* golden) {
                golden->mutable_sequences(0)->mutable_outputs()->Set(0, NAN);
              }),
              HasSubstr("sequence 0: head relevance"));
}

TEST_F(GoldenTest, AllowsBf16ItsRounding) {
  const auto off_by_a_little = [](internal::Golden* golden) {
    auto* outputs = golden->mutable_sequences(0)->mutable_outputs();
    outputs->Set(0, outputs->Get(0) + 0.02f);
  };
  EXPECT_THAT(ErrorWith(off_by_a_little), HasSubstr("head relevance"));
  ServableOptions bf16 = OnCpu();
  bf16.engine.dtype = internal::DTYPE_BF16;
  EXPECT_EQ(ErrorWith(off_by_a_little, bf16), "OK");
}

TEST_F(GoldenTest, RefusesInputsThatMakeNoSense) {
  EXPECT_THAT(ErrorWith([](internal::Golden* golden) {
                golden->mutable_sequences(1)->set_head("other");
              }),
              HasSubstr("sequence 1: no head \"other\""));
  EXPECT_THAT(ErrorWith([](internal::Golden* golden) {
                golden->mutable_sequences(1)->add_outputs(1);
              }),
              HasSubstr("sequence 1: head relevance: 1 outputs, 2 recorded"));
  EXPECT_THAT(ErrorWith([](internal::Golden* golden) {
                golden->mutable_sequences(1)->add_segment_ids(1);
              }),
              HasSubstr("sequence 1"));
  EXPECT_THAT(ErrorWith([](internal::Golden* golden) {
                golden->mutable_sequences(1)->set_ids(0, 1 << 30);
              }),
              HasSubstr("token id 1073741824"));
}

// Damage of every kind to every file: always a Status, never a crash.
class DamageTest : public ServableModelTest {
 protected:
  void Put(const std::string& name, const std::string& bytes) {
    // Without fsync: thousands of these.
    std::ofstream(File(name), std::ios::binary | std::ios::trunc) << bytes;
  }
  std::vector<std::string> Names() { return *ListFolder(model_); }
  // Offsets over the whole file, dense at its start, where headers are.
  static std::vector<size_t> Places(size_t size) {
    std::vector<size_t> places;
    for (size_t i = 0; i < size; i += i < 64 ? 1 : 1 + size / 60) {
      places.push_back(i);
    }
    if (size > 0) places.push_back(size - 1);
    return places;
  }
  // A small model that loads in about a millisecond but for its warm-up.
  static TinyModelOptions Smallest() {
    TinyModelOptions options = Version();
    options.hidden_size = 4;
    options.num_heads = 1;
    options.intermediate_size = 4;
    options.max_positions = 16;
    return options;
  }
};

TEST_F(DamageTest, RefusesEveryCutOfAVersionsFiles) {
  Write(Smallest());
  for (const std::string& name : Names()) {
    const std::string good = *ReadFile(File(name));
    for (const size_t size : Places(good.size())) {
      Put(name, good.substr(0, size));
      EXPECT_FALSE(Load().ok()) << name << " cut to " << size;
    }
    Put(name, good);
  }
  EXPECT_EQ(Error(), "OK");
}

TEST_F(DamageTest, RefusesEveryCutOfAPlainFoldersWeightsAndConfig) {
  TinyModelOptions options = Smallest();
  options.heads.clear();
  Write(options);
  for (const std::string& name : Names()) {
    const std::string good = *ReadFile(File(name));
    for (const size_t size : Places(good.size())) {
      Put(name, good.substr(0, size));
      const absl::Status status = Load().status();
      // A shorter vocabulary is one too, where no special piece is lost.
      if (name == "vocab.txt") continue;
      const bool harmless = name == "config.json" && size + 1 == good.size();
      EXPECT_TRUE(harmless || !status.ok()) << name << " cut to " << size;
    }
    Put(name, good);
  }
}

TEST_F(DamageTest, SurvivesFlippedBitsThatNoDigestGuards) {
  Write(Smallest());
  int refused = 0;
  for (const std::string& name : Names()) {
    const std::string good = *ReadFile(File(name));
    for (const size_t place : Places(good.size())) {
      std::string bad = good;
      bad[place] = static_cast<char>(bad[place] ^ (1 << place % 8));
      Put(name, bad);
      if (!Load(OnCpu(/*verify_digests=*/false)).ok()) ++refused;
    }
    Put(name, good);
  }
  EXPECT_GT(refused, 100);
  EXPECT_EQ(Error(), "OK");
}

TEST_F(DamageTest, SurvivesFilesThatAreFolders) {
  Write(Smallest());
  for (const std::string& name : Names()) {
    const std::string good = *ReadFile(File(name));
    std::filesystem::remove(File(name));
    std::filesystem::create_directory(File(name));
    EXPECT_NE(Error(), "OK") << name;
    std::filesystem::remove(File(name));
    Put(name, good);
  }
}

}  // namespace
}  // namespace vitrine
