#include "trainer/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/textproto.h"
#include "model/checkpoint.h"
#include "model/servable_model.h"
#include "nlohmann/json.hpp"
#include "store/model_registry.h"
#include "tests/trainer/small_shop.h"
#include "trainer/progress.h"
#include "trainer/quantize_progress.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

constexpr auto kRelevance = internal::HEAD_KIND_RELEVANCE;
constexpr auto kRecommendation = internal::HEAD_KIND_RECOMMENDATION;
constexpr auto kInterest = internal::HEAD_KIND_INTEREST;
constexpr auto kClassification = internal::HEAD_KIND_CLASSIFICATION;

class Recorder : public QuantizeListener {
 public:
  void OnStart(const QuantizeReport&) override { ++started; }
  void OnRun(int run, int at_most, double) override {
    EXPECT_LE(run, at_most);
    ++runs;
  }
  void OnJudge(const QuantizeReport&) override { ++judged; }
  int started = 0, runs = 0, judged = 0;
};

void ExpectSame(const std::map<std::string, TensorView>& a,
                const std::map<std::string, TensorView>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, view] : a) {
    ASSERT_TRUE(b.contains(name)) << name;
    EXPECT_EQ(view.type, b.at(name).type) << name;
    EXPECT_EQ(view.shape, b.at(name).shape) << name;
    EXPECT_EQ(view.bytes, b.at(name).bytes) << name;
  }
}

class QuantizeTest : public ::testing::Test {
 protected:
  // Version 1 of all four heads, trained a little.
  static void SetUpTestSuite() {
    shop_ = new SmallShop();
    FineTuneOptions options = shop_->Options();
    options.tasks = shop_->AllTasks();
    FineTuneListener listener;
    const std::atomic<bool> stop{false};
    const auto report = FineTune(options, &listener, stop);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_EQ(report->version, 1);
  }
  static void TearDownTestSuite() {
    delete shop_;
    shop_ = nullptr;
  }

  // Whatever the time of a batch: it says nothing of a model this small.
  static v1::Gate GateOf(const std::string& text) {
    v1::Gate gate;
    const absl::Status status = ParseTextProto(text, "gate", &gate);
    EXPECT_TRUE(status.ok()) << status;
    gate.set_max_latency_ratio(-1);
    return gate;
  }

  static QuantizeOptions Options(std::vector<internal::HeadKind> kinds) {
    QuantizeOptions options;
    options.from = "shop/1";
    options.registry = shop_->registry();
    options.items = shop_->items();
    for (const internal::HeadKind kind : kinds) {
      options.tasks.push_back(shop_->Task(kind));
    }
    options.validation_share = 0.2;
    options.calibration_rows = 64;
    // Whatever the processor makes of a model of 32.
    options.max_metric_loss = 0.1;
    options.calibration.max_loss = 0.2;
    if (!kinds.empty()) options.gate = GateOf("");
    options.threads = 1;
    return options;
  }

  static absl::StatusOr<QuantizeReport> Run(const QuantizeOptions& options) {
    Recorder recorder;
    const std::atomic<bool> stop{false};
    auto report = Quantize(options, &recorder, stop);
    if (report.ok()) {
      EXPECT_EQ(recorder.started, 1);
      EXPECT_EQ(recorder.judged, 1);
      EXPECT_EQ(recorder.runs, report->calibration.runs);
    }
    return report;
  }

  static std::string ErrorOf(const QuantizeOptions& options) {
    const auto report = Run(options);
    EXPECT_FALSE(report.ok());
    return std::string(report.status().message());
  }

  static internal::Manifest Manifest(int64_t version) {
    return *ModelRegistry(shop_->registry()).ReadManifest("shop", version);
  }

  static size_t VersionCount() {
    return ModelRegistry(shop_->registry()).ListVersions("shop")->size();
  }

  static std::string Folder(int64_t version) {
    return ModelRegistry(shop_->registry()).VersionFolder("shop", version);
  }

  static SmallShop* shop_;
};

SmallShop* QuantizeTest::shop_ = nullptr;

TEST_F(QuantizeTest, PublishesTheSameWeightsWithWhatInt8Costs) {
  const auto report =
      Run(Options({kRelevance, kRecommendation, kInterest, kClassification}));
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_THAT(report->rejections, IsEmpty());
  ASSERT_GT(report->version, 1);
  EXPECT_EQ(report->source, "shop/1");
  EXPECT_TRUE(report->calibration.good_enough);
  EXPECT_THAT(report->warnings, IsEmpty());

  const internal::Manifest parent = Manifest(1);
  const internal::Manifest manifest = Manifest(report->version);
  EXPECT_EQ(manifest.parent(), 1);
  EXPECT_EQ(manifest.description(), "int8 of shop/1");
  EXPECT_EQ(manifest.heads_size(), 4);
  // Two layers, a line for each of their four products.
  EXPECT_EQ(manifest.quantization().products_size(), 8);
  EXPECT_GE(manifest.quantization().golden_tolerance(), 0.05f);
  EXPECT_LT(manifest.quantization().golden_tolerance(), 0.25f);
  const auto weights =
      LoadCheckpoint(Folder(report->version),
                     {manifest.heads().begin(), manifest.heads().end()});
  const auto parents =
      LoadCheckpoint(Folder(1), {parent.heads().begin(), parent.heads().end()});
  ASSERT_TRUE(weights.ok() && parents.ok());
  ExpectSame(weights->encoder, parents->encoder);
  ExpectSame(weights->heads, parents->heads);

  // fp32 on the rows that the fit held out, as the fit measured it.
  for (const internal::Metric& fitted : parent.metrics()) {
    const auto it =
        std::find_if(manifest.metrics().begin(), manifest.metrics().end(),
                     [&](const internal::Metric& metric) {
                       return metric.head() == fitted.head() &&
                              metric.name() == fitted.name();
                     });
    ASSERT_NE(it, manifest.metrics().end()) << fitted.name();
    EXPECT_NEAR(it->before(), fitted.value(), 2e-3)
        << fitted.head() << " " << fitted.name();
    EXPECT_TRUE(it->has_change_low());
    EXPECT_EQ(it->split(), "validation");
  }
  int parities = 0;
  for (const internal::Metric& metric : manifest.metrics()) {
    if (metric.name() == "rank_correlation") {
      EXPECT_GT(metric.value(), 0.99) << metric.head();
      EXPECT_TRUE(std::isnan(metric.before()));
      EXPECT_EQ(metric.split(), "validation");
      ++parities;
    }
    if (metric.name() == "largest_difference") {
      EXPECT_GT(metric.value(), 0) << metric.head();  // it was int8
      EXPECT_TRUE(metric.lower_is_better());
    }
  }
  EXPECT_EQ(parities, 4);
  EXPECT_THAT(manifest.label_scores(), Not(IsEmpty()));

  // A server runs it in int8 unless told otherwise, and in fp32 all the same.
  ServableOptions served;
  served.engine.device = internal::DEVICE_CPU;
  const auto automatic = ServableModel::Load(Folder(report->version), served);
  ASSERT_TRUE(automatic.ok()) << automatic.status();
  EXPECT_EQ((*automatic)->engine().dtype(), "int8");
  served.engine.dtype = internal::DTYPE_FP32;
  const auto fp32 = ServableModel::Load(Folder(report->version), served);
  ASSERT_TRUE(fp32.ok()) << fp32.status();
  EXPECT_EQ((*fp32)->engine().dtype(), "fp32");

  EXPECT_THAT(ParityTable(*report), HasSubstr("torch fp32"));
  EXPECT_THAT(MetricsTable(*report), HasSubstr("recommendation"));
  const auto json = nlohmann::json::parse(ReportToJson(*report));
  EXPECT_EQ(json["products"].size(), 8);
  EXPECT_EQ(json["version"], report->version);
  EXPECT_EQ(json["rejected"], false);
}

TEST_F(QuantizeTest, WhatIsTrainedFromItIsNotQuantised) {
  const auto quantised = Run(Options({kRelevance}));
  ASSERT_TRUE(quantised.ok()) << quantised.status();
  ASSERT_GT(quantised->version, 1);
  // Heads without rows are served as well, and said to be unmeasured.
  EXPECT_EQ(quantised->warnings.size(), 3);
  EXPECT_EQ(quantised->parity.size(), 4);

  FineTuneOptions options = shop_->Options();
  options.from = absl::StrCat("shop/", quantised->version);
  options.tasks = {shop_->Task(kRelevance)};
  options.learning_rate = 1e-5;
  options.epochs = 1;
  options.gate = GateOf("");
  options.gate->set_max_latency_ratio(20);  // both sides are loaded, then
  FineTuneListener listener;
  const std::atomic<bool> stop{false};
  const auto child = FineTune(options, &listener, stop);
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_THAT(child->rejections, IsEmpty());
  EXPECT_EQ(Manifest(child->version).parent(), quantised->version);
  EXPECT_FALSE(Manifest(child->version).has_quantization());
}

TEST_F(QuantizeTest, AQuantisedVersionCanBeCalibratedAgain) {
  const auto first = Run(Options({kClassification}));
  ASSERT_TRUE(first.ok()) << first.status();
  QuantizeOptions options = Options({kClassification});
  options.from = absl::StrCat("shop/", first->version);
  options.gate->set_max_latency_ratio(100);
  const auto second = Run(options);
  ASSERT_TRUE(second.ok()) << second.status();
  ASSERT_GT(second->version, first->version);
  EXPECT_GT(second->latency.candidate_ms, 0);
  EXPECT_EQ(Manifest(second->version).metrics_size(),
            Manifest(first->version).metrics_size());
}

TEST_F(QuantizeTest, WhatTheGateRefusesIsNotPublished) {
  const size_t versions = VersionCount();
  QuantizeOptions options = Options({kRelevance});
  options.gate = GateOf("rules { metric: 'ndcg@10' bound: 1.5 }");
  options.calibration.max_loss = 1e-6;
  options.calibration.max_kept = 1;
  const auto report = Run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->rejected);
  EXPECT_EQ(report->version, 0);
  EXPECT_THAT(
      report->rejections,
      ElementsAre(HasSubstr("more than 1e-06, with 1 of 8 products kept"),
                  HasSubstr("below the bound 1.5")));
  EXPECT_THAT(VerdictText(*report), HasSubstr("the gate rejects it"));
  EXPECT_THAT(ProductsTable(report->calibration.quantization),
              HasSubstr("kept"));
  EXPECT_EQ(VersionCount(), versions);
}

TEST_F(QuantizeTest, TheDefaultRuleBoundsWhatAHeadMayLose) {
  QuantizeOptions options = Options({kRelevance});
  options.publish = false;
  const auto passes = Run(options);
  ASSERT_TRUE(passes.ok()) << passes.status();
  EXPECT_THAT(passes->rejections, IsEmpty());
  EXPECT_EQ(passes->version, 0);
  // Some queries are too few to say that nothing is lost.
  options.gate->set_min_validation_rows(100'000);
  const auto few = Run(options);
  ASSERT_TRUE(few.ok()) << few.status();
  EXPECT_THAT(few->rejections, ElementsAre(HasSubstr("no evidence")));
}

TEST_F(QuantizeTest, TextsAloneGiveParityAndSaySo) {
  const std::string file = shop_->File("pairs.tsv");
  std::string lines;
  for (const char* const color : {"red", "blue", "green", "white"}) {
    for (const char* const kind : {"sofa", "lamp", "rug", "chair", "desk"}) {
      absl::StrAppend(&lines, "buy ", color, " ", kind, "\t", color, " ", kind,
                      "\n", "buy ", color, " ", kind, "\tgreen vase\n",
                      "a fine ", kind, "\n\n");
    }
  }
  ASSERT_TRUE(WriteFile(file, lines).ok());
  QuantizeOptions options = Options({});
  options.texts = file;
  const auto report = Run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_GT(report->version, 1);
  EXPECT_THAT(report->warnings, ElementsAre(HasSubstr("not measured")));
  EXPECT_THAT(report->metrics, IsEmpty());
  std::vector<std::string> heads;
  for (const HeadParity& of : report->parity) heads.push_back(of.head);
  EXPECT_THAT(heads, UnorderedElementsAre("relevance", "recommendation",
                                          "interest", "classifier"));
  EXPECT_EQ(Manifest(report->version).metrics_size(), 8);

  ASSERT_TRUE(WriteFile(file, "a red sofa\na lamp\n").ok());
  EXPECT_THAT(ErrorOf(options), HasSubstr("query, tab, title"));
  ASSERT_TRUE(WriteFile(file, "red sofa\tsofa\nlamp\t \n").ok());
  EXPECT_THAT(ErrorOf(options), HasSubstr("pairs.tsv:2"));
  ASSERT_TRUE(WriteFile(file, "\n").ok());
  EXPECT_THAT(ErrorOf(options), HasSubstr("no lines"));
}

TEST_F(QuantizeTest, ABareEncoderIsCalibratedByItsEmbedding) {
  const std::string file = shop_->File("texts.txt");
  ASSERT_TRUE(WriteFile(file,
                        "a red sofa\nbuy a lamp\nfine white desk\n"
                        "green rug\nblue vase\n")
                  .ok());
  QuantizeOptions options = Options({});
  options.from = shop_->encoder();
  options.model = "bare";
  options.texts = file;
  options.validation_share = 0;
  const auto report = Run(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->version, 1);
  ASSERT_EQ(report->parity.size(), 1);
  EXPECT_EQ(report->parity[0].head, "embedding");
  EXPECT_FALSE(report->parity[0].held_out);
  options.model.clear();
  EXPECT_THAT(ErrorOf(options), HasSubstr("--model"));
}

TEST_F(QuantizeTest, WhatDoesNotFitIsSaidBeforeTheWork) {
  EXPECT_THAT(ErrorOf(Options({})), HasSubstr("nothing to calibrate on"));
  QuantizeOptions options = Options({kRelevance});
  options.texts = shop_->texts();
  options.calibration_rows = 1;
  options.calibration.max_loss = 0;
  options.max_metric_loss = std::numeric_limits<double>::quiet_NaN();
  const std::string errors = ErrorOf(options);
  EXPECT_THAT(errors, HasSubstr("--texts: not beside --task"));
  EXPECT_THAT(errors, HasSubstr("--calibration-rows 1"));
  EXPECT_THAT(errors, HasSubstr("--max-loss 0"));
  EXPECT_THAT(errors, HasSubstr("--max-metric-loss nan"));

  options = Options({kClassification});
  options.tasks[0].head = "topic";
  EXPECT_THAT(ErrorOf(options), HasSubstr("it has relevance, recommendation"));
  options = Options({kClassification});
  const std::string rows = shop_->File("labels.jsonl");
  ASSERT_TRUE(
      WriteFile(rows, *ReadFile(shop_->texts()) +
                          "{\"text\":\"a fine home\",\"label\":\"house\"}\n")
          .ok());
  options.tasks[0].data = rows;
  EXPECT_THAT(ErrorOf(options), HasSubstr("does not know, such as \"house\""));

  Recorder recorder;
  const std::atomic<bool> stop{true};
  EXPECT_TRUE(absl::IsCancelled(
      Quantize(Options({kRelevance}), &recorder, stop).status()));
}

}  // namespace
}  // namespace vitrine
