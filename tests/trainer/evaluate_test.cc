#include "trainer/evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "nlohmann/json.hpp"
#include "tests/trainer/small_shop.h"
#include "trainer/evaluate_progress.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Json = nlohmann::ordered_json;

constexpr auto kRelevance = internal::HEAD_KIND_RELEVANCE;
constexpr auto kRecommendation = internal::HEAD_KIND_RECOMMENDATION;
constexpr auto kInterest = internal::HEAD_KIND_INTEREST;
constexpr auto kClassification = internal::HEAD_KIND_CLASSIFICATION;

class Recorder : public EvaluateListener {
 public:
  void OnStart(const EvaluateReport& report) override {
    ++started;
    rows = report.rows;
  }
  void OnProgress(const std::string& head, int64_t sequences,
                  int64_t of) override {
    EXPECT_LE(sequences, of);
    done[head] = sequences;
  }
  int started = 0;
  int64_t rows = 0;
  std::map<std::string, int64_t> done;
};

std::vector<Json> Lines(const std::string& path) {
  std::vector<Json> lines;
  std::istringstream in(*ReadFile(path));
  for (std::string line; std::getline(in, line);) {
    lines.push_back(Json::parse(line));
  }
  return lines;
}

class EvaluateTest : public ::testing::Test {
 protected:
  // Version 1 of all four heads, trained a little, its rows held out by files.
  static void SetUpTestSuite() {
    shop_ = new SmallShop();
    FineTuneOptions options = shop_->Options();
    for (FitTask task : shop_->AllTasks()) {
      task.validation = task.data;
      options.tasks.push_back(task);
    }
    FineTuneListener listener;
    const std::atomic<bool> stop{false};
    auto report = FineTune(options, &listener, stop);
    ASSERT_TRUE(report.ok()) << report.status();
    fit_ = new FineTuneReport(*std::move(report));
  }
  static void TearDownTestSuite() {
    delete fit_;
    delete shop_;
  }

  static EvaluateOptions Options(std::vector<internal::HeadKind> kinds) {
    EvaluateOptions options;
    options.from = "shop/1";
    options.registry = shop_->registry();
    options.items = shop_->items();
    for (const internal::HeadKind kind : kinds) {
      options.tasks.push_back(shop_->Task(kind));
    }
    options.dtype = internal::DTYPE_FP32;
    options.threads = 1;
    return options;
  }

  static absl::StatusOr<EvaluateReport> Run(const EvaluateOptions& options) {
    EvaluateListener listener;
    const std::atomic<bool> stop{false};
    return EvaluateVersion(options, &listener, stop);
  }

  static std::string ErrorOf(const EvaluateOptions& options) {
    const auto report = Run(options);
    EXPECT_FALSE(report.ok());
    return std::string(report.status().message());
  }

  // The lines that --scores gives, and the report.
  static std::vector<Json> ScoresOf(EvaluateOptions options,
                                    EvaluateReport* report) {
    options.scores = shop_->File("scores.jsonl");
    const auto result = Run(options);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    *report = *result;
    return Lines(options.scores);
  }

  static SmallShop* shop_;
  static FineTuneReport* fit_;
};

SmallShop* EvaluateTest::shop_ = nullptr;
FineTuneReport* EvaluateTest::fit_ = nullptr;

double Value(const EvaluateReport& report, const std::string& name) {
  for (const MetricValue& metric : report.heads[0].after) {
    if (metric.name == name) return metric.value;
  }
  ADD_FAILURE() << "no metric " << name;
  return NAN;
}

TEST_F(EvaluateTest, GivesTheNumbersOfTheFitOnTheSameRows) {
  Recorder recorder;
  const std::atomic<bool> stop{false};
  const auto report = EvaluateVersion(
      Options({kRelevance, kRecommendation, kInterest, kClassification}),
      &recorder, stop);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(recorder.started, 1);
  EXPECT_EQ(recorder.rows, report->rows);
  EXPECT_THAT(recorder.done, SizeIs(4));
  EXPECT_EQ(report->source, "shop/1");
  EXPECT_EQ(report->dtype, "fp32");
  EXPECT_THAT(report->warnings, IsEmpty());
  int64_t rows = 0;
  for (size_t i = 0; i < 4; ++i) {
    const HeadReport& head = report->heads[i];
    const HeadReport& fit = fit_->heads[i];
    EXPECT_EQ(head.name, fit.name);
    EXPECT_EQ(head.validation_rows, fit.validation_rows);
    rows += head.validation_rows;
    ASSERT_EQ(head.after.size(), fit.after.size());
    for (size_t m = 0; m < head.after.size(); ++m) {
      EXPECT_EQ(head.after[m].name, fit.after[m].name);
      EXPECT_NEAR(head.after[m].value, fit.after[m].value, 2e-3)
          << head.name << " " << head.after[m].name;
    }
  }
  EXPECT_EQ(report->rows, rows);
  // Every row's sequence, and the forty items that recommendation ranks.
  EXPECT_EQ(report->sequences, rows + 40);
}

TEST_F(EvaluateTest, RelevanceScoresAreInTheRowsOrder) {
  EvaluateReport report;
  const auto lines = ScoresOf(Options({kRelevance}), &report);
  const auto rows = Lines(shop_->relevance());
  ASSERT_EQ(lines.size(), rows.size());
  double squares = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(lines[i]["query"], rows[i]["query"]);
    EXPECT_EQ(lines[i]["item_id"], rows[i]["item_id"]);
    EXPECT_EQ(lines[i]["grade"], rows[i]["grade"]);
    const double score = lines[i]["score"];
    EXPECT_NEAR(score, 1 / (1 + std::exp(-double{lines[i]["logit"]})), 1e-6);
    squares += std::pow(3 * score - double{rows[i]["grade"]}, 2);
  }
  EXPECT_NEAR(std::sqrt(squares / rows.size()), Value(report, "rmse"), 1e-5);
}

TEST_F(EvaluateTest, ItemsMayBeWrittenOutInTheRows) {
  EvaluateOptions options = Options({kRelevance});
  std::map<std::string, Json> items;
  for (const Json& item : Lines(shop_->items())) items[item["id"]] = item;
  std::string rows;
  for (Json row : Lines(shop_->relevance())) {
    row["item"] = items.at(row["item_id"]);
    absl::StrAppend(&rows, row.dump(), "\n");
  }
  options.items.clear();
  options.tasks[0].data = shop_->File("written_out.jsonl");
  ASSERT_TRUE(WriteFile(options.tasks[0].data, rows).ok());
  EvaluateReport by_id, written_out;
  const auto expected = ScoresOf(Options({kRelevance}), &by_id);
  EXPECT_EQ(ScoresOf(options, &written_out), expected);
}

TEST_F(EvaluateTest, ClassificationScoresHaveEveryLabel) {
  EvaluateReport report;
  const auto lines = ScoresOf(Options({kClassification}), &report);
  const auto rows = Lines(shop_->texts());
  ASSERT_EQ(lines.size(), rows.size());
  int right = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Json& line = lines[i];
    EXPECT_EQ(line["label"], rows[i]["label"]);
    right += line["predicted"] == line["label"];
    double sum = 0, exponents = 0, most = 0;
    std::string likeliest;
    size_t l = 0;
    ASSERT_EQ(line["probabilities"].size(), line["logits"].size());
    for (const auto& [label, p] : line["probabilities"].items()) {
      sum += double{p};
      if (double{p} > most) most = p, likeliest = label;
      exponents += std::exp(double{line["logits"][l++]});
    }
    EXPECT_EQ(line["predicted"], likeliest);
    EXPECT_NEAR(sum, 1, 1e-5);
    EXPECT_NEAR(double{line["energy"]}, -std::log(exponents), 1e-4);
  }
  EXPECT_NEAR(static_cast<double>(right) / rows.size(),
              Value(report, "accuracy"), 1e-9);
}

TEST_F(EvaluateTest, InterestScoresAreProbabilities) {
  EvaluateReport report;
  const auto lines = ScoresOf(Options({kInterest}), &report);
  const auto rows = Lines(shop_->interest());
  ASSERT_EQ(lines.size(), rows.size());
  int right = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(lines[i]["user_id"], rows[i]["user_id"]);
    EXPECT_EQ(lines[i]["categories"], rows[i]["categories"]);
    std::string likeliest;
    double most = -1;
    for (const auto& [label, p] : lines[i]["probabilities"].items()) {
      if (double{p} > most) most = p, likeliest = label;
    }
    right += likeliest == rows[i]["categories"][0];
  }
  EXPECT_NEAR(static_cast<double>(right) / rows.size(),
              Value(report, "accuracy"), 1e-9);
}

TEST_F(EvaluateTest, RecommendationScoresAreThePlacesThatAreMeasured) {
  EvaluateReport report;
  const auto lines = ScoresOf(Options({kRecommendation}), &report);
  const auto rows = Lines(shop_->users());
  ASSERT_EQ(lines.size(), rows.size());
  double ranks = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Json& items = rows[i]["items"];
    EXPECT_EQ(lines[i]["user_id"], rows[i]["user_id"]);
    EXPECT_EQ(lines[i]["next"], items.back());
    const int64_t place = lines[i]["place"];
    ranks += 1.0 / static_cast<double>(place + 1);
    const std::vector<std::string> top = lines[i]["top"];
    EXPECT_THAT(top, SizeIs(10));
    if (place < 10) {
      EXPECT_EQ(top[place], items.back());
    }
    for (size_t k = 0; k + 1 < items.size(); ++k) {
      if (items[k] == items.back()) continue;
      EXPECT_EQ(std::count(top.begin(), top.end(), items[k]), 0);
    }
  }
  EXPECT_NEAR(ranks / rows.size(), Value(report, "mrr"), 1e-9);
}

TEST_F(EvaluateTest, ALabelThatTheHeadDoesNotKnowIsMissed) {
  EvaluateOptions options = Options({kClassification});
  options.tasks[0].data = shop_->File("new_label.jsonl");
  const Json known = Lines(shop_->texts())[0];
  Json unknown = known;
  unknown["label"] = "aquarium";
  ASSERT_TRUE(WriteFile(options.tasks[0].data,
                        absl::StrCat(known.dump(), "\n", unknown.dump(), "\n"))
                  .ok());
  EvaluateReport report;
  const auto lines = ScoresOf(options, &report);
  ASSERT_EQ(lines.size(), 2);
  EXPECT_EQ(lines[1]["label"], "aquarium");
  EXPECT_FALSE(lines[1]["probabilities"].contains("aquarium"));
  EXPECT_EQ(lines[1]["logits"], lines[0]["logits"]);
  EXPECT_EQ(Value(report, "accuracy"),
            lines[0]["predicted"] == known["label"] ? 0.5 : 0);
  EXPECT_THAT(report.warnings,
              ElementsAre(HasSubstr("1 rows have a label that it does not "
                                    "know, which counts as missed; 1 such")));

  options = Options({kInterest});
  options.tasks[0].data = shop_->File("new_category.jsonl");
  Json row = Lines(shop_->interest())[0];
  row["categories"] = {"aquarium"};
  ASSERT_TRUE(WriteFile(options.tasks[0].data, row.dump()).ok());
  ScoresOf(options, &report);
  EXPECT_EQ(Value(report, "accuracy"), 0);
  EXPECT_THAT(report.warnings, SizeIs(1));
}

TEST_F(EvaluateTest, EnginesAndTypesAgree) {
  EvaluateOptions options = Options({kRelevance});
  options.engine = internal::ENGINE_KIND_TORCH;
  const auto torch = Run(options);
  ASSERT_TRUE(torch.ok()) << torch.status();
  EXPECT_EQ(torch->engine, "torch");
  options.engine = internal::ENGINE_KIND_ONEDNN;
  const auto onednn = Run(options);
  ASSERT_TRUE(onednn.ok()) << onednn.status();
  EXPECT_EQ(onednn->engine, "onednn");
  EXPECT_NEAR(Value(*torch, "rmse"), Value(*onednn, "rmse"), 1e-4);
}

TEST_F(EvaluateTest, ErrorsNameWhatIsWrong) {
  EvaluateOptions options = Options({kRelevance});
  options.tasks[0].head = "other";
  EXPECT_EQ(ErrorOf(options),
            "head other: the version has none; it has relevance, "
            "recommendation, interest, classifier");
  options.tasks[0].head = "classifier";
  EXPECT_EQ(ErrorOf(options),
            "head classifier of the version is of another kind than --task: "
            "classification, not relevance");
  options = Options({});
  EXPECT_THAT(ErrorOf(options), HasSubstr("nothing to measure on"));
  options = Options({kRelevance, kInterest});
  options.scores = shop_->File("scores.jsonl");
  EXPECT_THAT(ErrorOf(options), HasSubstr("--scores: of one --task only"));
  options = Options({kRelevance});
  options.scores = shop_->File("nowhere/scores.jsonl");
  EXPECT_THAT(ErrorOf(options), HasSubstr("nowhere/scores.jsonl: cannot be"));
  options = Options({kRelevance});
  options.from = "shop/7";
  EXPECT_THAT(ErrorOf(options), HasSubstr("has no version 7"));
  options.registry.clear();
  EXPECT_THAT(ErrorOf(options),
              HasSubstr("no such folder; MODEL and MODEL/NUMBER need"));
  options = Options({kRelevance});
  options.tasks[0].grades = {0, 1};
  EXPECT_THAT(ErrorOf(options), HasSubstr("is outside 0:1"));
  options = Options({kRecommendation});
  options.items.clear();
  EXPECT_THAT(ErrorOf(options), HasSubstr("recommendation needs --items"));
}

TEST_F(EvaluateTest, StopsWhenItIsTold) {
  EvaluateListener listener;
  const std::atomic<bool> stop{true};
  EXPECT_TRUE(absl::IsCancelled(
      EvaluateVersion(Options({kRelevance}), &listener, stop).status()));
}

}  // namespace
}  // namespace vitrine
