#include "trainer/label_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "nlohmann/json.hpp"
#include "store/database.h"
#include "store/label_store.h"
#include "tests/testing/temp_folder.h"
#include "trainer/dataset.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSubsetOf;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;
using Json = nlohmann::json;

constexpr v1::InteractionType kView = v1::INTERACTION_TYPE_VIEW;
constexpr v1::InteractionType kClick = v1::INTERACTION_TYPE_CLICK;
constexpr v1::InteractionType kCart = v1::INTERACTION_TYPE_CART;
constexpr v1::InteractionType kPurchase = v1::INTERACTION_TYPE_PURCHASE;
constexpr v1::InteractionType kSkip = v1::INTERACTION_TYPE_SKIP;

FitTask TaskOf(internal::HeadKind kind, const std::string& head = "") {
  FitTask task;
  task.kind = kind;
  task.head = head;
  return task;
}
FitTask Relevance() { return TaskOf(internal::HEAD_KIND_RELEVANCE); }
FitTask Recommendation() { return TaskOf(internal::HEAD_KIND_RECOMMENDATION); }
FitTask Interest() { return TaskOf(internal::HEAD_KIND_INTEREST); }
FitTask Texts(const std::string& head = "spam") {
  return TaskOf(internal::HEAD_KIND_CLASSIFICATION, head);
}

// What a shopper did with an item; what is not set is not known.
struct Event {
  std::string user = "ada";
  std::string item;
  v1::InteractionType type = kClick;
  int position = 0;
  std::string impression;
  std::string query;
  int64_t seconds = 0;  // 0: none given
};

class LabelDatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto database = Database::Open({.url = "sqlite:" + folder_.File("db")});
    ASSERT_TRUE(database.ok()) << database.status();
    database_ = *std::move(database);
    labels_ = std::make_unique<LabelStore>(*database_);
    options_.model = "shop";
    options_.validation_share = 0;
  }

  // Each label arrives a second after the one before.
  void Add(v1::Feedback feedback, const std::string& model = "shop") {
    feedback.set_feedback_id(absl::StrCat("f", ++added_));
    const v1::Feedback* const one = &feedback;
    const auto stored =
        labels_->Add(model, {&one, 1}, absl::FromUnixSeconds(1000 + added_));
    ASSERT_TRUE(stored.ok()) << stored.status();
    options_.watermark = *labels_->Watermark("shop");
  }
  static void SetItem(const std::string& id, v1::Item* item) {
    item->set_id(id);
    item->set_title("title of " + id);
  }
  void Judge(const std::string& query, const std::string& item, float grade) {
    v1::Feedback feedback;
    feedback.mutable_relevance()->set_query(query);
    SetItem(item, feedback.mutable_relevance()->mutable_item());
    feedback.mutable_relevance()->set_grade(grade);
    Add(feedback);
  }
  void Did(const Event& event) {
    v1::Feedback feedback;
    v1::InteractionEvent& to = *feedback.mutable_interaction();
    to.set_user_id(event.user);
    SetItem(event.item, to.mutable_item());
    to.set_type(event.type);
    to.set_position(event.position);
    to.set_impression_id(event.impression);
    to.set_query(event.query);
    if (event.seconds > 0) feedback.mutable_time()->set_seconds(event.seconds);
    Add(feedback);
  }
  // On the list "sofa" as it was shown in `impression`.
  void Listed(const std::string& impression, const std::string& item,
              v1::InteractionType type, int position) {
    Did({.item = item,
         .type = type,
         .position = position,
         .impression = impression,
         .query = "sofa"});
  }
  void Label(const std::string& text, const std::string& label,
             const std::string& head = "spam") {
    v1::Feedback feedback;
    feedback.mutable_text_label()->set_head(head);
    feedback.mutable_text_label()->set_text(text);
    feedback.mutable_text_label()->set_label(label);
    Add(feedback);
  }
  // In one commit.
  void LabelMany(int first, int count) {
    std::vector<v1::Feedback> many(count);
    std::vector<const v1::Feedback*> pointers;
    for (int i = 0; i < count; ++i) {
      v1::TextLabel& label = *many[i].mutable_text_label();
      many[i].set_feedback_id(absl::StrCat("f", ++added_));
      label.set_head("spam");
      label.set_text(absl::StrCat("text ", first + i));
      label.set_label((first + i) % 2 == 0 ? "spam" : "normal");
      pointers.push_back(&many[i]);
    }
    ASSERT_TRUE(labels_->Add("shop", pointers, absl::FromUnixSeconds(1)).ok());
    options_.watermark = *labels_->Watermark("shop");
  }

  absl::StatusOr<LabelDataset> Write(std::vector<FitTask> tasks) {
    options_.tasks = std::move(tasks);
    const std::string folder = folder_.File(absl::StrCat("data", ++written_));
    EXPECT_TRUE(MakeFolders(folder).ok());
    return WriteLabelDataset(*labels_, options_, folder);
  }
  static std::vector<Json> ReadRows(const std::string& path) {
    const auto text = ReadFile(path);
    EXPECT_TRUE(text.ok()) << text.status();
    std::vector<Json> rows;
    for (const auto line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
      rows.push_back(Json::parse(line.begin(), line.end()));
    }
    return rows;
  }
  // Of the only task.
  std::vector<Json> Rows(const FitTask& task) {
    const auto dataset = Write({task});
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    if (!dataset.ok()) return {};
    EXPECT_EQ(dataset->tasks.size(), 1);
    return ReadRows(dataset->tasks[0].data);
  }
  std::set<std::string> TextsOf(const std::vector<Json>& rows) {
    std::set<std::string> texts;
    for (const Json& row : rows) texts.insert(row["text"].get<std::string>());
    return texts;
  }
  // "item grade weight" of each row of the query "sofa", in order of items;
  // judged ones have no weight.
  std::vector<std::string> Pairs() {
    std::vector<std::string> pairs;
    for (const Json& row : Rows(Relevance())) {
      EXPECT_EQ(row["query"], "sofa");
      pairs.push_back(absl::StrCat(
          row["item_id"].get<std::string>(), " ",
          std::round(row["grade"].get<double>() * 1000) / 1000,
          row.contains("weight")
              ? absl::StrCat(
                    " ", std::round(row["weight"].get<double>() * 1000) / 1000)
              : ""));
    }
    return pairs;
  }

  TempFolder folder_;
  std::unique_ptr<Database> database_;
  std::unique_ptr<LabelStore> labels_;
  LabelDatasetOptions options_;
  int added_ = 0, written_ = 0;
};

// Relevance.

TEST_F(LabelDatasetTest, TheNewestJudgementCounts) {
  Judge("sofa", "a", 1);
  Judge("sofa", "b", 0.5);
  Judge("sofa", "a", 0.25);
  EXPECT_THAT(Pairs(), ElementsAre("a 0.25", "b 0.5"));
}

TEST_F(LabelDatasetTest, AJudgementOutweighsWhatShoppersDid) {
  Listed("list1", "a", kPurchase, 1);
  Judge("sofa", "a", 0.25);
  Listed("list2", "a", kPurchase, 1);
  Did({.item = "a", .type = kPurchase, .query = "sofa"});
  EXPECT_THAT(Pairs(), ElementsAre("a 0.25"));
}

TEST_F(LabelDatasetTest, EventsHaveGradesAndTheStrongestOfAShownItemCounts) {
  Listed("list", "a", kView, 1);
  Listed("list", "b", kClick, 1);
  Listed("list", "c", kCart, 1);
  Listed("list", "d", kPurchase, 1);
  Listed("list", "e", kPurchase, 1);
  Listed("list", "e", kClick, 1);
  Listed("list", "e", kSkip, 1);
  EXPECT_THAT(Pairs(),
              ElementsAre("a 0.5 1", "b 0.7 1", "c 0.9 1", "d 1 1", "e 1 1"));
}

TEST_F(LabelDatasetTest, ItemsThatWereSkippedAboveAClickWereSeen) {
  Listed("list", "a", kSkip, 1);
  Listed("list", "b", kSkip, 0);  // nobody knows where
  Listed("list", "c", kClick, 4);
  Listed("list", "d", kSkip, 5);
  EXPECT_THAT(Pairs(), ElementsAre("a 0 1", "c 0.7 2"));
}

TEST_F(LabelDatasetTest, SkipsTellNothingOnAListWithoutAClick) {
  Listed("list1", "a", kSkip, 1);
  Listed("list1", "b", kView, 2);
  // The click was on another list.
  Listed("list2", "c", kClick, 4);
  EXPECT_THAT(Pairs(), ElementsAre("b 0.5 1.414", "c 0.7 2"));
}

TEST_F(LabelDatasetTest, OneImpressionIdOfTwoQueriesIsTwoLists) {
  Listed("list", "a", kSkip, 1);
  Did({.item = "b",
       .type = kClick,
       .position = 2,
       .impression = "list",
       .query = "lamp"});
  const auto rows = Rows(Relevance());
  ASSERT_THAT(rows, SizeIs(1));
  EXPECT_EQ(rows[0]["query"], "lamp");
}

TEST_F(LabelDatasetTest, WeightsGrowWithThePositionUpToALimit) {
  Listed("list", "a", kClick, 0);
  Listed("list", "b", kClick, 1);
  Listed("list", "c", kClick, 9);
  Listed("list", "d", kClick, 25);
  Listed("list", "e", kClick, 10000);
  EXPECT_THAT(Pairs(), ElementsAre("a 0.7 1", "b 0.7 1", "c 0.7 3", "d 0.7 5",
                                   "e 0.7 5"));
}

TEST_F(LabelDatasetTest, ImpressionsOfOnePairBecomeOneRow) {
  Listed("list1", "a", kPurchase, 4);  // 1, weight 2
  Listed("list2", "a", kSkip, 1);      // 0, weight 1
  Listed("list2", "b", kClick, 2);
  EXPECT_THAT(Pairs(), ElementsAre("a 0.667 3", "b 0.7 1.414"));
}

TEST_F(LabelDatasetTest, TheSumOfWeightsHasALimit) {
  for (int i = 0; i < 3; ++i) {
    Listed(absl::StrCat("list", i), "a", kClick, 25);
  }
  EXPECT_THAT(Pairs(), ElementsAre("a 0.7 10"));
}

TEST_F(LabelDatasetTest, EventsWithoutAnImpressionStandForThemselves) {
  Did({.item = "a", .type = kClick, .position = 4, .query = "sofa"});
  Did({.item = "b", .type = kSkip, .position = 1, .query = "sofa"});
  Did({.item = "c", .type = kPurchase});  // no search
  Did({.item = "d", .type = kPurchase, .impression = "list"});
  EXPECT_THAT(Pairs(), ElementsAre("a 0.7 2"));
}

// Recommendation.

TEST_F(LabelDatasetTest, HistoriesAreInOrderOfTime) {
  Did({.item = "late", .seconds = 900});
  Did({.item = "early", .seconds = 100});
  Did({.item = "middle", .seconds = 500});
  Did({.item = "last"});  // when it came: after second 1000
  const auto rows = Rows(Recommendation());
  ASSERT_THAT(rows, SizeIs(1));
  EXPECT_EQ(rows[0]["user_id"], "ada");
  EXPECT_EQ(rows[0]["items"], Json({"early", "middle", "late", "last"}));
}

TEST_F(LabelDatasetTest, HistoriesLeaveOutSkipsAndAnItemAfterItself) {
  for (const char* const item : {"a", "a", "b", "a"}) Did({.item = item});
  Did({.item = "c", .type = kSkip});
  Did({.item = "a"});
  EXPECT_EQ(Rows(Recommendation())[0]["items"], Json({"a", "b", "a"}));
}

TEST_F(LabelDatasetTest, AHistoryOfOneItemTeachesNothing) {
  Did({.user = "ada", .item = "a"});
  Did({.user = "ada", .item = "a"});
  Did({.user = "bob", .item = "a"});
  Did({.user = "bob", .item = "b"});
  const auto rows = Rows(Recommendation());
  ASSERT_THAT(rows, SizeIs(1));
  EXPECT_EQ(rows[0]["user_id"], "bob");
}

// Interest and classification.

TEST_F(LabelDatasetTest, InterestLabelsKeepShopperHistoryAndCategories) {
  v1::Feedback feedback;
  v1::InterestLabel& interest = *feedback.mutable_interest();
  interest.set_user_id("ada");
  interest.add_categories("garden");
  for (const char* const item : {"a", "b", "c"}) {
    v1::Interaction& event = *interest.add_history();
    SetItem(item, event.mutable_item());
    event.set_type(item == std::string("b") ? kSkip : kView);
  }
  Add(feedback);
  interest.clear_user_id();
  interest.clear_categories();
  Add(feedback);
  const auto rows = Rows(Interest());
  ASSERT_THAT(rows, SizeIs(2));
  EXPECT_EQ(rows[0]["user_id"], "ada");
  EXPECT_EQ(rows[0]["items"], Json({"a", "c"}));
  EXPECT_EQ(rows[0]["categories"], Json({"garden"}));
  EXPECT_EQ(rows[1]["user_id"], "a");  // the first item, where nobody is named
  EXPECT_EQ(rows[1]["categories"], Json::array());
}

TEST_F(LabelDatasetTest, TheNewestLabelOfATextCounts) {
  Label("cheap pills", "normal");
  Label("hello", "normal");
  Label("cheap pills", "spam");
  Label("cheap pills", "sad", "mood");
  const auto rows = Rows(Texts("spam"));
  ASSERT_THAT(rows, SizeIs(2));
  EXPECT_EQ(rows[0]["text"], "cheap pills");
  EXPECT_EQ(rows[0]["label"], "spam");
  EXPECT_EQ(rows[1]["text"], "hello");
}

// Items.

TEST_F(LabelDatasetTest, TheNewestTextOfAnItemCounts) {
  Judge("sofa", "a", 1);
  v1::Feedback feedback;
  feedback.mutable_relevance()->set_query("lamp");
  v1::Item& item = *feedback.mutable_relevance()->mutable_item();
  item.set_id("a");
  item.set_title("a newer title");
  item.set_brand("oak");
  item.add_categories("home");
  (*item.mutable_attributes())["color"] = "red";
  Add(feedback);
  const auto dataset = Write({Relevance()});
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  const auto items = ReadRows(dataset->items);
  ASSERT_THAT(items, SizeIs(1));
  EXPECT_EQ(items[0], Json({{"id", "a"},
                            {"title", "a newer title"},
                            {"brand", "oak"},
                            {"categories", {"home"}},
                            {"attributes", {{"color", "red"}}}}));
}

TEST_F(LabelDatasetTest, ItemsWithoutIdAreKnownByTheirText) {
  const auto judge = [this](const std::string& query,
                            const std::string& title) {
    v1::Feedback feedback;
    feedback.mutable_relevance()->set_query(query);
    feedback.mutable_relevance()->mutable_item()->set_title(title);
    Add(feedback);
  };
  judge("sofa", "a couch");
  judge("lamp", "a couch");
  judge("lamp", "a table");
  const auto dataset = Write({Relevance()});
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_THAT(ReadRows(dataset->items), SizeIs(2));
  EXPECT_THAT(ReadRows(dataset->tasks[0].data), SizeIs(3));
}

TEST_F(LabelDatasetTest, TextsAloneNeedNoItems) {
  Label("hello", "normal");
  const auto dataset = Write({Texts()});
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->items, "");
}

// Which labels.

TEST_F(LabelDatasetTest, OnlyLabelsOfTheModelUpToTheWatermarkAreUsed) {
  Label("one", "spam");
  Label("two", "spam");
  options_.watermark = 2;
  const int64_t watermark = options_.watermark;
  Label("one", "normal");
  Label("three", "spam");
  options_.watermark = watermark;
  v1::Feedback other;
  other.mutable_text_label()->set_head("spam");
  other.mutable_text_label()->set_text("of another model");
  Add(other, "books");
  options_.watermark = watermark;
  const auto rows = Rows(Texts());
  EXPECT_THAT(TextsOf(rows), UnorderedElementsAre("one", "two"));
  EXPECT_EQ(rows[0]["label"], "spam");
}

// Old and new.

TEST_F(LabelDatasetTest, OldRowsFillUpTheReplayShare) {
  LabelMany(0, 100);
  options_.base_watermark = 100;
  LabelMany(100, 10);
  const auto count = [this](double share) {
    options_.replay_share = share;
    return Rows(Texts()).size();
  };
  EXPECT_EQ(count(0), 10);
  EXPECT_EQ(count(0.5), 20);
  EXPECT_EQ(count(0.9), 100);
  EXPECT_EQ(count(0.95), 110);  // there are no more
  EXPECT_EQ(count(1), 110);
}

TEST_F(LabelDatasetTest, NewRowsAreAllUsed) {
  LabelMany(0, 50);
  options_.base_watermark = 50;
  LabelMany(50, 5);
  Label("text 0", "spam");  // said again: new
  for (const double share : {0.0, 0.5}) {
    options_.replay_share = share;
    const auto texts = TextsOf(Rows(Texts()));
    EXPECT_THAT((std::set<std::string>{"text 0", "text 50", "text 51",
                                       "text 52", "text 53", "text 54"}),
                IsSubsetOf(texts));
  }
}

TEST_F(LabelDatasetTest, ANewEventMakesItsPairNew) {
  Listed("list1", "a", kClick, 1);
  Listed("list1", "b", kClick, 1);
  options_.base_watermark = 2;
  Listed("list2", "a", kClick, 1);
  options_.replay_share = 0;
  EXPECT_THAT(Pairs(), ElementsAre("a 0.7 2"));
}

TEST_F(LabelDatasetTest, EachHeadReplaysInProportionToWhatItHas) {
  for (int i = 0; i < 40; ++i) Judge("sofa", absl::StrCat("i", i), 1);
  LabelMany(0, 80);
  options_.base_watermark = 120;
  LabelMany(80, 30);
  options_.replay_share = 0.5;
  const auto dataset = Write({Relevance(), Texts()});
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_THAT(ReadRows(dataset->tasks[0].data), SizeIs(10));
  EXPECT_THAT(ReadRows(dataset->tasks[1].data), SizeIs(30 + 20));
}

TEST_F(LabelDatasetTest, AFewLabelsMoreReplayNearlyTheSameRows) {
  LabelMany(0, 100);
  options_.base_watermark = 100;
  options_.replay_share = 0.5;
  LabelMany(100, 10);
  const auto before = TextsOf(Rows(Texts()));
  LabelMany(110, 1);
  const auto after = TextsOf(Rows(Texts()));
  EXPECT_EQ(after.size(), 22);
  EXPECT_THAT(before, IsSubsetOf(after));
  options_.seed = 2;
  EXPECT_NE(TextsOf(Rows(Texts())), after);
}

TEST_F(LabelDatasetTest, ReplayLeavesTheHeldOutRowsAlone) {
  LabelMany(0, 100);
  options_.base_watermark = 100;
  LabelMany(100, 10);
  options_.validation_share = 0.3;
  int64_t held_out = -1;
  for (const double share : {0.0, 0.5, 1.0}) {
    options_.replay_share = share;
    const auto dataset = Write({Texts()});
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    if (held_out < 0) held_out = dataset->validation_rows;
    EXPECT_EQ(dataset->validation_rows, held_out) << share;
    EXPECT_GT(dataset->validation_rows, 20);
    EXPECT_EQ(ReadRows(dataset->tasks[0].data).size(),
              dataset->training_rows + dataset->validation_rows);
  }
}

// The split is made again by whoever reads the files.
TEST_F(LabelDatasetTest, HeldOutRowsAreThoseThatFineTuningHoldsOut) {
  for (int i = 0; i < 60; ++i) {
    Judge(absl::StrCat(i % 2 == 0 ? "Query  " : "query ", i / 2),
          absl::StrCat("i", i), 1);
    Did({.user = absl::StrCat("u", i), .item = "i1"});
    Did({.user = absl::StrCat("u", i), .item = "i2"});
  }
  LabelMany(0, 60);
  options_.validation_share = 0.25;
  const auto dataset = Write({Relevance(), Recommendation(), Texts()});
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  std::string digest;
  auto catalogue = ReadItems(dataset->items, &digest);
  ASSERT_TRUE(catalogue.ok()) << catalogue.status();
  int64_t training = 0, validation = 0;
  for (const FitTask& task : dataset->tasks) {
    auto rows =
        ReadDataset(task.kind, task.data, task.grades, &*catalogue, &digest);
    ASSERT_TRUE(rows.ok()) << rows.status();
    const Split split =
        SplitDataset(*std::move(rows), options_.validation_share);
    EXPECT_GT(split.validation.size(), 0);
    training += split.training.size();
    validation += split.validation.size();
  }
  EXPECT_EQ(dataset->training_rows, training);
  EXPECT_EQ(dataset->validation_rows, validation);
}

TEST_F(LabelDatasetTest, MoreLabelsKeepHeldOutRowsHeldOut) {
  LabelMany(0, 100);
  options_.validation_share = 0.3;
  options_.replay_share = 1;
  const auto held_out = [this] {
    std::set<std::string> texts;
    for (const std::string& text : TextsOf(Rows(Texts()))) {
      if (IsHeldOut(SameTextKey(text), options_.validation_share)) {
        texts.insert(text);
      }
    }
    return texts;
  };
  const auto before = held_out();
  EXPECT_GT(before.size(), 10);
  options_.base_watermark = 100;
  options_.replay_share = 0.5;
  LabelMany(100, 50);
  EXPECT_THAT(before, IsSubsetOf(held_out()));
}

TEST_F(LabelDatasetTest, TwoRunsWriteTheSameFiles) {
  for (int i = 0; i < 30; ++i) {
    Judge(absl::StrCat("query ", i % 7), absl::StrCat("i", i), 0.5);
    Listed(absl::StrCat("list", i % 5), absl::StrCat("i", i), kClick, i);
    Did({.user = absl::StrCat("u", i % 4), .item = absl::StrCat("i", i)});
    if (i == 20) options_.base_watermark = added_;
  }
  const auto files = [this] {
    const auto dataset = Write({Relevance(), Recommendation()});
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    return absl::StrCat(*ReadFile(dataset->items), "\n",
                        *ReadFile(dataset->tasks[0].data), "\n",
                        *ReadFile(dataset->tasks[1].data));
  };
  EXPECT_EQ(files(), files());
}

// Nothing to train on.

TEST_F(LabelDatasetTest, HeadsWithoutRowsAreNamedOrLeftOut) {
  Label("hello", "normal");
  const auto named = Write({Texts(), Interest()});
  EXPECT_TRUE(absl::IsFailedPrecondition(named.status()));
  EXPECT_THAT(named.status().message(),
              HasSubstr("head interest: there are no labels, up to number 1"));
  options_.skip_empty = true;
  const auto left_out = Write({Interest(), Texts(), Texts("mood")});
  ASSERT_TRUE(left_out.ok()) << left_out.status();
  ASSERT_THAT(left_out->tasks, SizeIs(1));
  EXPECT_EQ(left_out->tasks[0].head, "spam");
  EXPECT_EQ(left_out->tasks[0].grades.max, 1);
}

TEST_F(LabelDatasetTest, WithoutAnyLabelItSaysSo) {
  options_.skip_empty = true;
  const auto nothing = Write({Interest(), Texts()});
  EXPECT_TRUE(absl::IsFailedPrecondition(nothing.status()));
  EXPECT_THAT(nothing.status().message(),
              HasSubstr("there are no labels, up to number 0"));
}

TEST_F(LabelDatasetTest, WithoutALabelThatIsNewItSaysSo) {
  LabelMany(0, 20);
  options_.base_watermark = 20;
  options_.validation_share = 0.3;
  for (const bool skip : {false, true}) {
    options_.skip_empty = skip;
    const auto nothing = Write({Texts()});
    EXPECT_TRUE(absl::IsFailedPrecondition(nothing.status()));
    EXPECT_THAT(nothing.status().message(),
                HasSubstr("no newer than the base version, number 20, and the "
                          "replay share 0.5"));
  }
}

TEST_F(LabelDatasetTest, AHeadThatHasOnlyOldRowsIsLeftOutWithoutReplay) {
  Judge("sofa", "a", 1);
  options_.base_watermark = 1;
  LabelMany(0, 3);
  options_.replay_share = 0;
  options_.skip_empty = true;
  const auto dataset = Write({Relevance(), Texts()});
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  ASSERT_THAT(dataset->tasks, SizeIs(1));
  EXPECT_EQ(dataset->tasks[0].head, "spam");
  options_.skip_empty = false;
  EXPECT_THAT(Write({Relevance(), Texts()}).status().message(),
              HasSubstr("head relevance: there is nothing to train on"));
}

TEST_F(LabelDatasetTest, AFolderThatIsNotThereIsAnError) {
  LabelMany(0, 3);
  options_.tasks = {Texts()};
  const auto written =
      WriteLabelDataset(*labels_, options_, folder_.File("nowhere"));
  EXPECT_THAT(written.status().message(), HasSubstr("nowhere"));
}

}  // namespace
}  // namespace vitrine
