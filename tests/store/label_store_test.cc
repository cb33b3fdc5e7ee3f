#include "store/label_store.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/store/store_fixture.h"

namespace vitrine {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Outcome = LabelStore::Outcome;

v1::Feedback Label(const std::string& id, float grade = 0.5f) {
  v1::Feedback feedback;
  feedback.set_feedback_id(id);
  feedback.mutable_relevance()->set_query("grey corner sofa");
  feedback.mutable_relevance()->mutable_item()->set_id(absl::StrCat("i", id));
  feedback.mutable_relevance()->set_grade(grade);
  return feedback;
}

class LabelStoreTest : public StoreTest {
 protected:
  absl::StatusOr<std::vector<Outcome>> Add(
      LabelStore& store, const std::string& model,
      const std::vector<v1::Feedback>& labels) {
    std::vector<const v1::Feedback*> pointers;
    for (const v1::Feedback& label : labels) pointers.push_back(&label);
    return store.Add(model, pointers, absl::FromUnixMillis(1700000000123));
  }

  std::vector<StoredLabel> Read(LabelStore& store, const std::string& model,
                                int64_t after, int64_t upto) {
    std::vector<StoredLabel> labels;
    const absl::Status status =
        store.Read(model, after, upto, [&labels](const StoredLabel& label) {
          labels.push_back(label);
          return absl::OkStatus();
        });
    EXPECT_TRUE(status.ok()) << status;
    return labels;
  }
};
INSTANTIATE_STORE_TEST(LabelStoreTest);

TEST_P(LabelStoreTest, IsEmptyAtFirst) {
  LabelStore store(*database_);
  EXPECT_EQ(*store.Watermark("shop"), 0);
  EXPECT_EQ(*store.Count("shop", 0, 1000), 0);
  EXPECT_THAT(Read(store, "shop", 0, 1000), IsEmpty());
  EXPECT_THAT(*Add(store, "shop", {}), IsEmpty());
}

TEST_P(LabelStoreTest, ReadsBackWhatWasAdded) {
  LabelStore store(*database_);
  v1::Feedback text;
  text.set_feedback_id("text 'quoted' \"twice\" \\ : ümläut {1}");
  text.mutable_text_label()->set_text(
      std::string("a\0b\n:name\xF0\x9F\x9B\x8B", 13));
  text.mutable_time()->set_seconds(1700000000);
  EXPECT_THAT(*Add(store, "shop", {Label("a", 0.25f), text}),
              ElementsAre(Outcome::kStored, Outcome::kStored));

  const std::vector<StoredLabel> labels =
      Read(store, "shop", 0, *store.Watermark("shop"));
  ASSERT_EQ(labels.size(), 2u);
  EXPECT_GT(labels[0].number, 0);
  EXPECT_GT(labels[1].number, labels[0].number);
  EXPECT_EQ(*store.Watermark("shop"), labels[1].number);
  EXPECT_EQ(labels[0].received, absl::FromUnixMillis(1700000000123));
  EXPECT_EQ(labels[0].feedback.SerializeAsString(),
            Label("a", 0.25f).SerializeAsString());
  EXPECT_EQ(labels[1].feedback.SerializeAsString(), text.SerializeAsString());
}

TEST_P(LabelStoreTest, AnIdThatIsThereChangesNothing) {
  LabelStore store(*database_);
  EXPECT_THAT(
      *Add(store, "shop", {Label("a", 0.1f), Label("b"), Label("a", 0.9f)}),
      ElementsAre(Outcome::kStored, Outcome::kStored, Outcome::kDuplicate));
  EXPECT_THAT(*Add(store, "shop", {Label("c"), Label("a", 0.7f)}),
              ElementsAre(Outcome::kStored, Outcome::kDuplicate));
  const auto labels = Read(store, "shop", 0, *store.Watermark("shop"));
  ASSERT_EQ(labels.size(), 3u);
  EXPECT_EQ(labels[0].feedback.relevance().grade(), 0.1f);
  EXPECT_EQ(labels[1].feedback.feedback_id(), "b");
  EXPECT_EQ(labels[2].feedback.feedback_id(), "c");
}

TEST_P(LabelStoreTest, ModelsAreApart) {
  LabelStore store(*database_);
  ASSERT_TRUE(Add(store, "shop", {Label("a")}).ok());
  EXPECT_THAT(*Add(store, "other", {Label("a"), Label("b")}),
              ElementsAre(Outcome::kStored, Outcome::kStored));
  EXPECT_EQ(Read(store, "shop", 0, 1000).size(), 1u);
  EXPECT_EQ(Read(store, "other", 0, 1000).size(), 2u);
  EXPECT_LT(*store.Watermark("shop"), *store.Watermark("other"));
  EXPECT_EQ(*store.Watermark("third"), 0);
}

// More than one page of Read, and every size of insert.
TEST_P(LabelStoreTest, ReadsAndCountsRangesOfThousands) {
  LabelStore store(*database_);
  std::vector<v1::Feedback> labels;
  for (int i = 0; i < 2500; ++i) labels.push_back(Label(absl::StrCat(i)));
  EXPECT_THAT(*Add(store, "shop", labels), Each(Outcome::kStored));
  const auto all = Read(store, "shop", 0, *store.Watermark("shop"));
  ASSERT_EQ(all.size(), 2500u);
  for (int i = 0; i < 2500; ++i) {
    ASSERT_EQ(all[i].feedback.feedback_id(), absl::StrCat(i));
    ASSERT_TRUE(i == 0 || all[i].number > all[i - 1].number) << i;
  }
  EXPECT_EQ(*store.Count("shop", 0, all.back().number), 2500);
  EXPECT_EQ(*store.Count("shop", all[99].number, all[1299].number), 1200);
  const auto part = Read(store, "shop", all[99].number, all[1299].number);
  ASSERT_EQ(part.size(), 1200u);
  EXPECT_EQ(part.front().number, all[100].number);
  EXPECT_EQ(part.back().number, all[1299].number);
}

TEST_P(LabelStoreTest, VisitorEndsTheReadAndMayUseTheStore) {
  LabelStore store(*database_);
  ASSERT_TRUE(Add(store, "shop", {Label("a"), Label("b"), Label("c")}).ok());
  int visits = 0;
  const absl::Status status =
      store.Read("shop", 0, 1000, [&](const StoredLabel& label) {
        EXPECT_TRUE(
            Add(store, "shop", {Label(absl::StrCat("new", visits))}).ok());
        return ++visits == 2 ? absl::CancelledError(absl::StrCat(
                                   "at ", label.feedback.feedback_id()))
                             : absl::OkStatus();
      });
  EXPECT_EQ(status, absl::CancelledError("at b"));
  EXPECT_EQ(visits, 2);
}

TEST_P(LabelStoreTest, DamagedPayloadIsDataLoss) {
  LabelStore store(*database_);
  ASSERT_TRUE(Add(store, "shop", {Label("a")}).ok());
  ASSERT_TRUE(Execute("update labels set payload = 'no base64!'").ok());
  const absl::Status status = store.Read(
      "shop", 0, 1000, [](const StoredLabel&) { return absl::OkStatus(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("label 1"));
}

// PostgreSQL would take "a\0b" for "a".
TEST_P(LabelStoreTest, RefusesAnIdWithANulByte) {
  LabelStore store(*database_);
  const auto result =
      Add(store, "shop", {Label("b"), Label(std::string("a\0b", 3))});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(*store.Watermark("shop"), 0);  // all or nothing
}

TEST_P(LabelStoreTest, ErrorsHoldNoText) {
  LabelStore store(*database_);
  ASSERT_TRUE(Execute("drop table labels").ok());
  const auto result = Add(store, "shop", {Label("secret-id")});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(std::string(result.status().message()).find("secret-id"),
            std::string::npos);
}

// Four writers, in two processes' worth of connections, and one who follows:
// what lies at or below a watermark once seen never changes.
TEST_P(LabelStoreTest, NumbersFollowTheOrderOfCommits) {
  constexpr int kWriters = 4, kBatches = 25, kBatch = 20;
  const std::unique_ptr<Database> other = Open();
  std::atomic<int> running = kWriters;
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      LabelStore store(w % 2 == 0 ? *database_ : *other);
      for (int b = 0; b < kBatches; ++b) {
        std::vector<v1::Feedback> labels;
        for (int i = 0; i < kBatch; ++i) {
          labels.push_back(Label(absl::StrCat(w, "-", b, "-", i)));
        }
        EXPECT_THAT(*Add(store, "shop", labels), Each(Outcome::kStored));
      }
      --running;
    });
  }
  LabelStore store(*database_);
  std::vector<int64_t> followed;
  int64_t seen = 0;
  int rounds = 0;
  for (bool last = false; !last; ++rounds) {
    last = running == 0;
    const int64_t watermark = *store.Watermark("shop");
    for (const StoredLabel& label : Read(store, "shop", seen, watermark)) {
      followed.push_back(label.number);
    }
    seen = watermark;
    EXPECT_EQ(*store.Count("shop", 0, watermark),
              static_cast<int64_t>(followed.size()));
  }
  for (std::thread& writer : writers) writer.join();
  std::vector<int64_t> all;
  for (const StoredLabel& label : Read(store, "shop", 0, seen)) {
    all.push_back(label.number);
  }
  EXPECT_EQ(all.size(), size_t{kWriters * kBatches * kBatch});
  EXPECT_EQ(followed, all);
  EXPECT_GT(rounds, 2);
}

}  // namespace
}  // namespace vitrine
