#include "model/lexical_scorer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/file.h"
#include "model/head_tables.h"
#include "model/safetensors.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::HasSubstr;
using ::testing::Pair;

LexicalTable Sevens() {
  return {.ngrams = {{7}, {7, 8}, {9}},
          .idf = {1, 2, 3},
          .unlisted_idf = 4,
          .item_tokens = 2,
          .query_weights = {0.1f, 0.2f, 0.3f},
          .item_weights = {-1, 1, 2},
          .overlap = {.cosine = 0.5f, .share = 0.25f, .bm25 = 2},
          .bias = -0.5f,
          .mixture = {.encoder_weight = 2, .lexical_weight = 3, .bias = 0.5f}};
}

std::unique_ptr<const LexicalScorer> Scorer() {
  auto scorer = LexicalScorer::Create(Sevens());
  EXPECT_TRUE(scorer.ok()) << scorer.status();
  return *std::move(scorer);
}

TEST(LexicalScorerTest, AddsUpWordsAndOverlap) {
  const auto scorer = Scorer();
  // A token twice counts once; 5 is not listed.
  const LexicalScorer::Query query = scorer->OfQuery({7, 8, 5, 7});
  const double seven = 1 + std::log(2.0), pair = 2;
  const double norm = std::sqrt(seven * seven + pair * pair);
  EXPECT_THAT(query.features,
              ElementsAre(Pair(0, FloatNear(seven / norm, 1e-6)),
                          Pair(1, FloatNear(pair / norm, 1e-6))));
  EXPECT_THAT(query.tokens, ElementsAre(Pair(5, 4), Pair(7, 1), Pair(8, 4)));
  EXPECT_NEAR(query.value, (0.1 * seven + 0.2 * pair) / norm, 1e-6);

  const std::vector<int32_t> item = {9, 7, 7, 5};
  const double item_norm = std::sqrt(seven * seven + 9);
  const LexicalScorer::Features features = scorer->OfItem(item);
  const Overlap overlap = scorer->OverlapOf(query, item, features);
  EXPECT_NEAR(overlap.cosine, seven / norm * seven / item_norm, 1e-6);
  EXPECT_NEAR(overlap.share, 2 / 3.0, 1e-6);
  const double length = 1.2 * (0.25 + 0.75 * 4 / 2);
  const double bm25 =
      (4 * 1 * 2.2 / (1 + length) + 1 * 2 * 2.2 / (2 + length)) / 25;
  EXPECT_NEAR(overlap.bm25, bm25, 1e-6);
  EXPECT_NEAR(scorer->Value(query, item),
              -0.5 + query.value + 0.5 * overlap.cosine + 0.25 * overlap.share +
                  2 * overlap.bm25 + (-1 * seven + 2 * 3) / item_norm,
              1e-5);
}

TEST(LexicalScorerTest, OfNothingTheBiasIsLeft) {
  const auto scorer = Scorer();
  EXPECT_EQ(scorer->Value(scorer->OfQuery({}), {}), -0.5f);
  EXPECT_EQ(scorer->Value(scorer->OfQuery({1}), {2}), -0.5f);
}

TEST(LexicalScorerTest, AWholeTextIsAllOverlap) {
  const auto scorer = Scorer();
  const std::vector<int32_t> ids = {7, 8, 9};
  const Overlap overlap =
      scorer->OverlapOf(scorer->OfQuery(ids), ids, scorer->OfItem(ids));
  EXPECT_NEAR(overlap.cosine, 1, 1e-6);
  EXPECT_EQ(overlap.share, 1);
}

TEST(LexicalScorerTest, CombinesWithTheEncodersLogit) {
  EXPECT_FLOAT_EQ(Scorer()->mixture().Logit(1.5f, -0.25f),
                  2 * 1.5f - 3 * 0.25f + 0.5f);
  EXPECT_EQ(LexicalMixture().Logit(1.5f, 9), 1.5f);
}

TEST(LexicalScorerTest, ReadsBackWhatItWrote) {
  const TempFolder folder;
  const std::string path = folder.File("l");
  ASSERT_TRUE(Scorer()->Write(path).ok());
  const auto read = LexicalScorer::Open(path);
  ASSERT_TRUE(read.ok()) << read.status();
  const LexicalTable& table = (*read)->table();
  EXPECT_EQ(table.ngrams, Sevens().ngrams);
  EXPECT_EQ(table.idf, Sevens().idf);
  EXPECT_EQ(table.unlisted_idf, 4);
  EXPECT_EQ(table.item_tokens, 2);
  EXPECT_EQ(table.query_weights, Sevens().query_weights);
  EXPECT_EQ(table.item_weights, Sevens().item_weights);
  EXPECT_EQ(table.overlap.cosine, 0.5f);
  EXPECT_EQ(table.overlap.share, 0.25f);
  EXPECT_EQ(table.overlap.bm25, 2);
  EXPECT_EQ(table.bias, -0.5f);
  EXPECT_EQ(table.mixture.encoder_weight, 2);
  EXPECT_EQ(table.mixture.lexical_weight, 3);
  EXPECT_EQ(table.mixture.bias, 0.5f);
  EXPECT_NEAR((*read)->size_bytes(), ReadFile(path)->size(), 1024);
}

TEST(LexicalScorerTest, RefusesATableThatDoesNotFit) {
  const auto error = [](const std::function<void(LexicalTable*)>& change) {
    LexicalTable table = Sevens();
    change(&table);
    const auto made = LexicalScorer::Create(std::move(table));
    return std::string(made.status().message());
  };
  EXPECT_EQ(error([](LexicalTable*) {}), "");
  EXPECT_THAT(error([](LexicalTable* t) { t->idf.pop_back(); }),
              HasSubstr("idf of 2"));
  EXPECT_THAT(error([](LexicalTable* t) { t->ngrams[1] = {7}; }),
              HasSubstr("number 1 is not above"));
  EXPECT_THAT(error([](LexicalTable* t) { t->item_weights.pop_back(); }),
              HasSubstr("2 item_weights"));
  EXPECT_THAT(error([](LexicalTable* t) { t->query_weights[2] = NAN; }),
              HasSubstr("query_weights: number 2 is nan"));
  EXPECT_THAT(error([](LexicalTable* t) { t->overlap.bm25 = INFINITY; }),
              HasSubstr("overlap: number 2 is inf"));
  EXPECT_THAT(error([](LexicalTable* t) { t->item_tokens = 0; }),
              HasSubstr("statistics: 4 and 0"));
  EXPECT_THAT(error([](LexicalTable* t) { t->unlisted_idf = NAN; }),
              HasSubstr("statistics: nan"));
  EXPECT_THAT(error([](LexicalTable* t) { t->bias = NAN; }),
              HasSubstr("bias: number 0"));
  EXPECT_THAT(error([](LexicalTable* t) { t->mixture.encoder_weight = -1; }),
              HasSubstr("mixture: -1"));
  EXPECT_THAT(error([](LexicalTable* t) { t->mixture.bias = NAN; }),
              HasSubstr("mixture: number 0 is nan"));
}

TEST(LexicalScorerTest, ErrorsOfAFileNameIt) {
  const TempFolder folder;
  const std::string path = folder.File("l");
  const auto error = [&path] {
    return LexicalScorer::Open(path).status().ToString();
  };
  EXPECT_THAT(error(), HasSubstr(path));
  ASSERT_TRUE(
      WriteSafetensors(path, {{"more", TensorType::kF32, {1}, {1}}}).ok());
  EXPECT_THAT(error(), HasSubstr("more: no such tensor"));
  ASSERT_TRUE(
      WriteSafetensors(path, {{"bias", TensorType::kF32, {1}, {1}}}).ok());
  EXPECT_THAT(error(), HasSubstr("ngrams: missing"));
}

TEST(LexicalScorerTest, NoCutOfAFileIsRead) {
  const TempFolder folder;
  const std::string path = folder.File("l");
  ASSERT_TRUE(Scorer()->Write(path).ok());
  const std::string whole = *ReadFile(path);
  for (size_t size = 0; size < whole.size(); size += 7) {
    ASSERT_TRUE(WriteFile(path, whole.substr(0, size)).ok());
    EXPECT_FALSE(LexicalScorer::Open(path).ok()) << size;
  }
}

TEST(LexicalScorerTest, IsARelevanceHeadsTable) {
  const TempFolder folder;
  internal::Head head;
  head.set_name("search");
  head.set_kind(internal::HEAD_KIND_RELEVANCE);
  ASSERT_TRUE(
      WriteHeadTables(folder.path(), "search", {.lexical = Scorer()}).ok());
  auto tables = OpenHeadTables(folder.path(), {head});
  ASSERT_TRUE(tables.ok()) << tables.status();
  ASSERT_NE(tables->at(0).lexical, nullptr);
  EXPECT_GT(tables->at(0).size_bytes(), 0);
  ASSERT_TRUE(WriteFile(folder.File(LexicalFile("search")), "{}").ok());
  EXPECT_THAT(OpenHeadTables(folder.path(), {head}).status().ToString(),
              HasSubstr("search.lexical.safetensors"));
}

}  // namespace
}  // namespace vitrine
