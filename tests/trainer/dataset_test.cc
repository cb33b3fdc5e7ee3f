#include "trainer/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kItems[] =
    R"({"id":"a","title":"Red sofa","brand":"Oak","categories":["Home","Sofas"],)"
    R"("attributes":{"color":"red","seats":3,"new":true,"none":null}}
{"item_id":"b","title":"Lamp","category":"Lights","attributes":["x","y"]}
{"id":7,"title":"Rug","unknown_field":[1,2]}
)";

class DatasetTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& content) {
    const std::string path = folder_.File("data.jsonl");
    EXPECT_TRUE(WriteFile(path, content).ok());
    return path;
  }

  Catalogue Items() {
    std::string digest;
    absl::StatusOr<Catalogue> catalogue = ReadItems(Write(kItems), &digest);
    EXPECT_TRUE(catalogue.ok()) << catalogue.status();
    return *catalogue;
  }

  absl::StatusOr<Dataset> Read(internal::HeadKind kind,
                               const std::string& content) {
    catalogue_ = Items();
    digest_.clear();
    return ReadDataset(kind, Write(content), {0, 3}, &catalogue_, &digest_);
  }

  // The error's message; the file and `line` must be in it.
  std::string Error(internal::HeadKind kind, const std::string& content,
                    int line) {
    const absl::StatusOr<Dataset> data = Read(kind, content);
    EXPECT_EQ(data.status().code(), absl::StatusCode::kInvalidArgument);
    const std::string message(data.status().message());
    EXPECT_THAT(message,
                HasSubstr(absl::StrCat(folder_.File("data.jsonl"), ":", line)));
    return message;
  }

  TempFolder folder_;
  Catalogue catalogue_;
  std::string digest_;
};

constexpr auto kRelevance = internal::HEAD_KIND_RELEVANCE;
constexpr auto kRecommendation = internal::HEAD_KIND_RECOMMENDATION;
constexpr auto kInterest = internal::HEAD_KIND_INTEREST;
constexpr auto kClassification = internal::HEAD_KIND_CLASSIFICATION;

TEST_F(DatasetTest, ReadsItemsWithTheirVariants) {
  const Catalogue catalogue = Items();
  ASSERT_EQ(catalogue.items.size(), 3);
  EXPECT_EQ(catalogue.listed, 3);
  EXPECT_EQ(catalogue.items[0].brand(), "Oak");
  EXPECT_THAT(catalogue.items[0].categories(), ElementsAre("Home", "Sofas"));
  EXPECT_EQ(catalogue.items[0].attributes().at("seats"), "3");
  EXPECT_EQ(catalogue.items[0].attributes().at("new"), "true");
  EXPECT_EQ(catalogue.items[0].attributes().size(), 3);
  EXPECT_THAT(catalogue.items[1].categories(), ElementsAre("Lights"));
  EXPECT_EQ(catalogue.items[1].attributes().at("001"), "y");
  EXPECT_EQ(catalogue.by_id.at("7"), 2);
}

TEST_F(DatasetTest, ItemErrorsNameLineAndField) {
  const auto error = [this](const std::string& content) {
    std::string digest;
    return std::string(ReadItems(Write(content), &digest).status().message());
  };
  EXPECT_THAT(error("{\"title\":\"x\"}"),
              AllOf(HasSubstr(":1"), HasSubstr("\"id\": missing")));
  EXPECT_THAT(error("{\"id\":\"a\",\"title\":\"x\"}\n\n"
                    "{\"id\":\"a\",\"title\":\"y\"}"),
              AllOf(HasSubstr(":3"), HasSubstr("there already")));
  EXPECT_THAT(error("{\"id\":\"a\"}"), HasSubstr("\"title\": missing"));
  EXPECT_THAT(error("{\"id\":\"\",\"title\":\"x\"}"),
              HasSubstr("\"id\": empty"));
  EXPECT_THAT(error("{\"id\":\"a\",\"title\":[]}"),
              HasSubstr("\"title\": a string is expected, not array"));
  EXPECT_THAT(error("{\"id\":\"a\",\"title\":\"x\",\"categories\":4}"),
              HasSubstr("\"categories\": a list is expected, not number"));
  EXPECT_THAT(error("{\"id\":\"a\",\"title\":\"x\",\"attributes\":{\"k\":{}}}"),
              HasSubstr("\"attributes.k\": a string is expected, not object"));
  EXPECT_THAT(error(""), HasSubstr("no rows"));
  EXPECT_THAT(error("\n  \n"), HasSubstr("no rows"));
}

TEST_F(DatasetTest, RelevanceTakesItemsByIdInnerOrFlat) {
  const auto data = Read(kRelevance,
                         R"({"query":"sofa","item_id":"a","grade":3}
{"query":"lamp","item":{"id":"z","title":"Tall lamp"},"grade":1.5}
{"query":"rug","title":"Wool rug","item_id":"q","brand":"B","grade":0})");
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->relevance.size(), 3);
  EXPECT_EQ(data->relevance[0].item, 0);
  EXPECT_EQ(data->relevance[1].grade, 1.5);
  EXPECT_EQ(data->relevance[1].weight, 1);
  EXPECT_EQ(catalogue_.items[data->relevance[1].item].title(), "Tall lamp");
  EXPECT_EQ(catalogue_.items[data->relevance[2].item].id(), "q");
  EXPECT_EQ(catalogue_.items[data->relevance[2].item].brand(), "B");
  // Written-out items are no part of the catalogue that is ranked.
  EXPECT_EQ(catalogue_.listed, 3);
  EXPECT_EQ(catalogue_.items.size(), 5);
}

TEST_F(DatasetTest, RelevanceErrorsNameLineAndField) {
  const std::string good = R"({"query":"q","item_id":"a","grade":1})";
  const auto error = [&](const std::string& row) {
    return Error(kRelevance, good + "\n" + row + "\n", 2);
  };
  EXPECT_THAT(error(R"({"item_id":"a","grade":1})"),
              HasSubstr("\"query\": missing"));
  EXPECT_THAT(error(R"({"query":" ","item_id":"a","grade":1})"),
              HasSubstr("\"query\": empty"));
  EXPECT_THAT(error(R"({"query":5,"item_id":"a","grade":1})"),
              HasSubstr("\"query\": a string is expected, not number"));
  EXPECT_THAT(error(R"({"query":"q","item_id":"a"})"),
              HasSubstr("\"grade\": missing"));
  const auto weighing = [&](const std::string& weight) {
    return error(R"({"query":"q","item_id":"a","grade":1,"weight":)" + weight +
                 "}");
  };
  EXPECT_THAT(weighing("0"), HasSubstr("\"weight\": 0 is not above 0"));
  EXPECT_THAT(weighing("-1"), HasSubstr("\"weight\": -1 is not above 0"));
  EXPECT_THAT(weighing("1e99"), HasSubstr("not finite"));
  EXPECT_THAT(weighing("\"2\""), HasSubstr("a number is expected"));
  EXPECT_THAT(error(R"({"query":"q","item_id":"a","grade":"3"})"),
              HasSubstr("\"grade\": a number is expected, not string"));
  EXPECT_THAT(error(R"({"query":"q","item_id":"a","grade":3.5})"),
              HasSubstr("\"grade\": 3.5 is outside 0:3"));
  EXPECT_THAT(error(R"({"query":"q","item_id":"a","grade":-1})"),
              HasSubstr("-1 is outside 0:3"));
  EXPECT_THAT(error(R"({"query":"q","grade":1})"),
              HasSubstr("\"item_id\": missing"));
  EXPECT_THAT(error(R"({"query":"q","item_id":"no","grade":1})"),
              HasSubstr("\"item_id\": unknown item id \"no\""));
  EXPECT_THAT(error(R"({"query":"q","item":"a","grade":1})"),
              HasSubstr("\"item\": an object is expected, not string"));
  EXPECT_THAT(error(R"({"query":"q","item":{},"grade":1})"),
              HasSubstr("\"title\": missing"));
}

TEST_F(DatasetTest, BrokenLinesAreNamedWithoutTheirText) {
  const std::string good = R"({"text":"t","label":"l"})";
  EXPECT_THAT(Error(kClassification, good + "\n{\"text\": \"secret", 2),
              AllOf(HasSubstr("not JSON"), Not(HasSubstr("secret"))));
  EXPECT_THAT(Error(kClassification, good + "\n[1]", 2),
              HasSubstr("a JSON object is expected, not array"));
  EXPECT_THAT(Error(kClassification, good + "\n{\"text\":\"a\xff\"}", 2),
              HasSubstr("invalid UTF-8 at byte 10"));
  EXPECT_THAT(Error(kClassification,
                    good + "\n" + R"({"text":"\ud800","label":"x"})", 2),
              HasSubstr("not JSON"));
}

TEST_F(DatasetTest, HistoriesAreOldestFirstWithNextLast) {
  const auto data = Read(kRecommendation,
                         R"({"user_id":"u","items":["a","b"]}
{"user_id":9,"items":["b",7],"next":"a"})");
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_THAT(data->histories[0].items, ElementsAre(0, 1));
  EXPECT_EQ(data->histories[1].user_id, "9");
  EXPECT_THAT(data->histories[1].items, ElementsAre(1, 2, 0));
}

TEST_F(DatasetTest, HistoryErrorsNameLineAndField) {
  EXPECT_THAT(Error(kRecommendation, R"({"items":["a","b"]})", 1),
              HasSubstr("\"user_id\": missing"));
  EXPECT_THAT(Error(kRecommendation, R"({"user_id":"u"})", 1),
              HasSubstr("\"items\": missing"));
  EXPECT_THAT(Error(kRecommendation, R"({"user_id":"u","items":"a"})", 1),
              HasSubstr("\"items\": a list is expected, not string"));
  EXPECT_THAT(Error(kRecommendation, R"({"user_id":"u","items":["a"]})", 1),
              HasSubstr("at least 2"));
  EXPECT_THAT(
      Error(kRecommendation, R"({"user_id":"u","items":["a","nope"]})", 1),
      HasSubstr("unknown item id \"nope\""));
  EXPECT_THAT(Error(kRecommendation, R"({"user_id":"u","items":["a",[]]})", 1),
              HasSubstr("a string is expected, not array"));
  EXPECT_THAT(Error(kInterest, R"({"user_id":"u","items":["a"]})", 1),
              HasSubstr("\"categories\": missing"));
  EXPECT_THAT(
      Error(kInterest, R"({"user_id":"u","items":[],"categories":[]})", 1),
      HasSubstr("\"items\": empty"));
  EXPECT_THAT(
      Error(kInterest, R"({"user_id":"u","items":["a"],"categories":[3]})", 1),
      HasSubstr("\"categories\": a string is expected, not number"));
}

TEST_F(DatasetTest, ClassificationTakesNumbersAsLabels) {
  const auto data = Read(kClassification,
                         R"({"text":"good","label":1}
{"text":"bad","label":"no"})");
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->texts[0].label, "1");
  EXPECT_THAT(Error(kClassification, R"({"text":"good"})", 1),
              HasSubstr("\"label\": missing"));
  EXPECT_THAT(Error(kClassification, R"({"text":"x","label":1.5})", 1),
              HasSubstr("\"label\": a string is expected, not number"));
}

TEST_F(DatasetTest, DigestTellsRowsAndTheirOrder) {
  const std::string a = R"({"text":"a","label":"x"})";
  const std::string b = R"({"text":"b","label":"x"})";
  ASSERT_TRUE(Read(kClassification, a + "\n" + b).ok());
  const std::string first = digest_;
  EXPECT_EQ(first.size(), 64);
  ASSERT_TRUE(Read(kClassification, a + "\n\n" + b + "\n").ok());
  EXPECT_EQ(digest_, first);
  ASSERT_TRUE(Read(kClassification, b + "\n" + a).ok());
  EXPECT_NE(digest_, first);
}

TEST_F(DatasetTest, SplitKeepsAQueryOnOneSide) {
  std::string rows;
  for (int q = 0; q < 400; ++q) {
    for (int r = 0; r < 3; ++r) {
      absl::StrAppend(&rows, "{\"query\":\"q", q,
                      "\",\"item_id\":\"a\",\"grade\":1}\n");
    }
  }
  const Dataset all = *Read(kRelevance, rows);
  const Split split = SplitDataset(all, 0.25);
  std::set<std::string> training, validation;
  for (const auto& row : split.training.relevance) training.insert(row.query);
  for (const auto& row : split.validation.relevance) {
    validation.insert(row.query);
    EXPECT_EQ(training.count(row.query), 0) << row.query;
  }
  EXPECT_EQ(split.training.size() + split.validation.size(), 1200);
  EXPECT_EQ(split.validation.size(), 3 * validation.size());
  EXPECT_NEAR(validation.size(), 100, 30);
  EXPECT_EQ(SplitDataset(all, 0).validation.size(), 0);
  // Case and spaces do not part a query from itself.
  Dataset loud = all;
  for (auto& row : loud.relevance) {
    row.query = absl::StrCat(" ", absl::AsciiStrToUpper(row.query), "  ");
  }
  EXPECT_EQ(SplitDataset(loud, 0.25).validation.size(),
            split.validation.size());
  // A row's side depends on nothing else: half the rows, the same sides.
  Dataset half = all;
  half.relevance.resize(600);
  for (const auto& row : SplitDataset(half, 0.25).validation.relevance) {
    EXPECT_EQ(validation.count(row.query), 1);
  }
}

}  // namespace
}  // namespace vitrine
