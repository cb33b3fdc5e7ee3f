#include "model/ngram_classifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/file.h"
#include "model/head_tables.h"
#include "model/safetensors.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Token 7 speaks for label 0, 7 before 8 for label 1.
NgramTable Sevens() {
  return {.ngrams = {{7}, {7, 8}, {9}},
          .idf = {1, 2, 3},
          .bias = {0.5, -0.5},
          .weights = {1, -1, -2, 2, 0, 4},
          .mixture = {.encoder_weight = 2, .ngram_weight = 3}};
}

std::unique_ptr<const NgramClassifier> Classifier() {
  auto classifier = NgramClassifier::Create(Sevens());
  EXPECT_TRUE(classifier.ok()) << classifier.status();
  return *std::move(classifier);
}

TEST(NgramClassifierTest, WeighsByCountAndRarity) {
  // Token 7 twice, and once before 8; 8 alone is not known.
  const double seven = 1 + std::log(2.0), pair = 2;
  const double norm = std::sqrt(seven * seven + pair * pair);
  EXPECT_THAT(Classifier()->Margins({7, 8, 7}),
              ElementsAre(FloatNear(0.5 + (seven - 2 * pair) / norm, 1e-5),
                          FloatNear(-0.5 + (-seven + 2 * pair) / norm, 1e-5)));
}

TEST(NgramClassifierTest, OfUnknownTokensTheBiasIsLeft) {
  EXPECT_THAT(Classifier()->Margins({1, 2, 3}), ElementsAre(0.5, -0.5));
  EXPECT_THAT(Classifier()->Margins({}), ElementsAre(0.5, -0.5));
}

TEST(NgramClassifierTest, CombinesWithTheEncodersLogits) {
  std::vector<float> logits = {1, -1, 10};
  Classifier()->mixture().Combine({0.5, 0.25}, absl::MakeSpan(logits));
  // The last label is newer than the classifier.
  EXPECT_THAT(logits, ElementsAre(3.5, -1.25, 20));
}

TEST(NgramClassifierTest, ReadsBackWhatItWrote) {
  const TempFolder folder;
  const std::string path = folder.File("n");
  ASSERT_TRUE(Classifier()->Write(path).ok());
  const auto read = NgramClassifier::Open(path);
  ASSERT_TRUE(read.ok()) << read.status();
  const NgramTable& table = (*read)->table();
  EXPECT_EQ(table.ngrams, Sevens().ngrams);
  EXPECT_EQ(table.idf, Sevens().idf);
  EXPECT_EQ(table.bias, Sevens().bias);
  EXPECT_EQ(table.weights, Sevens().weights);
  EXPECT_EQ(table.mixture.encoder_weight, 2);
  EXPECT_EQ(table.mixture.ngram_weight, 3);
  EXPECT_NEAR((*read)->size_bytes(), ReadFile(path)->size(), 1024);
  EXPECT_THAT(table.splits.table().tokens, IsEmpty());
}

TEST(NgramClassifierTest, ReadsTokensByTheirParts) {
  NgramTable table = Sevens();
  table.splits = *TokenSplits::Create({{70}, {2}, {7, 8}});
  const auto made = NgramClassifier::Create(std::move(table));
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)->Margins({70}), Classifier()->Margins({7, 8}));
  const TempFolder folder;
  ASSERT_TRUE((*made)->Write(folder.File("n")).ok());
  const auto read = NgramClassifier::Open(folder.File("n"));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)->Margins({1, 70, 9}), (*made)->Margins({1, 70, 9}));
}

TEST(NgramClassifierTest, RefusesATableThatDoesNotFit) {
  const auto error = [](const std::function<void(NgramTable*)>& change) {
    NgramTable table = Sevens();
    change(&table);
    const auto made = NgramClassifier::Create(std::move(table));
    return std::string(made.status().message());
  };
  EXPECT_EQ(error([](NgramTable*) {}), "");
  EXPECT_THAT(error([](NgramTable* t) { t->idf.pop_back(); }),
              HasSubstr("idf of 2"));
  EXPECT_THAT(error([](NgramTable* t) { t->weights.pop_back(); }),
              HasSubstr("5 weights"));
  EXPECT_THAT(error([](NgramTable* t) {
                t->bias.resize(1);
                t->weights.resize(3);
              }),
              HasSubstr("1 labels"));
  EXPECT_THAT(error([](NgramTable* t) { t->ngrams[1] = {7}; }),
              HasSubstr("number 1 is not above"));
  EXPECT_THAT(error([](NgramTable* t) { t->weights[2] = NAN; }),
              HasSubstr("weights: number 2 is nan"));
  EXPECT_THAT(error([](NgramTable* t) { t->bias[0] = INFINITY; }),
              HasSubstr("bias: number 0 is inf"));
  EXPECT_THAT(error([](NgramTable* t) { t->mixture.ngram_weight = -1; }),
              HasSubstr("mixture: -1"));
  EXPECT_THAT(error([](NgramTable* t) { t->mixture.encoder_weight = NAN; }),
              HasSubstr("mixture: nan"));
}

TEST(NgramClassifierTest, ErrorsOfAFileNameIt) {
  const TempFolder folder;
  const std::string path = folder.File("n");
  const auto error = [&path] {
    return NgramClassifier::Open(path).status().ToString();
  };
  EXPECT_THAT(error(), HasSubstr(path));
  ASSERT_TRUE(
      WriteSafetensors(path, {{"bias", TensorType::kF32, {1}, {1}}}).ok());
  EXPECT_THAT(error(), HasSubstr("ngrams: missing"));
  ASSERT_TRUE(
      WriteSafetensors(path, {{"more", TensorType::kF32, {1}, {1}}}).ok());
  EXPECT_THAT(error(), HasSubstr("more: no such tensor"));
  ASSERT_TRUE(
      WriteSafetensors(path, {{"ngrams", TensorType::kF32, {1}, {1}}}).ok());
  EXPECT_THAT(error(), HasSubstr("ngrams: not a table"));
  ASSERT_TRUE(
      WriteSafetensors(path, {{"ngrams", TensorType::kF32, {1, 3}, {1, 2, 3}}})
          .ok());
  EXPECT_THAT(error(), HasSubstr("ngrams: of 3 tokens"));
}

TEST(NgramClassifierTest, NoCutOfAFileIsRead) {
  const TempFolder folder;
  const std::string path = folder.File("n");
  ASSERT_TRUE(Classifier()->Write(path).ok());
  const std::string whole = *ReadFile(path);
  for (size_t size = 0; size < whole.size(); size += 7) {
    ASSERT_TRUE(WriteFile(path, whole.substr(0, size)).ok());
    EXPECT_FALSE(NgramClassifier::Open(path).ok()) << size;
  }
}

class HeadTablesTest : public ::testing::Test {
 protected:
  HeadTablesTest() {
    labels_.set_name("topic");
    labels_.set_kind(internal::HEAD_KIND_CLASSIFICATION);
    labels_.add_labels("a");
    labels_.add_labels("b");
    items_.set_name("next");
    items_.set_kind(internal::HEAD_KIND_RECOMMENDATION);
  }

  const TempFolder folder_;
  internal::Head labels_, items_;
};

TEST_F(HeadTablesTest, OpensEachKindsOwn) {
  auto tables = OpenHeadTables(folder_.path(), {items_, labels_});
  ASSERT_TRUE(tables.ok()) << tables.status();
  for (const HeadTables& of : *tables) {
    EXPECT_EQ(of.counts, nullptr);
    EXPECT_EQ(of.ngrams, nullptr);
    EXPECT_EQ(of.size_bytes(), 0);
  }
  const std::shared_ptr<const Cooccurrence> counts =
      *Cooccurrence::Create({.ids = {"a"},
                             .popularity = {1},
                             .neighbour_ends = {0},
                             .neighbours = {},
                             .weights = {}});
  ASSERT_TRUE(WriteHeadTables(folder_.path(), "next", {.counts = counts}).ok());
  ASSERT_TRUE(
      WriteHeadTables(folder_.path(), "topic", {.ngrams = Classifier()}).ok());
  tables = OpenHeadTables(folder_.path(), {items_, labels_});
  ASSERT_TRUE(tables.ok()) << tables.status();
  EXPECT_EQ(tables->at(0).counts->size(), 1);
  EXPECT_EQ(tables->at(0).ngrams, nullptr);
  EXPECT_EQ(tables->at(1).counts, nullptr);
  EXPECT_EQ(tables->at(1).ngrams->labels(), 2);
  EXPECT_GT(tables->at(1).size_bytes(), 0);
}

TEST_F(HeadTablesTest, RefusesAFileOfOtherLabelsOrNone) {
  ASSERT_TRUE(
      WriteHeadTables(folder_.path(), "topic", {.ngrams = Classifier()}).ok());
  labels_.add_labels("c");
  const auto error = [this](const internal::Head& head) {
    return OpenHeadTables(folder_.path(), {head}).status().ToString();
  };
  EXPECT_THAT(error(labels_),
              HasSubstr("topic.ngrams.safetensors: of 2 labels"));
  const std::string path = folder_.File(CooccurrenceFile("next"));
  ASSERT_TRUE(WriteFile(path, "{}").ok());
  EXPECT_THAT(error(items_), HasSubstr(path));
}

}  // namespace
}  // namespace vitrine
