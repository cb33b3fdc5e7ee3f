// Classification by encoder and n-grams, from rows to a version.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "model/ngram_classifier.h"
#include "model/servable_model.h"
#include "store/model_registry.h"
#include "tests/trainer/small_shop.h"
#include "trainer/dataset.h"
#include "trainer/evaluate.h"
#include "trainer/evaluation.h"
#include "trainer/fine_tune.h"

namespace vitrine {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;

constexpr auto kClassification = internal::HEAD_KIND_CLASSIFICATION;
constexpr auto kRelevance = internal::HEAD_KIND_RELEVANCE;
constexpr char kFile[] = "classifier.ngrams.safetensors";

const std::atomic<bool> kGoOn{false};

// 400 texts of six words in any order; "home" right after "red" is one label,
// the other words the same in both. Random weights that stay as they are tell
// little of that.
class ClassifiedFitTest : public ::testing::Test {
 protected:
  ClassifiedFitTest() { EXPECT_TRUE(WriteFile(data(), Rows(400)).ok()); }

  std::string data() const { return shop_.File("order.jsonl"); }

  static std::string Rows(int count) {
    const std::vector<std::string> words = {"a", "buy", "fine", "sofa"};
    std::string out;
    uint64_t state = 1;
    for (int i = 0; i < count; ++i) {
      std::vector<std::string> text;
      for (int w = 0; w < 4; ++w) {
        state = state * 6364136223846793005 + 1442695040888963407;
        text.push_back(words[state >> 33 & 3]);
      }
      const bool label = i % 2 == 0;
      text.insert(text.begin() + (state >> 40) % 5,
                  label ? "red home" : "home red");
      absl::StrAppend(&out, "{\"text\":\"", absl::StrJoin(text, " "),
                      "\",\"label\":\"", label ? "yes" : "no", "\"}\n");
    }
    return out;
  }

  FineTuneOptions Options() const {
    FineTuneOptions options = shop_.Options();
    options.tasks = {shop_.Task(kClassification)};
    options.tasks[0].data = data();
    options.epochs = 1;
    options.freeze = FineTuneOptions::kFreezeEncoder;
    return options;
  }

  static std::string FileOf(const FineTuneReport& report) {
    return JoinPath(report.folder, kFile);
  }

  SmallShop shop_;
};

TEST_F(ClassifiedFitTest, LearnsWhatTheEncoderDoesNotTell) {
  const auto report = Fit(Options());
  ASSERT_TRUE(report.ok()) << report.status();
  const HeadReport& head = report->heads[0];
  ASSERT_THAT(Names(head.baselines),
              ElementsAre("most frequent", "n-grams", "encoder alone"));
  EXPECT_GT(Value(head.baselines[1].metrics, "accuracy"), 0.97);
  EXPECT_GT(Value(head.after, "accuracy"), 0.97);
  EXPECT_LT(Value(head.baselines[2].metrics, "accuracy"), 0.9);
  const auto manifest =
      ModelRegistry(shop_.registry()).ReadManifest("shop", report->version);
  ASSERT_TRUE(manifest.ok());
  std::vector<std::string> files;
  for (const auto& file : manifest->files()) files.push_back(file.name());
  EXPECT_THAT(files, Contains(kFile));
}

TEST_F(ClassifiedFitTest, ServesWhatWasEvaluated) {
  FineTuneOptions fit = Options();
  fit.tasks[0].validation = shop_.File("held_out.jsonl");
  ASSERT_TRUE(WriteFile(fit.tasks[0].validation, Rows(80)).ok());
  const auto report = Fit(fit);
  ASSERT_TRUE(report.ok()) << report.status();

  EvaluateOptions evaluate;
  evaluate.from = report->folder;
  evaluate.tasks = {fit.tasks[0]};
  evaluate.tasks[0].data = fit.tasks[0].validation;
  evaluate.tasks[0].validation.clear();
  evaluate.dtype = internal::DTYPE_FP32;
  evaluate.scores = shop_.File("scores.jsonl");
  EvaluateListener silent;
  const auto again = EvaluateVersion(evaluate, &silent, kGoOn);
  ASSERT_TRUE(again.ok()) << again.status();
  for (const MetricValue& metric : report->heads[0].after) {
    EXPECT_NEAR(Value(again->heads[0].after, metric.name), metric.value, 1e-4)
        << metric.name;
  }
  // Row by row too.
  std::string scores = *ReadFile(evaluate.scores);
  EXPECT_EQ(std::count(scores.begin(), scores.end(), '\n'), 80);
  size_t right = 0;
  for (const absl::string_view line : absl::StrSplit(scores, '\n')) {
    right +=
        absl::StrContains(line, "\"label\":\"yes\",\"predicted\":\"yes\"") ||
        absl::StrContains(line, "\"label\":\"no\",\"predicted\":\"no\"");
  }
  EXPECT_EQ(right / 80.0, Value(again->heads[0].after, "accuracy"));
}

TEST_F(ClassifiedFitTest, NoneWhereTheyAreOffOrRowsAreFew) {
  FineTuneOptions options = Options();
  options.ngrams = false;
  auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(PathExists(FileOf(*report)));
  EXPECT_THAT(Names(report->heads[0].baselines), ElementsAre("most frequent"));

  options.ngrams = true;
  ASSERT_TRUE(WriteFile(data(), Rows(60)).ok());
  report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(PathExists(FileOf(*report)));
}

TEST_F(ClassifiedFitTest, HeldOutRowsMayBeFewOrNone) {
  FineTuneOptions options = Options();
  for (const double share : {0.05, 0.0}) {
    options.validation_share = share;
    ASSERT_TRUE(WriteFile(data(), Rows(200)).ok());
    const auto report = Fit(options);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_LT(report->heads[0].validation_rows, 30);
    const auto ngrams = NgramClassifier::Open(FileOf(*report));
    ASSERT_TRUE(ngrams.ok()) << ngrams.status();
    EXPECT_EQ((*ngrams)->mixture().encoder_weight, 1);
    EXPECT_EQ((*ngrams)->mixture().ngram_weight, 4);
  }
}

TEST_F(ClassifiedFitTest, VersionsTrainedFromItCarryOverOrMakeThemAnew) {
  const auto first = Fit(Options());
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string made = *ReadFile(FileOf(*first));

  // Another head is trained.
  FineTuneOptions options = Options();
  options.from = "shop/1";
  options.tasks = {shop_.Task(kRelevance)};
  const auto other = Fit(options);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(*ReadFile(FileOf(*other)), made);

  // The version before is judged with what it has.
  options.tasks = Options().tasks;
  const auto again = Fit(options);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(Value(again->heads[0].before, "ece"),
            Value(first->heads[0].after, "ece"));
  EXPECT_TRUE(PathExists(FileOf(*again)));

  // Too few rows: the parent's stay, but not beside labels that they lack.
  ASSERT_TRUE(WriteFile(data(), Rows(60)).ok());
  const auto few = Fit(options);
  ASSERT_TRUE(few.ok()) << few.status();
  EXPECT_EQ(*ReadFile(FileOf(*few)), made);
  ASSERT_TRUE(
      WriteFile(data(), Rows(60) + "{\"text\":\"a\",\"label\":\"new\"}\n")
          .ok());
  const auto wider = Fit(options);
  ASSERT_TRUE(wider.ok()) << wider.status();
  EXPECT_FALSE(PathExists(FileOf(*wider)));

  options.ngrams = false;
  ASSERT_TRUE(WriteFile(data(), Rows(400)).ok());
  const auto off = Fit(options);
  ASSERT_TRUE(off.ok()) << off.status();
  EXPECT_FALSE(PathExists(FileOf(*off)));
}

}  // namespace
}  // namespace vitrine
