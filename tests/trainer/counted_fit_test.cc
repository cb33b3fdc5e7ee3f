// Recommendation by texts and by what goes together, from rows to a version.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "model/cooccurrence.h"
#include "model/servable_model.h"
#include "store/model_registry.h"
#include "tests/trainer/small_shop.h"
#include "trainer/dataset.h"
#include "trainer/evaluation.h"
#include "trainer/fine_tune.h"
#include "trainer/source_model.h"
#include "trainer/version_writer.h"

namespace vitrine {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto kRecommendation = internal::HEAD_KIND_RECOMMENDATION;
constexpr auto kClassification = internal::HEAD_KIND_CLASSIFICATION;
constexpr char kFile[] = "recommendation.cooccurrence.safetensors";

const Baseline& Find(const HeadReport& head, const std::string& name) {
  for (const Baseline& baseline : head.baselines) {
    if (baseline.name == name) return baseline;
  }
  ADD_FAILURE() << "no baseline " << name;
  return head.baselines.front();
}

// The shop's users again, but 500 who go from item to item by a rule that no
// text tells: 7 further in the list of 40.
class CountedFitTest : public ::testing::Test {
 protected:
  CountedFitTest() {
    const auto catalogue = ReadItems(shop_.items(), &digest_);
    EXPECT_TRUE(catalogue.ok()) << catalogue.status();
    catalogue_ = *catalogue;
    EXPECT_TRUE(WriteFile(data(), Rows(0, 500)).ok());
  }

  std::string data() const { return shop_.File("walks.jsonl"); }

  std::string Rows(int begin, int end) const {
    std::string out;
    for (int user = begin; user < end; ++user) {
      absl::StrAppend(&out, "{\"user_id\":\"w", user, "\",\"items\":[");
      for (int i = 0; i < 4; ++i) {
        absl::StrAppend(&out, i > 0 ? "," : "", "\"",
                        catalogue_.items[(user + 7 * i) % 40].id(), "\"");
      }
      absl::StrAppend(&out, "]}\n");
    }
    return out;
  }

  FineTuneOptions Options() const {
    FineTuneOptions options = shop_.Options();
    options.tasks = {shop_.Task(kRecommendation)};
    options.tasks[0].data = data();
    options.epochs = 1;
    options.freeze = FineTuneOptions::kFreezeEncoder;
    return options;
  }

  std::string FileOf(const FineTuneReport& report) const {
    return JoinPath(report.folder, kFile);
  }

  SmallShop shop_;
  Catalogue catalogue_;
  std::string digest_;
};

TEST_F(CountedFitTest, LearnsWhatNoTextTells) {
  const auto report = Fit(Options());
  ASSERT_TRUE(report.ok()) << report.status();
  const HeadReport& head = report->heads[0];
  EXPECT_EQ(head.baselines[0].name, "popularity");
  EXPECT_EQ(head.baselines[1].name, "item-item");
  const double alone = Value(Find(head, "text alone").metrics, "ndcg@10");
  const double classical = Value(Find(head, "item-item").metrics, "ndcg@10");
  const double after = Value(head.after, "ndcg@10");
  EXPECT_GT(after, 0.9);
  EXPECT_GT(after, alone + 0.3);
  EXPECT_GT(after, classical) << "it knows the order";
  // What is published is of what is served.
  const auto manifest =
      ModelRegistry(shop_.registry()).ReadManifest("shop", report->version);
  ASSERT_TRUE(manifest.ok());
  EXPECT_EQ(manifest->metrics(0).name(), "ndcg@10");
  EXPECT_FLOAT_EQ(manifest->metrics(0).value(), after);
  EXPECT_GT(manifest->heads(0).score_scale(), 0);
  std::vector<std::string> files;
  for (const auto& file : manifest->files()) files.push_back(file.name());
  EXPECT_THAT(files, Contains(kFile));
}

// By the parts that a server has: the ranks are those of the evaluation, scores
// to 1e-4.
TEST_F(CountedFitTest, ServesWhatWasEvaluated) {
  const auto report = Fit(Options());
  ASSERT_TRUE(report.ok()) << report.status();
  ServableOptions options;
  options.engine.device = internal::DEVICE_CPU;
  options.engine.dtype = internal::DTYPE_FP32;
  const auto loaded = ServableModel::Load(report->folder, options);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const ServableModel& model = **loaded;
  const int head = model.recommendation_head();
  const Cooccurrence* const counts = model.cooccurrence(head);
  ASSERT_NE(counts, nullptr);
  const auto vector = [&](const absl::StatusOr<Encoding>& encoding) {
    EXPECT_TRUE(encoding.ok()) << encoding.status();
    Batch batch;
    batch.Add(*encoding, HeadMask{1} << head);
    const auto outputs = model.engine().Run(batch);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    const auto of = outputs->Of(0);
    return std::vector<float>(of.begin(), of.end());
  };
  std::vector<std::vector<float>> items;
  for (const v1::Item& item : catalogue_.items) {
    items.push_back(
        vector(model.featurizer().Single(*model.featurizer().ItemText(item))));
  }
  auto rows = ReadDataset(kRecommendation, data(), {}, &catalogue_, &digest_);
  ASSERT_TRUE(rows.ok());
  const Split split = SplitDataset(*std::move(rows), 0.2);
  std::vector<int64_t> places;
  for (const HistoryRow& row : split.validation.histories) {
    std::vector<v1::Interaction> events(row.items.size() - 1);
    std::vector<const v1::Interaction*> history;
    std::vector<int32_t> numbers;
    for (size_t i = 0; i < events.size(); ++i) {
      *events[i].mutable_item() = catalogue_.items[row.items[i]];
      history.push_back(&events[i]);
      numbers.push_back(counts->Find(events[i].item().id()));
    }
    const std::vector<float> user = vector(model.featurizer().History(history));
    const HistoryCounts of(*counts, numbers, counts->mixture().history_decay);
    std::vector<float> scores;
    for (size_t i = 0; i < items.size(); ++i) {
      double cosine = 0;
      for (size_t d = 0; d < user.size(); ++d) cosine += user[d] * items[i][d];
      const int32_t number = counts->Find(catalogue_.items[i].id());
      scores.push_back(static_cast<float>(counts->mixture().Logit(
          cosine, of.Of(number), counts->popularity(number))));
    }
    places.push_back(PlaceOf(
        row.items.back(), scores,
        absl::MakeConstSpan(row.items).subspan(0, row.items.size() - 1)));
  }
  const Evaluation served = EvaluateNextItem(places);
  const HeadReport& evaluated = report->heads[0];
  ASSERT_EQ(served.metrics().size(), evaluated.after.size());
  for (const MetricValue& metric : served.metrics()) {
    EXPECT_NEAR(metric.value, Value(evaluated.after, metric.name), 1e-4)
        << metric.name;
  }
}

TEST_F(CountedFitTest, CountsNothingThatIsHeldOut) {
  // Those who are held out, and they alone, end with another item.
  FineTuneOptions options = Options();
  const std::string other = catalogue_.items[0].id();
  std::string training;
  for (int user = 0; user < 400; ++user) {
    absl::StrAppend(&training, "{\"user_id\":\"t", user, "\",\"items\":[\"",
                    catalogue_.items[1 + user % 39].id(), "\",\"",
                    catalogue_.items[1 + (user + 7) % 39].id(), "\"]}\n");
  }
  options.tasks[0].validation = shop_.File("held_out.jsonl");
  ASSERT_TRUE(WriteFile(data(), training).ok());
  ASSERT_TRUE(WriteFile(options.tasks[0].validation,
                        absl::StrCat("{\"user_id\":\"v\",\"items\":[\"",
                                     catalogue_.items[1].id(), "\",\"", other,
                                     "\"]}\n"))
                  .ok());
  const auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto counts = Cooccurrence::Open(FileOf(*report));
  ASSERT_TRUE(counts.ok()) << counts.status();
  EXPECT_EQ((*counts)->size(), 39);
  EXPECT_EQ((*counts)->Find(other), Cooccurrence::kUnknown);
}

TEST_F(CountedFitTest, TextsAloneWhereCountingIsOffOrUsersAreFew) {
  FineTuneOptions options = Options();
  options.co_occurrence = false;
  auto report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(PathExists(FileOf(*report)));
  EXPECT_EQ(report->heads[0].baselines.size(), 2) << "no text alone beside it";

  options.co_occurrence = true;
  ASSERT_TRUE(WriteFile(data(), Rows(0, 100)).ok());
  report = Fit(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(PathExists(FileOf(*report)));
}

TEST_F(CountedFitTest, VersionsTrainedFromItRecountOrCarryOver) {
  const auto first = Fit(Options());
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string counted = *ReadFile(FileOf(*first));

  FineTuneOptions options = Options();
  options.from = "shop/1";
  options.tasks = {shop_.Task(kClassification)};
  const auto other_head = Fit(options);
  ASSERT_TRUE(other_head.ok()) << other_head.status();
  EXPECT_EQ(*ReadFile(FileOf(*other_head)), counted);

  // The version before is judged with what it has.
  options.tasks = Options().tasks;
  const auto again = Fit(options);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(Value(again->heads[0].before, "ndcg@10"),
            Value(first->heads[0].after, "ndcg@10"));
  ASSERT_TRUE(PathExists(FileOf(*again)));

  // Too few to count: the parent's stay.
  ASSERT_TRUE(WriteFile(data(), Rows(0, 100)).ok());
  const auto few = Fit(options);
  ASSERT_TRUE(few.ok()) << few.status();
  EXPECT_EQ(*ReadFile(FileOf(*few)), counted);

  options.co_occurrence = false;
  const auto off = Fit(options);
  ASSERT_TRUE(off.ok()) << off.status();
  EXPECT_FALSE(PathExists(FileOf(*off)));

  // As quantize does it.
  const auto source = LoadSourceModel(first->folder);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto copy = CopyOf(**source);
  ASSERT_TRUE(copy.ok());
  ASSERT_TRUE(MakeFolders(shop_.File("copy")).ok());
  ASSERT_TRUE(WriteModelFolder(shop_.File("copy"), *copy).ok());
  EXPECT_EQ(*ReadFile(shop_.File(absl::StrCat("copy/", kFile))), counted);
}

TEST_F(CountedFitTest, ALoadRefusesADamagedFile) {
  const auto report = Fit(Options());
  ASSERT_TRUE(report.ok()) << report.status();
  const std::string whole = *ReadFile(FileOf(*report));
  const auto error = [&](bool verify) {
    ServableOptions options;
    options.engine.device = internal::DEVICE_CPU;
    options.verify_digests = verify;
    return ServableModel::Load(report->folder, options).status().ToString();
  };
  ASSERT_TRUE(WriteFile(FileOf(*report), whole.substr(0, 500)).ok());
  EXPECT_THAT(error(true), HasSubstr(absl::StrCat(kFile, ": 500 bytes")));
  EXPECT_THAT(error(false), HasSubstr(kFile));
  std::string changed = whole;
  changed.back() ^= 1;
  ASSERT_TRUE(WriteFile(FileOf(*report), changed).ok());
  EXPECT_THAT(error(true), HasSubstr("SHA-256"));
}

}  // namespace
}  // namespace vitrine
