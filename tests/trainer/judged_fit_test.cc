// Fine-tuning under a gate.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/textproto.h"
#include "model/servable_model.h"
#include "store/model_registry.h"
#include "tests/trainer/small_shop.h"
#include "trainer/progress.h"
#include "trainer/serving_check.h"

namespace vitrine {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr auto kRelevance = internal::HEAD_KIND_RELEVANCE;
constexpr auto kClassification = internal::HEAD_KIND_CLASSIFICATION;

// Counts the calls and the order of the last ones.
class Recorder : public FineTuneListener {
 public:
  void OnEpoch(int, double, bool,
               const std::vector<std::vector<MetricValue>>&) override {
    EXPECT_EQ(judged, 0);
    ++epochs;
  }
  void OnJudge() override { ++judged; }
  int epochs = 0, judged = 0;
};

absl::StatusOr<FineTuneReport> RecordedFit(const FineTuneOptions& options) {
  Recorder recorder;
  auto report = Fit(options, &recorder);
  // What is wrong with the options is said before the work.
  EXPECT_EQ(recorder.judged, report.ok() ? 1 : 0);
  EXPECT_EQ(recorder.epochs > 0, report.ok());
  return report;
}

v1::Gate GateOf(const std::string& text) {
  v1::Gate gate;
  const absl::Status status = ParseTextProto(text, "gate", &gate);
  EXPECT_TRUE(status.ok()) << status;
  // The same encoder on both sides: what a busy machine adds is no matter here.
  if (gate.max_latency_ratio() == 0) gate.set_max_latency_ratio(20);
  return gate;
}

const v1::EvaluationMetric* Find(const FineTuneReport& report,
                                 const std::string& head,
                                 const std::string& name) {
  for (const v1::EvaluationMetric& metric : report.metrics) {
    if (metric.head() == head && metric.name() == name) return &metric;
  }
  ADD_FAILURE() << "no metric " << head << " " << name;
  return nullptr;
}

class JudgedFitTest : public ::testing::Test {
 protected:
  ModelRegistry registry() const { return ModelRegistry(shop_.registry()); }
  internal::Manifest Manifest(int64_t version) const {
    return *registry().ReadManifest("shop", version);
  }

  // Version 1: a relevance head that has learned, and a classifier.
  void PublishGood() {
    FineTuneOptions options = shop_.Options();
    options.tasks = {shop_.Task(kRelevance), shop_.Task(kClassification)};
    options.epochs = 6;
    const auto report = RecordedFit(options);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_EQ(report->version, 1);
  }

  // From version 1, one epoch.
  FineTuneOptions Next(const std::string& gate) const {
    FineTuneOptions options = shop_.Options();
    options.from = "shop/1";
    options.tasks = {shop_.Task(kRelevance)};
    options.learning_rate = 1e-5;
    options.epochs = 1;
    options.gate = GateOf(gate);
    return options;
  }

  // Version 1 is all there is, staging folders included.
  void ExpectNothingNew() const {
    EXPECT_THAT(*ListFolder(shop_.registry() + "/shop"), ElementsAre("1"));
  }

  // The relevance rows with the grades turned around.
  std::string TurnedAround() const {
    const std::string rows = *ReadFile(shop_.relevance());
    const std::string file = shop_.File("turned.jsonl");
    EXPECT_TRUE(WriteFile(file, absl::StrReplaceAll(
                                    rows, {{"\"grade\":3", "\"grade\":0"},
                                           {"\"grade\":0", "\"grade\":3"}}))
                    .ok());
    return file;
  }

  SmallShop shop_;
};

TEST_F(JudgedFitTest, AGoodCandidatePassesAndTheManifestHoldsItAll) {
  PublishGood();
  FineTuneOptions options = Next("");
  options.tasks.push_back(shop_.Task(kClassification));
  options.job = 12;
  options.label_watermark = 3456;
  const auto report = RecordedFit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->rejected);
  EXPECT_THAT(report->rejections, IsEmpty());
  ASSERT_EQ(report->version, 2);
  EXPECT_GT(report->latency.candidate_ms, 0);
  EXPECT_GT(report->latency.incumbent_ms, 0);

  const internal::Manifest manifest = Manifest(2);
  EXPECT_EQ(manifest.job(), 12);
  EXPECT_EQ(manifest.label_watermark(), 3456);
  ASSERT_EQ(manifest.metrics_size(), 6 + 4);
  for (int i = 0; i < manifest.metrics_size(); ++i) {
    const internal::Metric& metric = manifest.metrics(i);
    const v1::EvaluationMetric& reported = report->metrics[i];
    EXPECT_EQ(metric.head(), reported.head());
    EXPECT_EQ(metric.name(), reported.name());
    EXPECT_EQ(metric.value(), reported.value());
    EXPECT_EQ(metric.before(), reported.before());
    ASSERT_TRUE(metric.has_change_low() && metric.has_change_high());
    EXPECT_LE(metric.change_low(), metric.change_high());
    EXPECT_EQ(metric.lower_is_better(),
              metric.name() == "rmse" || metric.name() == "ece");
  }
  EXPECT_EQ(manifest.metrics(0).name(), "ndcg@10");
  ASSERT_EQ(manifest.label_scores_size(), 10);
  EXPECT_EQ(manifest.label_scores(0).head(), "classifier");
  EXPECT_EQ(manifest.label_scores(0).label(), "bench");
  int64_t rows = 0;
  for (const auto& score : manifest.label_scores()) rows += score.rows();
  EXPECT_EQ(rows, report->heads[1].validation_rows);

  EXPECT_THAT(MetricsTable(*report), HasSubstr("  change\n"));
  EXPECT_THAT(ReportToJson(*report, "shop"),
              HasSubstr("\"change\":{\"ndcg@10\":["));
  EXPECT_TRUE(ServableModel::Load(report->folder, {}).ok());
}

TEST_F(JudgedFitTest, ACandidateThatLearnedTheOppositeIsRejected) {
  PublishGood();
  FineTuneOptions options = Next("");
  options.tasks[0].data = TurnedAround();
  options.tasks[0].validation = shop_.relevance();
  options.learning_rate = 3e-3;
  options.epochs = 4;
  const auto report = RecordedFit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->rejected);
  EXPECT_EQ(report->version, 0);
  EXPECT_THAT(report->folder, IsEmpty());
  ASSERT_THAT(report->rejections,
              ElementsAre(HasSubstr("at 95%: worse than allowed (0)")));
  EXPECT_THAT(report->rejections[0], HasSubstr("relevance ndcg@10: "));
  const v1::EvaluationMetric* const ndcg =
      Find(*report, "relevance", "ndcg@10");
  EXPECT_LT(ndcg->change_high(), 0);
  EXPECT_LT(ndcg->value(), ndcg->before());
  EXPECT_THAT(VerdictText(*report), HasSubstr("the gate rejects it:\n  rel"));
  ExpectNothingNew();
}

TEST_F(JudgedFitTest, ADryRunJudgesAndPublishesNothing) {
  PublishGood();
  FineTuneOptions options = Next("");
  options.publish = false;
  const auto report = RecordedFit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->rejected);
  EXPECT_EQ(report->version, 0);
  EXPECT_TRUE(Find(*report, "relevance", "map")->has_change_low());
  ExpectNothingNew();
}

TEST_F(JudgedFitTest, NoGainIsProvenByAModelThatHardlyMoved) {
  PublishGood();
  const auto report =
      RecordedFit(Next("rules { metric: 'ndcg@10' min_change: 0.01 "
                       "evidence: GATE_EVIDENCE_PROOF_OF_GAIN }"));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->rejections, ElementsAre(HasSubstr("no proof")));
  ExpectNothingNew();
}

// Version 1's words in another order, with another budget: what the source
// makes of a text is nonsense to it.
TEST_F(JudgedFitTest, AnotherIncumbentIsAskedInItsOwnTokens) {
  PublishGood();
  // A second shop of the same rows, whose vocabulary is turned around.
  SmallShop other;
  std::vector<std::string> words = absl::StrSplit(
      *ReadFile(other.File("encoder/vocab.txt")), '\n', absl::SkipEmpty());
  std::reverse(words.begin() + 5, words.end());
  ASSERT_TRUE(WriteFile(other.File("encoder/vocab.txt"),
                        absl::StrCat(absl::StrJoin(words, "\n"), "\n"))
                  .ok());
  FineTuneOptions theirs = other.Options();
  theirs.tasks = {other.Task(kRelevance)};
  theirs.encoding.set_max_query_tokens(7);
  theirs.epochs = 6;
  const auto in_service = RecordedFit(theirs);
  ASSERT_TRUE(in_service.ok()) << in_service.status();

  FineTuneOptions options = Next("rules { metric: 'ndcg@10' min_change: -1 }");
  options.incumbent = in_service->folder;
  options.tasks.push_back(shop_.Task(kClassification));
  const auto report = RecordedFit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->rejected) << report->rejections[0];
  // What it was published with, to the bit of rounding that batches leave.
  for (const MetricValue& metric : in_service->heads[0].after) {
    EXPECT_NEAR(Find(*report, "relevance", metric.name)->before(), metric.value,
                1e-5)
        << metric.name;
  }
  EXPECT_GT(Find(*report, "relevance", "ndcg@10")->before(), 0.8);
  // It has no classifier.
  EXPECT_FALSE(Find(*report, "classifier", "macro_f1")->has_before());
  EXPECT_FALSE(Find(*report, "classifier", "macro_f1")->has_change_low());
  EXPECT_GT(report->latency.incumbent_ms, 0);
}

TEST_F(JudgedFitTest, TheSourceAsItsOwnIncumbentGivesTheSameNumbers) {
  PublishGood();
  FineTuneOptions options = Next("");
  options.publish = false;
  const auto reused = RecordedFit(options);
  ASSERT_TRUE(reused.ok()) << reused.status();
  // A copy of the folder is another version, evaluated anew.
  const std::string copy = shop_.File("copy");
  std::filesystem::copy(registry().VersionFolder("shop", 1), copy);
  options.incumbent = copy;
  const auto anew = RecordedFit(options);
  ASSERT_TRUE(anew.ok()) << anew.status();
  ASSERT_EQ(reused->metrics.size(), anew->metrics.size());
  for (size_t i = 0; i < anew->metrics.size(); ++i) {
    EXPECT_NEAR(anew->metrics[i].before(), reused->metrics[i].before(), 1e-6)
        << anew->metrics[i].name();
    EXPECT_NEAR(anew->metrics[i].change_low(), reused->metrics[i].change_low(),
                1e-6);
  }
}

TEST_F(JudgedFitTest, AllKindsAreJudged) {
  FineTuneOptions options = shop_.Options();
  options.tasks = shop_.AllTasks();
  options.epochs = 2;
  const auto first = RecordedFit(options);
  ASSERT_TRUE(first.ok()) << first.status();
  options.from = "shop/1";
  options.gate = GateOf("");
  options.epochs = 6;
  options.publish = false;
  const auto report = RecordedFit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  size_t at = 0;
  for (const HeadReport& head : report->heads) {
    for (const std::string& name : MetricNames(head.kind)) {
      ASSERT_LT(at, report->metrics.size());
      EXPECT_EQ(report->metrics[at].head(), head.name);
      EXPECT_EQ(report->metrics[at].name(), name);
      EXPECT_TRUE(report->metrics[at].has_change_low()) << head.name << name;
      ++at;
    }
  }
  EXPECT_EQ(at, report->metrics.size());
  // More training made it better, beyond chance.
  EXPECT_GT(Find(*report, "interest", "ndcg@10")->change_low(), 0);
  EXPECT_THAT(
      report->label_scores,
      Contains(::testing::Property(&internal::LabelScore::head, "interest")));
}

TEST_F(JudgedFitTest, ANewHeadIsJudgedByBounds) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kClassification)};
  options.epochs = 1;
  options.gate = GateOf("rules { metric: 'accuracy' bound: 1.01 }");
  const auto report = RecordedFit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->rejections,
              ElementsAre(HasSubstr("is below the bound 1.01")));
  EXPECT_THAT(*ListFolder(shop_.registry() + "/shop"), IsEmpty());
  // There is nothing to be slower than.
  EXPECT_EQ(report->latency.incumbent_ms, 0);
  options.gate = GateOf("");
  EXPECT_EQ(RecordedFit(options)->version, 1);
}

TEST_F(JudgedFitTest, HalfPrecisionAndBf16AreServedAsTrained) {
  PublishGood();
  FineTuneOptions options = Next("");
  options.save_f16 = true;
  const auto half = RecordedFit(options);
  ASSERT_TRUE(half.ok()) << half.status();
  EXPECT_THAT(half->rejections, IsEmpty());
  options.save_f16 = false;
  options.bf16 = true;
  const auto bf16 = RecordedFit(options);
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  EXPECT_THAT(bf16->rejections, IsEmpty());
}

TEST_F(JudgedFitTest, AHeadThatOnlyTheIncumbentHasIsWarnedOf) {
  PublishGood();
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  options.epochs = 1;
  options.incumbent = "shop/1";
  options.gate = GateOf("rules { metric: 'ndcg@10' min_change: -1 }");
  options.publish = false;
  const auto report = RecordedFit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->warnings,
              Contains("head classifier of the version in service is not in "
                       "this one"));
}

TEST_F(JudgedFitTest, BadGatesAndIncumbentsAreSaidBeforeTraining) {
  FineTuneOptions options = shop_.Options();
  options.tasks = {shop_.Task(kRelevance)};
  options.gate = GateOf("rules { metric: 'bleu' bound: 1 }");
  const absl::Status rule = RecordedFit(options).status();
  EXPECT_EQ(rule.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(rule.message()), HasSubstr("metric \"bleu\""));
  options.gate = GateOf("");
  options.incumbent = "shop/9";
  const absl::Status nobody = RecordedFit(options).status();
  EXPECT_EQ(nobody.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(nobody.message()), HasSubstr("--incumbent shop/9"));
  options.gate.reset();
  EXPECT_THAT(std::string(RecordedFit(options).status().message()),
              HasSubstr("--incumbent shop/9: without --gate"));
}

TEST_F(JudgedFitTest, OutputsThatDifferFromTrainingAreFound) {
  PublishGood();
  const auto model = LoadForCheck(registry().VersionFolder("shop", 1), true);
  ASSERT_TRUE(model.ok()) << model.status();
  internal::Golden golden;
  ASSERT_TRUE(ReadTextProto(JoinPath(registry().VersionFolder("shop", 1),
                                     "golden.textproto"),
                            &golden)
                  .ok());
  std::vector<HeadInput> inputs;
  std::vector<std::vector<float>> outputs;
  for (const internal::Golden::Sequence& sequence : golden.sequences()) {
    Encoding encoding;
    encoding.ids.assign(sequence.ids().begin(), sequence.ids().end());
    encoding.segment_ids.assign(sequence.segment_ids().begin(),
                                sequence.segment_ids().end());
    inputs.emplace_back(sequence.head(), encoding);
    outputs.emplace_back(sequence.outputs().begin(), sequence.outputs().end());
  }
  ASSERT_EQ(inputs.size(), 8);
  EXPECT_THAT(*CompareServed(**model, inputs, outputs, 1e-3), IsEmpty());
  outputs[1][0] += 0.5f;
  outputs[2][0] += 0.5f;  // the same head, told once
  outputs[5][3] = NAN;
  EXPECT_THAT(
      *CompareServed(**model, inputs, outputs, 1e-3),
      ElementsAre(HasSubstr("relevance: output 0 of golden input 1 is "),
                  HasSubstr("classifier: output 3 of golden input 5 is ")));
  outputs[1].push_back(0);
  EXPECT_FALSE(CompareServed(**model, inputs, outputs, 1e-3).ok());
}

TEST_F(JudgedFitTest, ALongerBatchTakesLonger) {
  PublishGood();
  const auto model = LoadForCheck(registry().VersionFolder("shop", 1), true);
  ASSERT_TRUE(model.ok()) << model.status();
  Encoding small, large;
  small.ids.assign(4, 7);
  small.segment_ids.resize(4);
  large.ids.assign(60, 7);
  large.segment_ids.resize(60);
  const std::vector<HeadInput> few(2, {"relevance", small});
  const std::vector<HeadInput> many(64, {"relevance", large});
  const auto latency = CompareLatency(**model, many, **model, few);
  ASSERT_TRUE(latency.ok()) << latency.status();
  EXPECT_GT(latency->candidate_ms, 2 * latency->incumbent_ms);
  EXPECT_EQ(CompareLatency(**model, many, **model, {})->incumbent_ms, 0);
}

}  // namespace
}  // namespace vitrine
