#include "trainer/pretrain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "model/checkpoint.h"
#include "model/load_tokenizer.h"
#include "model/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/testing/other_device.h"
#include "tests/trainer/small_shop.h"
#include "trainer/training_state.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// Cuts a run off: by the flag, which leaves a last checkpoint, or by throwing,
// which ends it as a kill does.
class Cutter : public PretrainListener {
 public:
  void OnStart(const PretrainReport& report) override {
    resumed_step = report.resumed_step;
    warnings = report.warnings;
  }
  void OnStep(const PretrainProgress& progress) override {
    if (progress.step == 1) first_loss = progress.loss;
    if (progress.step == stop_at) stop = true;
    if (progress.step == crash_at) throw std::runtime_error("cut off");
  }
  std::atomic<bool> stop{false};
  int64_t stop_at = -1, crash_at = -1, resumed_step = -1;
  double first_loss = 0;
  std::vector<std::string> warnings;
};

class PretrainTest : public ::testing::Test {
 protected:
  PretrainOptions Options() const {
    PretrainOptions options;
    options.texts = {{shop_.texts(), {{"text"}}}};
    options.tokenizer = shop_.encoder();
    options.out = shop_.File("pretrained");
    options.layers = 1;
    options.hidden = 32;
    options.heads = 2;
    options.max_positions = 64;
    options.max_tokens = 32;
    options.batch_tokens = 256;
    options.share_tokens = 64;
    options.epochs = 3;
    options.learning_rate = 5e-3;
    options.held_out_share = 0.3;
    options.dropout = 0.1;
    options.bf16 = false;
    options.threads = 2;
    return options;
  }
  PretrainOptions WithCheckpoints(PretrainOptions options) const {
    options.checkpoint_folder = shop_.File("checkpoints");
    options.checkpoint_steps = 3;
    options.out = shop_.File("resumed");
    return options;
  }
  static std::string Weights(const std::string& folder) {
    return *ReadFile(folder + "/model.safetensors");
  }
  // Cuts the run off by `cutter`, begins it again, and compares with the
  // unbroken run's folder. Returns the step that it went on from.
  int64_t CutAndResume(const PretrainOptions& options, Cutter* cutter) {
    EXPECT_FALSE(Pretrain(options, cutter, cutter->stop).ok());
    EXPECT_FALSE(PathExists(options.out));
    Cutter again;
    const auto report = Pretrain(options, &again, again.stop);
    EXPECT_TRUE(report.ok()) << report.status();
    if (!report.ok()) return -1;
    EXPECT_THAT(again.warnings, IsEmpty());
    EXPECT_TRUE(Weights(options.out) == Weights(Options().out)) << "other bits";
    EXPECT_EQ(report->tokens, unbroken_.tokens);
    EXPECT_EQ(report->loss, unbroken_.loss);
    EXPECT_EQ(report->perplexity, unbroken_.perplexity);
    std::filesystem::remove_all(options.out);
    EXPECT_TRUE(RemoveTrainingStates(options.checkpoint_folder).ok());
    return report->resumed_step;
  }
  void Unbroken(const PretrainOptions& options) {
    Cutter listener;
    const auto report = Pretrain(options, &listener, listener.stop);
    ASSERT_TRUE(report.ok()) << report.status();
    unbroken_ = *report;
  }
  std::string Error(const PretrainOptions& options) {
    Cutter listener;
    const auto report = Pretrain(options, &listener, listener.stop);
    EXPECT_FALSE(report.ok());
    return std::string(report.status().message());
  }

  // That a run on another device comes to what one on the CPU does, and goes on
  // from a checkpoint.
  void ExpectSameOnAnotherDevice(PretrainOptions options) {
    options.dropout = 0;
    Unbroken(options);
    const double perplexity = unbroken_.perplexity;
    std::filesystem::remove_all(options.out);
    options.device = testing::OtherDevice();
    Unbroken(options);
    EXPECT_NEAR(unbroken_.perplexity, perplexity, 1e-3 * perplexity);
    Cutter cutter;
    cutter.stop_at = 4;
    EXPECT_EQ(CutAndResume(WithCheckpoints(options), &cutter), 4);
  }

  SmallShop shop_;
  PretrainReport unbroken_;
};

TEST_F(PretrainTest, LearnsAndWritesAFolderThatLoadsAndFits) {
  PretrainOptions options = Options();
  options.epochs = 20;
  options.save_f16 = true;
  options.out += "/";  // as shells complete it
  options.tensorboard_folder = shop_.File("plots");
  Cutter listener;
  const auto report = Pretrain(options, &listener, listener.stop);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->held_out_tokens, 100);
  EXPECT_LT(report->loss, 0.8 * listener.first_loss);
  EXPECT_LT(report->perplexity, 10);  // of 23 pieces
  EXPECT_GT(report->accuracy, 0.3);
  EXPECT_NEAR(report->epochs, 20, 1);
  EXPECT_EQ(ListFolder(options.tensorboard_folder)->size(), 1);

  EXPECT_THAT(*ListFolder(options.out),
              UnorderedElementsAre("config.json", "model.safetensors",
                                   "vocab.txt", "pretraining.json"));
  const auto checkpoint = LoadCheckpoint(options.out, {});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(checkpoint->config.architectures, ElementsAre("BertForMaskedLM"));
  EXPECT_EQ(checkpoint->config.type_vocab_size, 4);
  EXPECT_EQ(checkpoint->config.hidden_dropout, 0.1);
  const auto tokenizer = LoadTokenizer(options.out);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), checkpoint->config.vocab_size);
  const auto told =
      nlohmann::json::parse(*ReadFile(options.out + "/pretraining.json"));
  EXPECT_EQ(told["stage"], "mlm");
  EXPECT_EQ(told["tokens_seen"], report->tokens);
  EXPECT_EQ(told["texts"][0]["file"], "texts.jsonl");

  FineTuneOptions fit = shop_.Options();
  fit.from = options.out;
  fit.tasks = {shop_.Task(internal::HEAD_KIND_CLASSIFICATION)};
  fit.epochs = 1;
  FineTuneListener quiet;
  const auto version = FineTune(fit, &quiet, listener.stop);
  EXPECT_TRUE(version.ok()) << version.status();
}

TEST_F(PretrainTest, GoesOnFromAFolderWithItsOutputLayer) {
  PretrainOptions options = Options();
  options.epochs = 20;
  Unbroken(options);
  PretrainOptions more = options;
  more.from = options.out;
  more.tokenizer.clear();
  more.out = shop_.File("more");
  more.epochs = 1;
  more.learning_rate = 1e-4;
  Cutter listener;
  const auto report = Pretrain(more, &listener, listener.stop);
  ASSERT_TRUE(report.ok()) << report.status();
  // It starts from where the first run ended, not from random weights.
  EXPECT_LT(listener.first_loss, 1.3 * unbroken_.loss);
  EXPECT_LT(report->perplexity, 1.1 * unbroken_.perplexity);
}

TEST_F(PretrainTest, AStoppedRunGoesOnToTheSameBits) {
  Unbroken(Options());
  for (const int64_t step : {1, 5}) {
    Cutter cutter;
    cutter.stop_at = step;
    EXPECT_EQ(CutAndResume(WithCheckpoints(Options()), &cutter), step);
  }
}

TEST_F(PretrainTest, AKilledRunGoesOnFromItsLastCheckpoint) {
  Unbroken(Options());
  Cutter early, later, last;
  early.crash_at = 2;
  EXPECT_EQ(CutAndResume(WithCheckpoints(Options()), &early), 0);
  later.crash_at = 10;
  EXPECT_EQ(CutAndResume(WithCheckpoints(Options()), &later), 9);
  last.crash_at = unbroken_.steps;
  EXPECT_EQ(CutAndResume(WithCheckpoints(Options()), &last),
            (unbroken_.steps - 1) / 3 * 3);
}

TEST_F(PretrainTest, ResumesInBf16) {
  PretrainOptions options = Options();
  options.bf16 = true;
  Unbroken(options);
  Cutter cutter;
  cutter.stop_at = 7;
  EXPECT_EQ(CutAndResume(WithCheckpoints(options), &cutter), 7);
}

TEST_F(PretrainTest, OnAnotherDevice) { ExpectSameOnAnotherDevice(Options()); }

TEST_F(PretrainTest, OtherOptionsBeginAgain) {
  PretrainOptions options = WithCheckpoints(Options());
  Cutter cutter;
  cutter.stop_at = 5;
  ASSERT_FALSE(Pretrain(options, &cutter, cutter.stop).ok());
  options.masking.share = 0.2;
  Cutter other;
  other.stop_at = 1;
  ASSERT_FALSE(Pretrain(options, &other, other.stop).ok());
  EXPECT_EQ(other.resumed_step, 0);
  EXPECT_THAT(other.warnings, ElementsAre(HasSubstr("of another run")));
}

TEST_F(PretrainTest, NamesWhatIsWrongBeforeItTrains) {
  PretrainOptions options = Options();
  options.texts = {{shop_.texts(), {{"body"}}}};
  EXPECT_THAT(Error(options), HasSubstr("texts.jsonl:1: \"body\": missing"));
  options.texts = {{shop_.texts(), {}}};
  EXPECT_THAT(Error(options), HasSubstr("JSON lines need --fields"));
  options = Options();
  options.max_tokens = 128;
  options.share_tokens = 128;
  EXPECT_THAT(Error(options),
              HasSubstr("--max-tokens 128: the encoder has 64 positions"));
  options = Options();
  options.warmup = 1.5;
  options.batch_tokens = 16;
  EXPECT_THAT(Error(options), HasSubstr("--warmup 1.5: outside [0, 1)"));
  EXPECT_THAT(Error(options), HasSubstr("--batch-tokens 16: below"));
  options = Options();
  ASSERT_TRUE(MakeFolders(options.out).ok());
  ASSERT_TRUE(WriteFile(options.out + "/mine", "x").ok());
  EXPECT_THAT(Error(options), HasSubstr("the folder is not empty"));
  EXPECT_THAT(*ListFolder(options.out), ElementsAre("mine"));
}

// Titles, and texts that say the same in more words.
class ContrastivePretrainTest : public PretrainTest {
 protected:
  ContrastivePretrainTest() {
    std::string rows;
    int row = 0;
    for (const char* const start : {"", "a ", "buy ", "fine "}) {
      for (const char* const kind :
           {"sofa", "lamp", "rug", "chair", "desk", "vase", "clock"}) {
        for (const char* const color : {"red", "blue", "green", "white"}) {
          absl::StrAppend(&rows, "{\"title\":\"", start, color, " ", kind,
                          "\",\"text\":\"buy a fine ", kind, " home ", color,
                          row++ % 3 == 0 ? " fine\"}\n" : "\"}\n");
        }
      }
    }
    EXPECT_TRUE(WriteFile(shop_.File("pairs.jsonl"), rows).ok());
  }
  PretrainOptions Contrastive() const {
    PretrainOptions options = Options();
    options.stage = Stage::kContrastive;
    options.texts = {{shop_.File("pairs.jsonl"), {{"title"}, {"text"}}}};
    options.from = shop_.encoder();
    options.tokenizer.clear();
    options.batch_tokens = 512;
    options.dropout = 0;
    options.learning_rate = 2e-3;
    return options;
  }
};

TEST_F(ContrastivePretrainTest, TextsThatBelongTogetherFindEachOther) {
  PretrainOptions options = Contrastive();
  options.epochs = 40;
  Cutter listener;
  const auto report = Pretrain(options, &listener, listener.stop);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LT(report->loss, 0.6 * listener.first_loss);
  EXPECT_GT(report->accuracy, 0.5);  // of some thirty
  EXPECT_GT(report->held_out_tokens, 0);
  // A bare encoder stays one.
  const auto checkpoint = LoadCheckpoint(options.out, {});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(checkpoint->config.architectures, ElementsAre("BertModel"));
  const auto told =
      nlohmann::json::parse(*ReadFile(options.out + "/pretraining.json"));
  EXPECT_EQ(told["stage"], "contrastive");
  EXPECT_EQ(told["from"], "encoder");
}

TEST_F(ContrastivePretrainTest, KeepsTheOutputLayerOfMaskedWords) {
  PretrainOptions mlm = Options();
  mlm.epochs = 1;
  Unbroken(mlm);
  PretrainOptions options = Contrastive();
  options.from = mlm.out;
  options.out = shop_.File("contrastive");
  Cutter listener;
  const auto report = Pretrain(options, &listener, listener.stop);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto checkpoint = LoadCheckpoint(options.out, {});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(checkpoint->config.architectures, ElementsAre("BertForMaskedLM"));
  const auto before = OpenSharded(mlm.out), after = OpenSharded(options.out);
  ASSERT_EQ((*before)->tensors().size(), (*after)->tensors().size());
  for (const auto& [name, tensor] : (*before)->tensors()) {
    const bool trained = name.rfind("bert.encoder.", 0) == 0 &&
                         name.find("weight") != std::string::npos;
    const bool kept = name.rfind("cls.", 0) == 0;
    const TensorView* const now = (*after)->Find(name);
    ASSERT_NE(now, nullptr) << name;
    if (trained) {
      EXPECT_NE(now->bytes, tensor.bytes) << name;
    }
    if (kept) {
      EXPECT_EQ(now->bytes, tensor.bytes) << name;
    }
  }
}

TEST_F(ContrastivePretrainTest, GoesOnToTheSameBits) {
  Unbroken(Contrastive());
  Cutter cutter;
  cutter.stop_at = 4;
  EXPECT_EQ(CutAndResume(WithCheckpoints(Contrastive()), &cutter), 4);
}

TEST_F(ContrastivePretrainTest, OnAnotherDevice) {
  ExpectSameOnAnotherDevice(Contrastive());
}

TEST_F(ContrastivePretrainTest, NeedsAnEncoderAndPairs) {
  PretrainOptions options = Contrastive();
  options.from.clear();
  EXPECT_THAT(Error(options), HasSubstr("--stage contrastive: needs --from"));
  options = Contrastive();
  options.texts = {{shop_.File("pairs.jsonl"), {{"title"}}}};
  EXPECT_THAT(Error(options), HasSubstr("112 documents, none of them with two "
                                        "fields or enough words"));
}

class MatchingPretrainTest : public ContrastivePretrainTest {
 protected:
  PretrainOptions Matching() const {
    PretrainOptions options = Contrastive();
    options.stage = Stage::kMatching;
    options.negatives = 3;
    options.hard_negatives = 1;
    return options;
  }
};

TEST_F(MatchingPretrainTest, QueriesFindTheirItemsAndFitGoesOnFromTheHead) {
  PretrainOptions mlm = Options();
  mlm.epochs = 1;
  mlm.segments = 2;
  Unbroken(mlm);
  PretrainOptions options = Matching();
  options.from = mlm.out;
  options.out = shop_.File("matching");
  options.epochs = 40;
  options.held_out_share = 0.2;
  Cutter listener;
  const auto report = Pretrain(options, &listener, listener.stop);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->warnings, IsEmpty());
  EXPECT_EQ(report->candidates, 4);
  EXPECT_NEAR(listener.first_loss, std::log(4), 0.1);
  EXPECT_LT(report->loss, 0.6 * listener.first_loss);
  EXPECT_LT(report->perplexity, 3);
  EXPECT_GT(report->accuracy, 0.45);

  // What transformers would make of it, and the layer of masked words.
  const auto checkpoint = LoadCheckpoint(options.out, {});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(checkpoint->config.architectures,
              ElementsAre("BertForSequenceClassification"));
  EXPECT_THAT(checkpoint->config.labels, ElementsAre("relevance"));
  EXPECT_EQ(checkpoint->config.type_vocab_size, 4);
  const auto file = OpenSharded(options.out);
  for (const char* const name :
       {"bert.pooler.dense.weight", "classifier.weight", "classifier.bias",
        "cls.predictions.transform.dense.weight"}) {
    EXPECT_NE((*file)->Find(name), nullptr) << name;
  }

  FineTuneOptions fit = shop_.Options();
  fit.from = options.out;
  fit.tasks = {shop_.Task(internal::HEAD_KIND_RELEVANCE)};
  fit.epochs = 1;
  FineTuneListener quiet;
  const auto version = FineTune(fit, &quiet, listener.stop);
  ASSERT_TRUE(version.ok()) << version.status();
  // It ranks before it has seen a label.
  const auto of = [&](const auto& values) {
    for (const auto& value : values) {
      if (value.name == "ndcg@10") return value.value;
    }
    return -1.0;
  };
  EXPECT_GT(of(version->heads[0].before),
            of(version->heads[0].baselines[1].metrics) + 0.05);

  // Other stages say that they have no use for it.
  PretrainOptions after = Contrastive();
  after.from = options.out;
  after.out = shop_.File("after");
  after.epochs = 1;
  const auto contrastive = Pretrain(after, &listener, listener.stop);
  ASSERT_TRUE(contrastive.ok()) << contrastive.status();
  EXPECT_THAT(contrastive->warnings,
              ElementsAre(HasSubstr("the head relevance of --from")));
}

TEST_F(MatchingPretrainTest, GoesOnFromItsOwnHeadOfTheMean) {
  PretrainOptions options = Matching();
  options.pooling = internal::POOLING_MEAN;
  options.epochs = 30;
  Unbroken(options);
  PretrainOptions more = options;
  more.from = options.out;
  more.out = shop_.File("more");
  more.epochs = 1;
  more.learning_rate = 1e-5;
  Cutter listener;
  const auto report = Pretrain(more, &listener, listener.stop);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LT(listener.first_loss, 1.3 * unbroken_.loss);
  more.pooling = internal::POOLING_CLS;
  more.out = shop_.File("cls");
  EXPECT_THAT(Error(more), HasSubstr("--pooling cls: the head relevance of"));
}

TEST_F(MatchingPretrainTest, GoesOnToTheSameBits) {
  Unbroken(Matching());
  Cutter cutter;
  cutter.stop_at = 4;
  EXPECT_EQ(CutAndResume(WithCheckpoints(Matching()), &cutter), 4);
}

TEST_F(MatchingPretrainTest, OnAnotherDevice) {
  ExpectSameOnAnotherDevice(Matching());
}

TEST_F(MatchingPretrainTest, NamesWhatItCannotWorkWith) {
  PretrainOptions options = Matching();
  options.from.clear();
  EXPECT_THAT(Error(options), HasSubstr("--stage matching: needs --from"));
  options = Matching();
  options.negatives = 2;
  options.hard_negatives = 3;
  EXPECT_THAT(Error(options), HasSubstr("--hard-negatives 3: outside 0..2"));
  options = Matching();
  ASSERT_TRUE(WriteFile(shop_.File("few.txt"),
                        "a red sofa\na blue sofa\nlamp\na green rug\n")
                  .ok());
  options.texts = {{shop_.File("few.txt"), {}}};
  options.held_out_share = 0;
  EXPECT_THAT(Error(options),
              HasSubstr("3 documents of three words or more; 4 are needed for "
                        "--negatives 3"));
}

}  // namespace
}  // namespace vitrine
