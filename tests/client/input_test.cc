#include "client/input.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string WriteLines(const std::string& name, const std::string& text) {
  const std::string path = ::testing::TempDir() + "/" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

TEST(ParseItemTest, ReadsCataloguesOfManyKinds) {
  const auto item = ParseItem(
      R"({"item_id": 7, "title": "Sofa", "brand": "Arbo", "price": 3.5,)"
      R"( "categories": "Sofas", "attributes": {"width": 180, "new": true,)"
      R"( "colors": ["red", "blue"], "none": null}})");
  ASSERT_TRUE(item.ok()) << item.status();
  EXPECT_EQ(item->id(), "7");
  EXPECT_EQ(item->title(), "Sofa");
  EXPECT_THAT(item->categories(), ElementsAre("Sofas"));
  EXPECT_EQ(item->attributes().at("width"), "180");
  EXPECT_EQ(item->attributes().at("new"), "true");
  EXPECT_EQ(item->attributes().at("colors"), "red blue");
  EXPECT_EQ(item->attributes().at("none"), "");
}

TEST(ParseItemTest, IdWinsOverItemId) {
  EXPECT_EQ(ParseItem(R"({"item_id": "a", "id": "b"})")->id(), "b");
}

TEST(ParseItemTest, SaysWhatIsWrong) {
  const std::pair<const char*, const char*> cases[] = {
      {"[1]", "a JSON array, not an object"},
      {"{", "not JSON"},
      {"{\"title\": \"\xff\"}", "not JSON"},
      {R"({"title": {"en": "Sofa"}})", "\"title\" is an object"},
      {R"({"attributes": 3})", "\"attributes\" is not an object"},
  };
  for (const auto& [json, message] : cases) {
    const auto item = ParseItem(json);
    EXPECT_TRUE(absl::IsInvalidArgument(item.status())) << json;
    EXPECT_THAT(std::string(item.status().message()), HasSubstr(message));
  }
}

TEST(ReadItemsTest, NamesFileAndLineOfAnError) {
  const std::string path =
      WriteLines("items.jsonl", "{\"title\":\"a\"}\n\n{\"title\":\n");
  const absl::Status status = ReadItems(path).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr(path + ":3: not JSON"));
}

TEST(ReadItemsTest, AMissingAndAnEmptyFileAreErrors) {
  EXPECT_TRUE(absl::IsNotFound(ReadItems("/no/such/file").status()));
  EXPECT_FALSE(ReadItems(::testing::TempDir()).ok());  // a folder
  const absl::Status status = ReadItems(WriteLines("none.jsonl", "")).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("none.jsonl: empty"));
}

TEST(ReadQueriesTest, TakesPlainAndJsonLines) {
  const auto queries = ReadQueries(
      WriteLines("queries", "red sofa\r\n{\"query\": \"bed\", \"n\": 1}\n"));
  ASSERT_TRUE(queries.ok()) << queries.status();
  EXPECT_THAT(*queries, ElementsAre("red sofa", "bed"));
}

TEST(ReadTextsTest, RefusesInvalidUtf8) {
  const absl::Status status = ReadTexts(WriteLines("texts",
                                                   "good\nb\xc3\x28"
                                                   "d\n"))
                                  .status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("texts:2: "));
}

TEST(FindMethodTest, KnowsTheMethodsByTheirNames) {
  for (const char* name : {"Rank", "rank", "score", "embed", "classify",
                           "PredictInterests", "interests"}) {
    EXPECT_TRUE(FindMethod(name).ok()) << name;
  }
  const absl::Status status = FindMethod("ListModels").status();
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("Score, Rank, PredictInterests, Embed, Classify"));
}

TEST(ParseRequestTest, TheMethodIsInTheLineOrGiven) {
  const auto named = ParseRequest(
      R"({"method": "rank", "context": {"query": "sofa"}, "topK": 3})",
      nullptr);
  ASSERT_TRUE(named.ok()) << named.status();
  const auto& rank = static_cast<const v1::RankRequest&>(*named->message);
  EXPECT_EQ(rank.context().query(), "sofa");
  EXPECT_EQ(rank.top_k(), 3);

  const auto given =
      ParseRequest(R"({"texts": ["a", "b"]})", *FindMethod("Embed"));
  ASSERT_TRUE(given.ok()) << given.status();
  EXPECT_EQ(static_cast<const v1::EmbedRequest&>(*given->message).texts_size(),
            2);
}

TEST(ParseRequestTest, SaysWhatIsWrong) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"contxt": {}})", "contxt"},
      {R"({"method": "Score"})", "a request for Score, not for Rank"},
      {R"({"method": "Sort"})", "no method \"Sort\""},
      {R"({"method": 1})", "\"method\" is not text"},
      {R"({"top_k": "many"})", "not a RankRequest"},
  };
  for (const auto& [json, message] : cases) {
    const absl::Status status =
        ParseRequest(json, *FindMethod("Rank")).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << json;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  EXPECT_THAT(std::string(ParseRequest("{}", nullptr).status().message()),
              HasSubstr("no \"method\""));
}

TEST(ToJsonLineTest, ComesBackAsItWas) {
  v1::RankRequest request;
  request.mutable_context()->set_query("sofa \"red\"\n沙发");
  request.add_items()->set_title("Couch");
  const std::string line = ToJsonLine(request);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_THAT(line, HasSubstr("\"top_k\":0"));
  EXPECT_EQ(line.find("personalization_weight"), std::string::npos)
      << "an unset optional field is not zero";
  const auto back = ParseRequest(line, *FindMethod("Rank"));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->message->SerializeAsString(), request.SerializeAsString());
}

}  // namespace
}  // namespace vitrine
