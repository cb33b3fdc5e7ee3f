#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "model/batch.h"
#include "nlohmann/json.hpp"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

using testing::AllHeads;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TinyConfig;
using testing::TinyModelOptions;
using testing::TinyTensors;
using testing::WriteTinyModel;

// Options of a small model of one layer, quick to write many times.
TinyModelOptions Small(const std::string& type = "bert", int labels = 1) {
  TinyModelOptions options;
  options.model_type = type;
  options.hidden_size = 8;
  options.num_heads = 2;
  options.num_layers = 1;
  options.intermediate_size = 16;
  options.max_positions = 16;
  options.labels = labels;
  return options;
}

class CheckpointTest : public ::testing::Test {
 protected:
  // Writes the model with its tensors passed through `change`.
  void Write(const TinyModelOptions& options,
             const std::function<void(std::vector<NamedTensor>*)>& change) {
    ASSERT_TRUE(WriteTinyModel(folder_.path(), options).ok());
    std::vector<NamedTensor> tensors = TinyTensors(options);
    change(&tensors);
    ASSERT_TRUE(
        WriteSafetensors(folder_.File("model.safetensors"), tensors).ok());
  }
  std::string Error() {
    return LoadCheckpoint(folder_.path(), {}).status().ToString();
  }
  void ChangeConfig(const std::string& field, const nlohmann::json& value) {
    const std::string path = folder_.File("config.json");
    nlohmann::json config = nlohmann::json::parse(*ReadFile(path));
    config[field] = value;
    ASSERT_TRUE(WriteFile(path, config.dump()).ok());
  }

  TempFolder folder_;
};

void Rename(std::vector<NamedTensor>* tensors, const std::string& from,
            const std::string& to) {
  for (NamedTensor& tensor : *tensors) {
    absl::StrReplaceAll({{from, to}}, &tensor.name);
  }
}

void Remove(std::vector<NamedTensor>* tensors, const std::string& part) {
  tensors->erase(std::remove_if(tensors->begin(), tensors->end(),
                                [&part](const NamedTensor& tensor) {
                                  return absl::StrContains(tensor.name, part);
                                }),
                 tensors->end());
}

TEST_F(CheckpointTest, TakesThePrefixesOff) {
  for (const TinyModelOptions& options :
       {Small("bert", 1), Small("bert", 0), Small("roberta", 3),
        Small("xlm-roberta", 0)}) {
    ASSERT_TRUE(WriteTinyModel(folder_.path(), options).ok());
    absl::StatusOr<Checkpoint> checkpoint = LoadCheckpoint(folder_.path(), {});
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_TRUE(
        checkpoint->encoder.contains("embeddings.word_embeddings.weight"));
    EXPECT_TRUE(checkpoint->encoder.contains(
        "encoder.layer.0.attention.self.query.weight"));
    for (const auto& [name, tensor] : checkpoint->encoder) {
      EXPECT_TRUE(absl::StartsWith(name, "embeddings.") ||
                  absl::StartsWith(name, "encoder.layer.0.") ||
                  absl::StartsWith(name, "pooler."))
          << name;
    }
  }
}

TEST_F(CheckpointTest, KnowsGammaAndBeta) {
  Write(Small(), [](std::vector<NamedTensor>* tensors) {
    Rename(tensors, "LayerNorm.weight", "LayerNorm.gamma");
    Rename(tensors, "LayerNorm.bias", "LayerNorm.beta");
  });
  absl::StatusOr<Checkpoint> checkpoint = LoadCheckpoint(folder_.path(), {});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE(checkpoint->encoder.contains("embeddings.LayerNorm.weight"));
}

TEST_F(CheckpointTest, PassesOverPreTrainingAndBuffers) {
  Write(Small("bert", 0), [](std::vector<NamedTensor>* tensors) {
    Rename(tensors, "embeddings.word", "bert.embeddings.word");
    const auto add = [tensors](const std::string& name) {
      tensors->push_back({name, TensorType::kF32, {3}, {1, 2, 3}});
    };
    add("bert.embeddings.position_ids");
    add("embeddings.token_type_ids");
    add("cls.predictions.bias");
    add("cls.predictions.decoder.weight");
    add("cls.predictions.transform.LayerNorm.gamma");
    add("cls.seq_relationship.weight");
    add("lm_head.dense.weight");
    add("lm_head.decoder.bias");
  });
  EXPECT_EQ(Error(), "OK");
  absl::StatusOr<std::vector<ImportedHead>> heads =
      HeadsOfHuggingFaceFolder(folder_.path());
  ASSERT_TRUE(heads.ok()) << heads.status();
  EXPECT_THAT(*heads, IsEmpty());
}

TEST_F(CheckpointTest, NeedsNoPooler) {
  Write(Small("bert", 0),
        [](std::vector<NamedTensor>* tensors) { Remove(tensors, "pooler"); });
  EXPECT_EQ(Error(), "OK");
  Write(Small("bert", 0), [](std::vector<NamedTensor>* tensors) {
    Remove(tensors, "pooler.dense.bias");
  });
  EXPECT_THAT(Error(), HasSubstr("pooler.dense.bias"));
}

TEST_F(CheckpointTest, NamesEveryMissingTensor) {
  const std::vector<NamedTensor> all = TinyTensors(Small("bert", 0));
  for (const NamedTensor& missing : all) {
    if (absl::StartsWith(missing.name, "pooler.")) continue;
    Write(Small("bert", 0), [&](std::vector<NamedTensor>* tensors) {
      Remove(tensors, missing.name);
    });
    EXPECT_THAT(Error(), HasSubstr(absl::StrCat("no tensor ", missing.name)));
  }
}

TEST_F(CheckpointTest, NamesEveryMisshapenTensor) {
  const std::vector<NamedTensor> all = TinyTensors(Small("bert", 0));
  for (size_t i = 0; i < all.size(); ++i) {
    Write(Small("bert", 0), [&](std::vector<NamedTensor>* tensors) {
      NamedTensor& tensor = (*tensors)[i];
      tensor.shape.push_back(1);  // as many values, another shape
    });
    EXPECT_THAT(Error(),
                HasSubstr(absl::StrCat(all[i].name, ": its shape is [")));
  }
}

TEST_F(CheckpointTest, RefusesTensorsOfNothingKnown) {
  Write(Small(), [](std::vector<NamedTensor>* tensors) {
    tensors->push_back(
        {"bert.encoder.layer.0.adapter.weight", TensorType::kF32, {1}, {1}});
  });
  EXPECT_THAT(Error(), HasSubstr("encoder.layer.0.adapter.weight"));
}

TEST_F(CheckpointTest, RefusesTwoTensorsOfOneMeaning) {
  Write(Small(), [](std::vector<NamedTensor>* tensors) {
    NamedTensor copy = (*tensors)[0];
    copy.name = "embeddings.word_embeddings.weight";
    tensors->push_back(copy);
  });
  EXPECT_THAT(Error(), HasSubstr("embeddings.word_embeddings.weight"));
}

TEST_F(CheckpointTest, RefusesAConfigThatDisagrees) {
  ASSERT_TRUE(WriteTinyModel(folder_.path(), Small()).ok());
  const struct {
    const char* field;
    int value;
    const char* tensor;
  } cases[] = {
      {"num_hidden_layers", 2, "no tensor encoder.layer.1."},
      {"vocab_size", 31, "embeddings.word_embeddings.weight: its shape is ["},
      {"hidden_size", 10, "embeddings.word_embeddings.weight"},
      {"intermediate_size", 17, "encoder.layer.0.intermediate.dense.weight"},
      {"max_position_embeddings", 17, "embeddings.position_embeddings.weight"},
      {"type_vocab_size", 1, "embeddings.token_type_embeddings.weight"}};
  const std::string config = *ReadFile(folder_.File("config.json"));
  for (const auto& c : cases) {
    ChangeConfig(c.field, c.value);
    EXPECT_THAT(Error(), HasSubstr(c.tensor)) << c.field;
    ASSERT_TRUE(WriteFile(folder_.File("config.json"), config).ok());
  }
  TinyModelOptions deeper = Small();
  deeper.num_layers = 2;
  ASSERT_TRUE(WriteTinyModel(folder_.path(), deeper).ok());
  ChangeConfig("num_hidden_layers", 1);
  EXPECT_THAT(Error(), HasSubstr("the tensor encoder.layer.1."));
}

TEST_F(CheckpointTest, RefusesTypesThatAreNoWeights) {
  ASSERT_TRUE(WriteTinyModel(folder_.path(), Small()).ok());
  const std::string path = folder_.File("model.safetensors");
  std::string bytes = *ReadFile(path);
  bytes.replace(bytes.find("F32"), 3, "I32");
  ASSERT_TRUE(WriteFile(path, bytes).ok());
  EXPECT_THAT(Error(), HasSubstr("its dtype is none of F32, F16, BF16"));
}

TEST_F(CheckpointTest, ReadsShards) {
  const TinyModelOptions options = Small();
  ASSERT_TRUE(WriteTinyModel(folder_.path(), options).ok());
  const std::vector<NamedTensor> tensors = TinyTensors(options);
  ASSERT_EQ(remove(folder_.File("model.safetensors").c_str()), 0);
  nlohmann::json index;
  std::vector<NamedTensor> shards[2];
  for (size_t i = 0; i < tensors.size(); ++i) {
    shards[i % 2].push_back(tensors[i]);
    index["weight_map"][tensors[i].name] = absl::StrCat(i % 2, ".safetensors");
  }
  for (int i : {0, 1}) {
    ASSERT_TRUE(WriteSafetensors(folder_.File(absl::StrCat(i, ".safetensors")),
                                 shards[i])
                    .ok());
  }
  ASSERT_TRUE(
      WriteFile(folder_.File("model.safetensors.index.json"), index.dump())
          .ok());
  EXPECT_EQ(Error(), "OK");
  absl::StatusOr<std::vector<ImportedHead>> heads =
      HeadsOfHuggingFaceFolder(folder_.path());
  ASSERT_TRUE(heads.ok()) << heads.status();
  EXPECT_EQ(heads->size(), 1);
}

TEST_F(CheckpointTest, MakesARelevanceHeadOfOneOutput) {
  ASSERT_TRUE(WriteTinyModel(folder_.path(), Small("bert", 1)).ok());
  absl::StatusOr<std::vector<ImportedHead>> heads =
      HeadsOfHuggingFaceFolder(folder_.path());
  ASSERT_TRUE(heads.ok()) << heads.status();
  ASSERT_EQ(heads->size(), 1);
  const ImportedHead& head = (*heads)[0];
  EXPECT_EQ(head.head.name(), "relevance");
  EXPECT_EQ(head.head.kind(), internal::HEAD_KIND_RELEVANCE);
  EXPECT_EQ(head.head.pooling(), internal::POOLING_CLS);
  ASSERT_EQ(head.tensors.size(), 4);
  const std::vector<NamedTensor> source = TinyTensors(Small("bert", 1));
  for (const auto& [part, name] :
       {std::pair("relevance.dense.weight", "bert.pooler.dense.weight"),
        std::pair("relevance.dense.bias", "bert.pooler.dense.bias"),
        std::pair("relevance.out_proj.weight", "classifier.weight"),
        std::pair("relevance.out_proj.bias", "classifier.bias")}) {
    const auto by_name = [](const char* wanted) {
      return [wanted](const NamedTensor& t) { return t.name == wanted; };
    };
    const auto made =
        std::find_if(head.tensors.begin(), head.tensors.end(), by_name(part));
    ASSERT_NE(made, head.tensors.end()) << part;
    const auto from = std::find_if(source.begin(), source.end(), by_name(name));
    EXPECT_EQ(made->shape, from->shape);
    EXPECT_EQ(made->values, from->values);
  }
}

TEST_F(CheckpointTest, MakesAClassifierOfSeveral) {
  ASSERT_TRUE(WriteTinyModel(folder_.path(), Small("roberta", 3)).ok());
  ChangeConfig("id2label", {{"0", "bad"}, {"1", "fair"}, {"2", "good"}});
  absl::StatusOr<std::vector<ImportedHead>> heads =
      HeadsOfHuggingFaceFolder(folder_.path());
  ASSERT_TRUE(heads.ok()) << heads.status();
  ASSERT_EQ(heads->size(), 1);
  const internal::Head& head = (*heads)[0].head;
  EXPECT_EQ(head.name(), "classifier");
  EXPECT_EQ(head.kind(), internal::HEAD_KIND_CLASSIFICATION);
  EXPECT_THAT(
      std::vector<std::string>(head.labels().begin(), head.labels().end()),
      ::testing::ElementsAre("bad", "fair", "good"));
  ChangeConfig("id2label", {{"0", "bad"}});
  EXPECT_THAT(HeadsOfHuggingFaceFolder(folder_.path()).status().ToString(),
              HasSubstr("3 outputs, id2label has 1"));
  ChangeConfig("id2label", nullptr);
  heads = HeadsOfHuggingFaceFolder(folder_.path());
  ASSERT_TRUE(heads.ok()) << heads.status();
  EXPECT_EQ((*heads)[0].head.labels(2), "LABEL_2");
}

TEST_F(CheckpointTest, RefusesHalfAClassifier) {
  const auto error = [this](const std::string& type, const std::string& part) {
    Write(Small(type), [&part](std::vector<NamedTensor>* tensors) {
      Remove(tensors, part);
    });
    return HeadsOfHuggingFaceFolder(folder_.path()).status().ToString();
  };
  EXPECT_THAT(error("bert", "pooler"), HasSubstr("pooler.dense.weight"));
  EXPECT_THAT(error("bert", "classifier.bias"), HasSubstr("out_proj.bias"));
  EXPECT_THAT(error("bert", "classifier.weight"),
              HasSubstr("classifier.weight"));
  EXPECT_THAT(error("roberta", "classifier.out_proj.weight"),
              HasSubstr("classifier.out_proj.weight"));
  EXPECT_THAT(error("roberta", "classifier.dense.bias"),
              HasSubstr("dense.bias"));
}

class ManifestHeadsTest : public CheckpointTest {
 protected:
  void SetUp() override {
    options_ = Small();
    options_.heads = AllHeads();
    ASSERT_TRUE(WriteTinyModel(folder_.path(), options_).ok());
    absl::StatusOr<std::unique_ptr<Safetensors>> file =
        OpenSafetensors(folder_.File("heads.safetensors"));
    ASSERT_TRUE(file.ok());
    for (const auto& [name, view] : (*file)->tensors()) {
      tensors_.push_back({name, view.type, view.shape, *ToFloats(view)});
    }
  }
  std::string ErrorWith(const std::vector<NamedTensor>& tensors) {
    EXPECT_TRUE(
        WriteSafetensors(folder_.File("heads.safetensors"), tensors).ok());
    return LoadCheckpoint(folder_.path(), options_.heads).status().ToString();
  }

  TinyModelOptions options_;
  std::vector<NamedTensor> tensors_;
};

TEST_F(ManifestHeadsTest, LoadsTheHeadsOfTheManifest) {
  absl::StatusOr<Checkpoint> checkpoint =
      LoadCheckpoint(folder_.path(), options_.heads);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->heads.size(), tensors_.size());
  EXPECT_TRUE(checkpoint->heads.contains("recommendation.projection.weight"));
}

TEST_F(ManifestHeadsTest, NamesEveryTensorThatIsWrong) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    std::vector<NamedTensor> changed = tensors_;
    changed[i].shape.push_back(1);
    EXPECT_THAT(ErrorWith(changed),
                HasSubstr(absl::StrCat(tensors_[i].name, ": its shape")));
    changed.erase(changed.begin() + static_cast<int64_t>(i));
    EXPECT_THAT(ErrorWith(changed),
                HasSubstr(absl::StrCat("no tensor ", tensors_[i].name)));
  }
  std::vector<NamedTensor> more = tensors_;
  more.push_back({"other.out_proj.bias", TensorType::kF32, {1}, {1}});
  EXPECT_THAT(ErrorWith(more), HasSubstr("the tensor other.out_proj.bias"));
}

TEST_F(ManifestHeadsTest, NeedsNoFileForHeadsWithoutWeights) {
  ASSERT_EQ(remove(folder_.File("heads.safetensors").c_str()), 0);
  EXPECT_TRUE(LoadCheckpoint(folder_.path(), {options_.heads[1]}).ok());
  EXPECT_THAT(
      LoadCheckpoint(folder_.path(), {options_.heads[0]}).status().ToString(),
      HasSubstr("no tensor relevance.out_proj"));
}

TEST_F(ManifestHeadsTest, ChecksTheHeadsThemselves) {
  const auto error = [](const std::function<void(internal::Head*)>& change) {
    std::vector<internal::Head> heads = AllHeads();
    change(&heads[3]);
    return CheckHeads(heads).ToString();
  };
  EXPECT_EQ(error([](internal::Head*) {}), "OK");
  EXPECT_THAT(error([](internal::Head* h) { h->set_name("A b"); }),
              HasSubstr("head \"A b\""));
  EXPECT_THAT(error([](internal::Head* h) { h->set_name(""); }),
              HasSubstr("head \"\""));
  EXPECT_THAT(error([](internal::Head* h) { h->set_name("relevance"); }),
              HasSubstr("head relevance is there twice"));
  EXPECT_THAT(error([](internal::Head* h) { h->clear_kind(); }),
              HasSubstr("head sentiment: no kind"));
  EXPECT_THAT(error([](internal::Head* h) { h->clear_labels(); }),
              HasSubstr("head sentiment: no labels"));
  EXPECT_THAT(error([](internal::Head* h) { h->add_labels(h->labels(0)); }),
              HasSubstr("is there twice"));
  EXPECT_THAT(error([](internal::Head* h) {
                h->set_pooling(static_cast<internal::Pooling>(9));
              }),
              HasSubstr("head sentiment: pooling 9"));
  std::vector<internal::Head> many(kMaxHeads + 1, AllHeads()[0]);
  for (size_t i = 0; i < many.size(); ++i) {
    many[i].set_name(absl::StrCat("h", i));
  }
  EXPECT_THAT(CheckHeads(many).ToString(), HasSubstr("33 heads, at most 32"));
}

}  // namespace
}  // namespace vitrine
