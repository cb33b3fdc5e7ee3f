#include "trainer/fine_tune.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/textproto.h"
#include "model/checkpoint.h"
#include "model/servable_model.h"
#include "store/model_registry.h"
#include "tests/testing/other_device.h"
#include "tests/testing/tiny_model.h"
#include "tests/trainer/small_shop.h"

namespace vitrine {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr auto kRelevance = internal::HEAD_KIND_RELEVANCE;
constexpr auto kRecommendation = internal::HEAD_KIND_RECOMMENDATION;
constexpr auto kClassification = internal::HEAD_KIND_CLASSIFICATION;

std::map<std::string, std::vector<float>> Weights(
    const std::string& folder, const std::vector<internal::Head>& heads) {
  std::map<std::string, std::vector<float>> out;
  const auto checkpoint = LoadCheckpoint(folder, heads);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const auto* part : {&checkpoint->encoder, &checkpoint->heads}) {
    for (const auto& [name, view] : *part) out[name] = *ToFloats(view);
  }
  return out;
}

class FineTuneTest : public ::testing::Test {
 protected:
  ModelRegistry registry() const { return ModelRegistry(shop_.registry()); }

  internal::Manifest Manifest(int64_t version) const {
    return *registry().ReadManifest("shop", version);
  }

  std::vector<internal::Head> Heads(int64_t version) const {
    const internal::Manifest manifest = Manifest(version);
    return {manifest.heads().begin(), manifest.heads().end()};
  }

  std::map<std::string, std::vector<float>> VersionWeights(
      int64_t version) const {
    return Weights(registry().VersionFolder("shop", version), Heads(version));
  }

  // Nothing is published, nothing is left behind.
  void ExpectNoVersion() const {
    const auto versions = registry().ListVersions("shop");
    if (versions.ok()) {
      EXPECT_THAT(*versions, IsEmpty());
      EXPECT_THAT(*ListFolder(shop_.registry() + "/shop"), IsEmpty());
    }
  }

  SmallShop shop_;
};

TEST_F(FineTuneTest, RelevanceLearnsMoreThanChanceAndServes) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  options.epochs = 6;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const HeadReport& head = report->heads[0];
  EXPECT_EQ(head.name, "relevance");
  EXPECT_GT(head.validation_rows, 50);
  EXPECT_EQ(head.baselines[0].name, "bm25");
  EXPECT_EQ(head.baselines[1].name, "random");
  const double after = Value(head.after, "ndcg@10");
  EXPECT_GT(after, Value(head.baselines[1].metrics, "ndcg@10") + 0.2);
  EXPECT_GT(after, 0.9);
  EXPECT_THAT(head.before, IsEmpty());

  const auto model = ServableModel::Load(report->folder, {});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->relevance_head(), 0);
}

TEST_F(FineTuneTest, RelevanceLearnsByTheOrderToo) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  options.epochs = 6;
  options.relevance_loss = RelevanceLoss::kLambda;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const HeadReport& head = report->heads[0];
  EXPECT_GT(Value(head.after, "ndcg@10"), 0.9);
  // Scores stay probabilities.
  EXPECT_LT(Value(head.after, "ece"), 0.2);
}

TEST_F(FineTuneTest, AllFourKindsTrainOverOneEncoder) {
  FineTuneOptions options = shop_.Options();
  options.tasks = shop_.AllTasks();
  options.tasks[3].head = "kind";
  options.epochs = 8;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->heads.size(), 4);
  EXPECT_GT(Value(report->heads[0].after, "ndcg@10"), 0.8);
  const HeadReport& next = report->heads[1];
  EXPECT_EQ(next.baselines[0].name, "popularity");
  EXPECT_GT(Value(next.after, "hr@10"),
            Value(next.baselines[0].metrics, "hr@10") + 0.3);
  EXPECT_GT(Value(report->heads[2].after, "accuracy"), 0.8);
  EXPECT_GT(Value(report->heads[3].after, "macro_f1"), 0.8);

  const internal::Manifest manifest = Manifest(1);
  ASSERT_EQ(manifest.heads_size(), 4);
  EXPECT_EQ(manifest.heads(3).name(), "kind");
  EXPECT_THAT(manifest.heads(2).labels(), Contains("sofa"));
  // The fitted scale makes cosines probabilities: rising, and not 0.
  EXPECT_GT(manifest.heads(1).score_scale(), 0.1);
  EXPECT_TRUE(std::isfinite(manifest.heads(1).score_bias()));

  const auto model = ServableModel::Load(report->folder, {});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(*(*model)->classification_head("kind"), 3);
}

TEST_F(FineTuneTest, AnotherDeviceComesToTheSame) {
  FineTuneOptions options = shop_.Options();
  options.tasks = shop_.AllTasks();
  options.epochs = 2;
  options.dropout = 0;
  options.bf16 = false;
  const auto here = Fit(options);
  ASSERT_TRUE(here.ok()) << here.status();
  options.device = testing::OtherDevice();
  const auto there = Fit(options);
  ASSERT_TRUE(there.ok()) << there.status();
  for (size_t h = 0; h < here->heads.size(); ++h) {
    for (const MetricValue& metric : here->heads[h].after) {
      EXPECT_NEAR(Value(there->heads[h].after, metric.name), metric.value, 0.02)
          << here->heads[h].name << " " << metric.name;
    }
  }
}

TEST_F(FineTuneTest, OneSeedAndThreadCountGiveOneResult) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance), shop_.Task(kRecommendation)};
  options.epochs = 1;
  options.dropout = 0.1;
  options.threads = 3;
  const auto first = Fit(options);
  const auto second = Fit(options);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  for (int head = 0; head < 2; ++head) {
    for (size_t i = 0; i < first->heads[head].after.size(); ++i) {
      EXPECT_EQ(first->heads[head].after[i].value,
                second->heads[head].after[i].value)
          << first->heads[head].after[i].name;
    }
  }
  EXPECT_EQ(VersionWeights(1), VersionWeights(2));
  options.seed = 2;
  ASSERT_TRUE(Fit(options).ok());
  EXPECT_NE(VersionWeights(1), VersionWeights(3));
}

TEST_F(FineTuneTest, ManifestTellsWhereTheVersionComesFrom) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  options.epochs = 1;
  options.seed = 77;
  options.recipe = "--seed=77";
  options.encoding.set_max_query_tokens(9);
  ASSERT_TRUE(Fit(options).ok());
  options.from = "shop/1";
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const internal::Manifest first = Manifest(1), second = Manifest(2);
  EXPECT_EQ(first.parent(), 0);
  EXPECT_EQ(second.parent(), 1);
  EXPECT_EQ(second.seed(), 77);
  EXPECT_EQ(second.recipe(), "--seed=77");
  EXPECT_EQ(second.encoding().max_query_tokens(), 9);
  EXPECT_EQ(second.data_digest(), first.data_digest());
  EXPECT_EQ(second.data_digest().size(), 64);
  ASSERT_EQ(second.metrics_size(), 6);
  EXPECT_TRUE(std::isnan(first.metrics(0).before()));
  EXPECT_EQ(second.metrics(0).name(), "ndcg@10");
  EXPECT_EQ(second.metrics(0).split(), "validation");
  // Both are over the same held-out rows.
  EXPECT_NEAR(second.metrics(0).before(), first.metrics(0).value(), 1e-6);
}

TEST_F(FineTuneTest, GoldenHoldsWhatTheSavedFilesAnswer) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance), shop_.Task(kClassification)};
  options.epochs = 1;
  options.save_f16 = true;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  internal::Golden golden;
  ASSERT_TRUE(
      ReadTextProto(JoinPath(report->folder, "golden.textproto"), &golden)
          .ok());
  EXPECT_EQ(golden.sequences_size(), 8);
  const auto files =
      OpenSafetensors(JoinPath(report->folder, "model.safetensors"));
  ASSERT_TRUE(files.ok());
  for (const auto& [name, view] : (*files)->tensors()) {
    EXPECT_EQ(view.type, TensorType::kF16) << name;
  }
  // A load compares them, in fp32 to 1e-3.
  ServableOptions load;
  load.engine.dtype = internal::DTYPE_FP32;
  EXPECT_TRUE(ServableModel::Load(report->folder, load).ok());
}

TEST_F(FineTuneTest, FreezingTheEncoderTrainsTheHeadOnly) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kClassification)};
  options.epochs = 2;
  options.freeze = FineTuneOptions::kFreezeEncoder;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto before = Weights(shop_.encoder(), {});
  const auto after = VersionWeights(1);
  for (const auto& [name, values] : before) {
    EXPECT_EQ(after.at(name), values) << name;
  }
}

TEST_F(FineTuneTest, FreezingBottomLayersLeavesThemAndTheEmbeddings) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  options.epochs = 1;
  options.freeze = 1;
  ASSERT_TRUE(Fit(options).ok());
  const auto before = Weights(shop_.encoder(), {});
  const auto after = VersionWeights(1);
  for (const auto& [name, values] : before) {
    const bool frozen = name.find("layer.1.") == std::string::npos;
    EXPECT_EQ(after.at(name) == values, frozen) << name;
  }
  options.freeze = 3;
  const auto beyond = Fit(options);
  EXPECT_EQ(beyond.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(beyond.status().message()), HasSubstr("2 layers"));
}

TEST_F(FineTuneTest, OtherHeadsOfTheParentAreCarriedOver) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kClassification), shop_.Task(kRelevance)};
  options.epochs = 1;
  ASSERT_TRUE(Fit(options).ok());
  options.from = "shop";
  options.tasks = {shop_.Task(kRelevance)};
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->warnings,
              ElementsAre(HasSubstr("classifier is carried over")));
  EXPECT_FALSE(report->heads[0].before.empty());
  const auto before = VersionWeights(1), after = VersionWeights(2);
  EXPECT_EQ(after.at("classifier.out_proj.weight"),
            before.at("classifier.out_proj.weight"));
  EXPECT_NE(after.at("relevance.out_proj.weight"),
            before.at("relevance.out_proj.weight"));
  EXPECT_EQ(Manifest(2).heads_size(), 2);
  // Without a change of the encoder there is nothing to warn of.
  options.freeze = FineTuneOptions::kFreezeEncoder;
  EXPECT_THAT(Fit(options)->warnings, IsEmpty());
}

TEST_F(FineTuneTest, AHuggingFaceFoldersHeadGoesWhereItIsNotTrained) {
  const std::string folder = shop_.File("ranker");
  ASSERT_TRUE(testing::WriteTinyModel(folder).ok());
  FineTuneOptions options = shop_.Options();
  options.from = folder;
  options.epochs = 1;
  options.tasks = {shop_.Task(kClassification)};
  auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->warnings,
              ElementsAre(HasSubstr("head relevance of " + folder)));
  EXPECT_EQ(Manifest(1).heads_size(), 1);
  // Where the encoder stays, its head still says what it said.
  options.freeze = FineTuneOptions::kFreezeEncoder;
  report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->warnings, IsEmpty());
  EXPECT_EQ(Manifest(2).heads_size(), 2);
  options.freeze = -1;
  options.tasks = {shop_.Task(kRelevance)};
  report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->warnings, IsEmpty());
}

TEST_F(FineTuneTest, NewLabelsExtendAHeadAndKeepTheOldOnes) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kClassification)};
  options.validation_share = 0;
  options.learning_rate = 1e-9;  // so that what is kept is seen to be kept
  options.epochs = 1;
  const std::string rows = shop_.File("two.jsonl");
  ASSERT_TRUE(WriteFile(rows,
                        "{\"text\":\"red sofa\",\"label\":\"sofa\"}\n"
                        "{\"text\":\"blue lamp\",\"label\":\"lamp\"}\n")
                  .ok());
  options.tasks[0].data = rows;
  const auto first = Fit(options);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_THAT(first->warnings, ElementsAre(HasSubstr("no rows are held out")));
  ASSERT_TRUE(WriteFile(rows,
                        "{\"text\":\"red rug\",\"label\":\"a-rug\"}\n"
                        "{\"text\":\"red sofa\",\"label\":\"sofa\"}\n")
                  .ok());
  options.from = "shop/1";
  const auto second = Fit(options);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_THAT(Manifest(1).heads(0).labels(), ElementsAre("lamp", "sofa"));
  EXPECT_THAT(Manifest(2).heads(0).labels(),
              ElementsAre("lamp", "sofa", "a-rug"));
  const auto before = VersionWeights(1).at("classifier.out_proj.weight");
  const auto after = VersionWeights(2).at("classifier.out_proj.weight");
  ASSERT_EQ(after.size(), before.size() / 2 * 3);
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_NEAR(after[i], before[i], 1e-6);
  }
}

TEST_F(FineTuneTest, AHeadOfAnotherKindIsNotTakenOver) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kClassification)};
  options.tasks[0].head = "relevance";
  options.epochs = 1;
  ASSERT_TRUE(Fit(options).ok());
  options.from = "shop";
  options.tasks = {shop_.Task(kRelevance)};
  const auto report = Fit(options);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(report.status().message()), HasSubstr("--head"));
}

// Counts epochs, and stops after some steps where asked to.
class Recorder : public FineTuneListener {
 public:
  void OnStep(const StepProgress& progress) override {
    EXPECT_LE(progress.step, progress.steps);
    EXPECT_GE(progress.eta_seconds, 0);
    if (++steps == stop_after) stop = true;
  }
  void OnEpoch(int epoch, double loss, bool best,
               const std::vector<std::vector<MetricValue>>& metrics) override {
    EXPECT_TRUE(std::isfinite(loss));
    values.push_back(metrics[0].empty() ? 0 : metrics[0][0].value);
    if (best) best_epoch = epoch;
  }
  std::atomic<bool> stop{false};
  int steps = 0, stop_after = -1, best_epoch = 0;
  std::vector<double> values;
};

TEST_F(FineTuneTest, StopsEarlyAndKeepsTheBestEpoch) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  options.epochs = 40;
  options.patience = 2;
  Recorder recorder;
  const auto report = FineTune(options, &recorder, recorder.stop);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LT(report->epochs, 40);
  EXPECT_EQ(report->epochs, report->best_epoch + 2);
  EXPECT_EQ(report->best_epoch, recorder.best_epoch);
  const double best =
      *std::max_element(recorder.values.begin(), recorder.values.end());
  EXPECT_EQ(Value(report->heads[0].after, "ndcg@10"), best);
  // The weights are that epoch's too: what comes next starts from there.
  options.from = "shop/1";
  options.epochs = 1;
  EXPECT_NEAR(Value(Fit(options)->heads[0].before, "ndcg@10"), best, 1e-6);
}

TEST_F(FineTuneTest, StoppingPublishesNothing) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  Recorder recorder;
  recorder.stop_after = 3;
  const auto report = FineTune(options, &recorder, recorder.stop);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(recorder.steps, 3);
  ExpectNoVersion();
}

TEST_F(FineTuneTest, ALossThatExplodesIsAnErrorAndPublishesNothing) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kClassification)};
  options.sgd = true;
  options.clip = 0;
  options.learning_rate = 99;
  options.warmup = 0;
  options.weight_decay = 50;
  options.epochs = 40;
  const auto report = Fit(options);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(report.status().message()),
              HasSubstr("--learning-rate"));
  ExpectNoVersion();
}

TEST_F(FineTuneTest, SgdLearnsToo) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kClassification)};
  options.sgd = true;
  options.learning_rate = 0.1;
  options.schedule = Schedule::kConstant;
  options.epochs = 40;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(Value(report->heads[0].after, "accuracy"),
            Value(report->heads[0].baselines[0].metrics, "accuracy") + 0.2);
}

TEST_F(FineTuneTest, Bf16ComesCloseToFp32) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  options.epochs = 6;
  options.bf16 = true;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->bf16);
  EXPECT_GT(Value(report->heads[0].after, "ndcg@10"), 0.85);
  EXPECT_TRUE(ServableModel::Load(report->folder, {}).ok());
}

TEST_F(FineTuneTest, ValidationFileReplacesTheSplit) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kClassification)};
  options.tasks[0].validation = shop_.texts();
  options.epochs = 1;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->heads[0].examples, 240);
  EXPECT_EQ(report->heads[0].validation_rows, 240);
}

TEST_F(FineTuneTest, EveryProblemOfTheOptionsIsListed) {
  FineTuneOptions options = shop_.Options();
  options.model = "../x";
  options.learning_rate = -1;
  options.items.clear();
  options.tasks = {shop_.Task(kRecommendation), shop_.Task(kRelevance),
                   shop_.Task(kRelevance)};
  options.tasks[1].grades = {3, 3};
  const absl::Status status = Fit(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* const part :
       {"--model", "--learning-rate -1", "recommendation needs --items",
        "--grades 3:3", "two tasks for head relevance"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

TEST_F(FineTuneTest, DataErrorsComeThroughAndPublishNothing) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  options.tasks[0].data = shop_.File("bad.jsonl");
  ASSERT_TRUE(WriteFile(options.tasks[0].data, "{\"query\":1}\n").ok());
  const absl::Status status = Fit(options).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("bad.jsonl:1"));
  ExpectNoVersion();
}

TEST(RateFactor, RisesThenFalls) {
  EXPECT_NEAR(RateFactor(Schedule::kLinear, 0.1, 0, 100), 0.1, 1e-9);
  EXPECT_NEAR(RateFactor(Schedule::kLinear, 0.1, 4, 100), 0.5, 1e-9);
  EXPECT_NEAR(RateFactor(Schedule::kLinear, 0.1, 10, 100), 1, 1e-9);
  EXPECT_NEAR(RateFactor(Schedule::kLinear, 0.1, 55, 100), 0.5, 1e-9);
  EXPECT_NEAR(RateFactor(Schedule::kLinear, 0.1, 100, 100), 0, 1e-9);
  EXPECT_NEAR(RateFactor(Schedule::kCosine, 0, 50, 100), 0.5, 1e-9);
  EXPECT_NEAR(RateFactor(Schedule::kCosine, 0, 25, 100),
              0.5 * (1 + std::sqrt(0.5)), 1e-9);
  EXPECT_EQ(RateFactor(Schedule::kConstant, 0.1, 99, 100), 1);
  EXPECT_EQ(RateFactor(Schedule::kLinear, 0, 0, 1), 1);
}

}  // namespace
}  // namespace vitrine
