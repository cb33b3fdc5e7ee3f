// Relevance by encoder and words, from rows to a version.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "base/file.h"
#include "model/lexical_scorer.h"
#include "nlohmann/json.hpp"
#include "store/model_registry.h"
#include "tests/trainer/small_shop.h"
#include "trainer/evaluate.h"
#include "trainer/fine_tune.h"

namespace vitrine {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;

constexpr auto kRelevance = internal::HEAD_KIND_RELEVANCE;
constexpr auto kClassification = internal::HEAD_KIND_CLASSIFICATION;
constexpr char kFile[] = "relevance.lexical.safetensors";

const std::atomic<bool> kGoOn{false};

// The small shop's queries; random weights that stay as they are tell little of
// what answers them, words that both have tell all.
class LexicalRelevanceTest : public ::testing::Test {
 protected:
  FineTuneOptions Options() const {
    FineTuneOptions options = shop_.Options();
    options.tasks = {shop_.Task(kRelevance)};
    options.epochs = 1;
    options.freeze = FineTuneOptions::kFreezeEncoder;
    options.validation_share = 0.3;
    return options;
  }

  static std::string FileOf(const FineTuneReport& report) {
    return JoinPath(report.folder, kFile);
  }

  SmallShop shop_;
};

TEST_F(LexicalRelevanceTest, LearnsWhatTheEncoderDoesNotTell) {
  const auto report = Fit(Options());
  ASSERT_TRUE(report.ok()) << report.status();
  const HeadReport& head = report->heads[0];
  ASSERT_THAT(Names(head.baselines),
              ElementsAre("bm25", "random", "lexical", "encoder alone"));
  const double alone = Value(head.baselines[3].metrics, "ndcg@10");
  EXPECT_GT(Value(head.baselines[2].metrics, "ndcg@10"), alone + 0.03);
  EXPECT_GT(Value(head.after, "ndcg@10"), alone + 0.03);
  EXPECT_GT(Value(head.after, "ndcg@10"), 0.97);
  EXPECT_LT(Value(head.after, "rmse"),
            Value(head.baselines[3].metrics, "rmse"));
  const auto manifest =
      ModelRegistry(shop_.registry()).ReadManifest("shop", report->version);
  ASSERT_TRUE(manifest.ok());
  std::vector<std::string> files;
  for (const auto& file : manifest->files()) files.push_back(file.name());
  EXPECT_THAT(files, Contains(kFile));
}

TEST_F(LexicalRelevanceTest, ServesWhatWasEvaluated) {
  FineTuneOptions fit = Options();
  fit.tasks[0].validation = fit.tasks[0].data;
  const auto report = Fit(fit);
  ASSERT_TRUE(report.ok()) << report.status();

  EvaluateOptions evaluate;
  evaluate.from = report->folder;
  evaluate.items = shop_.items();
  evaluate.tasks = {shop_.Task(kRelevance)};
  evaluate.dtype = internal::DTYPE_FP32;
  evaluate.scores = shop_.File("scores.jsonl");
  EvaluateListener silent;
  const auto again = EvaluateVersion(evaluate, &silent, kGoOn);
  ASSERT_TRUE(again.ok()) << again.status();
  for (const MetricValue& metric : report->heads[0].after) {
    EXPECT_NEAR(Value(again->heads[0].after, metric.name), metric.value, 1e-4)
        << metric.name;
  }
  // Row by row too: what is written has the same error.
  double squares = 0;
  int rows = 0;
  const std::string scores = *ReadFile(evaluate.scores);
  for (const absl::string_view line :
       absl::StrSplit(scores, '\n', absl::SkipEmpty())) {
    const nlohmann::json row = nlohmann::json::parse(line);
    const double error = 3 * double{row["score"]} - double{row["grade"]};
    squares += error * error;
    ++rows;
  }
  EXPECT_NEAR(std::sqrt(squares / rows), Value(again->heads[0].after, "rmse"),
              1e-3);
}

TEST_F(LexicalRelevanceTest, NoneWhereTheyAreOff) {
  FineTuneOptions options = Options();
  options.ngrams = false;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(PathExists(FileOf(*report)));
  EXPECT_THAT(Names(report->heads[0].baselines), ElementsAre("bm25", "random"));
}

TEST_F(LexicalRelevanceTest, HeldOutRowsMayBeNone) {
  FineTuneOptions options = Options();
  options.validation_share = 0;
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto lexical = LexicalScorer::Open(FileOf(*report));
  ASSERT_TRUE(lexical.ok()) << lexical.status();
  EXPECT_EQ((*lexical)->mixture().encoder_weight, 1);
  EXPECT_EQ((*lexical)->mixture().lexical_weight, 3);
  EXPECT_EQ((*lexical)->mixture().bias, 0);
}

TEST_F(LexicalRelevanceTest, VersionsTrainedFromItCarryOverOrMakeThemAnew) {
  const auto first = Fit(Options());
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string made = *ReadFile(FileOf(*first));

  // Another head is trained.
  FineTuneOptions options = Options();
  options.from = "shop/1";
  options.tasks = {shop_.Task(kClassification)};
  const auto other = Fit(options);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(*ReadFile(FileOf(*other)), made);

  // The version before is judged with what it has.
  options.tasks = Options().tasks;
  const auto again = Fit(options);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(Value(again->heads[0].before, "rmse"),
            Value(first->heads[0].after, "rmse"));
  EXPECT_TRUE(PathExists(FileOf(*again)));

  // Too few rows: the parent's stays.
  const std::vector<std::string> rows =
      absl::StrSplit(*ReadFile(shop_.relevance()), '\n');
  std::string few;
  for (size_t i = 0; i < 90; ++i) few += rows[i] + "\n";
  options.tasks[0].data = shop_.File("few.jsonl");
  ASSERT_TRUE(WriteFile(options.tasks[0].data, few).ok());
  const auto fewer = Fit(options);
  ASSERT_TRUE(fewer.ok()) << fewer.status();
  EXPECT_EQ(*ReadFile(FileOf(*fewer)), made);

  options.tasks = Options().tasks;
  options.ngrams = false;
  const auto off = Fit(options);
  ASSERT_TRUE(off.ok()) << off.status();
  EXPECT_FALSE(PathExists(FileOf(*off)));
}

}  // namespace
}  // namespace vitrine
