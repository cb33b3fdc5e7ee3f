#include "client/feedback_input.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

FeedbackInput Input() {
  FeedbackInput input;
  for (const char* id : {"s1", "s2"}) {
    input.items[id].set_id(id);
    input.items[id].set_title(std::string("Sofa ") + id);
  }
  input.head = "spam";
  return input;
}

std::vector<v1::Feedback> Parse(const std::string& row,
                                const FeedbackInput& input = Input()) {
  const auto entries = ParseFeedback(row, input);
  EXPECT_TRUE(entries.ok()) << entries.status();
  return entries.ok() ? *entries : std::vector<v1::Feedback>();
}

TEST(FeedbackInputTest, ReadsFeedbackInItsJsonForm) {
  const auto entries = Parse(
      R"({"feedback_id": "f1", "time": "2024-05-01T10:00:00Z",
          "interaction": {"user_id": "u", "item": {"id": "s9", "title": "x"},
                          "type": "INTERACTION_TYPE_CLICK", "position": 2}})");
  ASSERT_THAT(entries, SizeIs(1));
  EXPECT_EQ(entries[0].feedback_id(), "f1");
  EXPECT_EQ(entries[0].time().seconds(), 1714557600);
  EXPECT_EQ(entries[0].interaction().user_id(), "u");
  EXPECT_EQ(entries[0].interaction().type(), v1::INTERACTION_TYPE_CLICK);
  EXPECT_EQ(entries[0].interaction().position(), 2);
  EXPECT_EQ(Parse(R"({"feedbackId": "f2", "textLabel": {"head": "h"}})")[0]
                .feedback_id(),
            "f2");
}

TEST(FeedbackInputTest, ReadsJudgements) {
  const auto by_id = Parse(R"({"query": "sofa", "grade": 2, "item_id": "s2"})");
  ASSERT_THAT(by_id, SizeIs(1));
  EXPECT_EQ(by_id[0].relevance().query(), "sofa");
  EXPECT_EQ(by_id[0].relevance().item().title(), "Sofa s2");
  EXPECT_FLOAT_EQ(by_id[0].relevance().grade(), 2.0f / 3);
  EXPECT_EQ(Parse(R"({"query": "q", "grade": 0, "item": {"title": "Own"}})")[0]
                .relevance()
                .item()
                .title(),
            "Own");
  EXPECT_EQ(Parse(R"({"query": "q", "grade": 3, "title": "Own"})")[0]
                .relevance()
                .item()
                .title(),
            "Own");
  FeedbackInput input = Input();
  input.min_grade = 1;
  input.max_grade = 5;
  EXPECT_EQ(Parse(R"({"query": "q", "grade": 4, "item_id": "s1"})", input)[0]
                .relevance()
                .grade(),
            0.75f);
}

TEST(FeedbackInputTest, ReadsHistories) {
  const auto events = Parse(R"({"user_id": "u", "items": ["s2", "s1", "s2"]})");
  ASSERT_THAT(events, SizeIs(3));
  EXPECT_EQ(events[0].interaction().item().id(), "s2");
  EXPECT_EQ(events[1].interaction().item().id(), "s1");
  EXPECT_EQ(events[1].interaction().user_id(), "u");
  EXPECT_EQ(events[2].interaction().type(), v1::INTERACTION_TYPE_PURCHASE);
  EXPECT_NE(events[0].feedback_id(), events[2].feedback_id());
  const auto label = Parse(
      R"({"user_id": "u", "items": ["s1", "s2"], "categories": ["a", "b"]})");
  ASSERT_THAT(label, SizeIs(1));
  EXPECT_EQ(label[0].interest().user_id(), "u");
  EXPECT_EQ(label[0].interest().history(1).item().title(), "Sofa s2");
  EXPECT_THAT(label[0].interest().categories(), ElementsAre("a", "b"));
}

TEST(FeedbackInputTest, ReadsTextLabels) {
  const auto entries = Parse(R"({"text": "buy now", "label": "spam"})");
  ASSERT_THAT(entries, SizeIs(1));
  EXPECT_EQ(entries[0].text_label().head(), "spam");
  EXPECT_EQ(entries[0].text_label().text(), "buy now");
  EXPECT_EQ(entries[0].text_label().label(), "spam");
}

TEST(FeedbackInputTest, EqualRowsHaveEqualIds) {
  const std::string id =
      Parse(R"({"text": "a", "label": "b"})")[0].feedback_id();
  EXPECT_THAT(id, SizeIs(32));
  EXPECT_EQ(Parse(R"({ "label":"b","text" : "a" })")[0].feedback_id(), id);
  EXPECT_NE(Parse(R"({"text": "a", "label": "c"})")[0].feedback_id(), id);
  FeedbackInput other = Input();
  other.head = "mood";
  EXPECT_NE(Parse(R"({"text": "a", "label": "b"})", other)[0].feedback_id(),
            id);
  const std::string judgement =
      R"({"query": "q", "grade": 2, "item_id": "s1"})";
  FeedbackInput same = Input(), scaled = Input();
  same.items["s1"].set_title("a new title");
  scaled.max_grade = 4;
  EXPECT_EQ(Parse(judgement, same)[0].feedback_id(),
            Parse(judgement)[0].feedback_id());
  EXPECT_NE(Parse(judgement, scaled)[0].feedback_id(),
            Parse(judgement)[0].feedback_id());
  EXPECT_EQ(Parse(R"({"feedback_id": "own", "text": "a", "label": "b"})")[0]
                .feedback_id(),
            "own");
  const auto events =
      Parse(R"({"feedback_id": "own", "user_id": "u", "items": ["s1", "s2"]})");
  EXPECT_EQ(events[0].feedback_id(), "own-0");
  EXPECT_EQ(events[1].feedback_id(), "own-1");
}

TEST(FeedbackInputTest, ErrorsNameWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not JSON"},
      {"{", "not JSON"},
      {"{\"text\": \"\xff\", \"label\": \"a\"}", "not JSON"},
      {"[1]", "a JSON array, not an object"},
      {"{}", "neither a vitrine.v1.Feedback nor"},
      {R"({"relevance": {"querry": "a"}})", "querry"},
      {R"({"query": 1, "grade": 1, "item_id": "s1"})", "\"query\" is not text"},
      {R"({"query": "a", "grade": "1", "item_id": "s1"})",
       "\"grade\" is not a number"},
      {R"({"query": "a", "grade": 4, "item_id": "s1"})",
       "\"grade\": 4 is not in [0, 3] (--grades)"},
      {R"({"query": "a", "grade": -1, "item_id": "s1"})", "\"grade\": -1"},
      {R"({"query": "a", "grade": 1})", "no \"item_id\" in it"},
      {R"({"query": "a", "grade": 1, "item_id": "s3"})",
       "item \"s3\" is not among --items"},
      {R"({"user_id": "u", "items": "s1"})",
       "\"items\" is not a list of texts"},
      {R"({"user_id": "u", "items": ["s1", 2]})",
       "\"items\" is not a list of texts"},
      {R"({"user_id": 1, "items": ["s1"]})", "\"user_id\" is not text"},
      {R"({"user_id": "u", "items": ["s1"], "categories": 1})",
       "\"categories\" is not a list of texts"},
      {R"({"text": 1, "label": "b"})", "\"text\" is not text"},
      {R"({"feedback_id": 7, "text": "a", "label": "b"})",
       "\"feedback_id\" is not text"},
  };
  for (const auto& [row, error] : cases) {
    const absl::Status status = ParseFeedback(row, Input()).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << row << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(error));
  }
  FeedbackInput none;
  EXPECT_THAT(std::string(ParseFeedback(R"({"text": "a", "label": "b"})", none)
                              .status()
                              .message()),
              HasSubstr("--head"));
}

}  // namespace
}  // namespace vitrine
