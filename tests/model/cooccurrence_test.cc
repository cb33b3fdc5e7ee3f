#include "model/cooccurrence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/file.h"
#include "model/safetensors.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// a speaks for b and c, b for a; c for nothing.
CooccurrenceTable Abc() {
  return {.ids = {"a", "b", "item c"},
          .popularity = {3, 2, 1},
          .neighbour_ends = {2, 3, 3},
          .neighbours = {1, 2, 0},
          .weights = {0.5, 0.25, 2},
          .mixture = {.text_weight = 7}};
}

std::unique_ptr<const Cooccurrence> Counts() {
  auto counts = Cooccurrence::Create(Abc());
  EXPECT_TRUE(counts.ok()) << counts.status();
  return *std::move(counts);
}

TEST(CooccurrenceTest, ReadsBackWhatItWrote) {
  const TempFolder folder;
  const std::string path = folder.File("counts");
  ASSERT_TRUE(Counts()->Write(path).ok());
  const auto counts = Cooccurrence::Open(path);
  ASSERT_TRUE(counts.ok()) << counts.status();
  const Cooccurrence& of = **counts;
  EXPECT_EQ(of.size(), 3);
  EXPECT_EQ(of.id(2), "item c");
  EXPECT_EQ(of.Find("item c"), 2);
  EXPECT_EQ(of.popularity(1), 2);
  EXPECT_THAT(of.neighbours(0), ElementsAre(1, 2));
  EXPECT_THAT(of.weights(0), ElementsAre(0.5, 0.25));
  EXPECT_THAT(of.neighbours(1), ElementsAre(0));
  EXPECT_THAT(of.neighbours(2), IsEmpty());
  EXPECT_EQ(of.mixture().text_weight, 7);
  const auto bytes = ReadFile(path);
  ASSERT_TRUE(bytes.ok());
  EXPECT_NEAR(of.size_bytes(), bytes->size(), 1024);
}

TEST(CooccurrenceTest, KnowsNothingOfUnknownIds) {
  const auto counts = Counts();
  EXPECT_EQ(counts->Find("d"), Cooccurrence::kUnknown);
  EXPECT_EQ(counts->Find(""), Cooccurrence::kUnknown);
  EXPECT_EQ(counts->popularity(Cooccurrence::kUnknown), 0);
  EXPECT_THAT(counts->neighbours(Cooccurrence::kUnknown), IsEmpty());
  const HistoryCounts history(*counts, {Cooccurrence::kUnknown}, 0.5);
  EXPECT_THAT(history.all(), IsEmpty());
  EXPECT_EQ(history.Of(Cooccurrence::kUnknown), 0);
}

TEST(CooccurrenceTest, AddsUpAHistoryTheNewestMost) {
  const auto counts = Counts();
  // Oldest first: b, then a.
  const HistoryCounts history(*counts, {1, 0}, 0.5);
  EXPECT_FLOAT_EQ(history.Of(1), 0.5);
  EXPECT_FLOAT_EQ(history.Of(2), 0.25);
  EXPECT_FLOAT_EQ(history.Of(0), 0.5 * 2);
  // What is unknown takes its place.
  const int32_t unknown = Cooccurrence::kUnknown;
  EXPECT_FLOAT_EQ(HistoryCounts(*counts, {0, unknown}, 0.5).Of(1), 0.25);
  // Once, where it was last.
  const HistoryCounts twice(*counts, {0, 1, 0, 0}, 0.5);
  EXPECT_FLOAT_EQ(twice.Of(1), 0.5);
  EXPECT_FLOAT_EQ(twice.Of(0), 0.5 * 2);
}

TEST(CooccurrenceTest, CombinesTextCountsAndPopularity) {
  const Mixture mixture = {.text_weight = 4,
                           .count_scale = 10,
                           .count_power = 0.5,
                           .popularity_power = 2};
  EXPECT_NEAR(mixture.Logit(0.5, 4, 1), 4 * 0.5 + std::log(10 * 2 + 4), 1e-6);
  // Without counts or popularity the texts alone.
  EXPECT_NEAR(mixture.Logit(-0.25, 0, 0), -1, 1e-6);
}

TEST(CooccurrenceTest, RefusesTablesThatDoNotFit) {
  const auto error = [](const std::function<void(CooccurrenceTable&)>& change) {
    CooccurrenceTable table = Abc();
    change(table);
    const auto counts = Cooccurrence::Create(std::move(table));
    EXPECT_EQ(counts.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(counts.status().message());
  };
  using Table = CooccurrenceTable;
  EXPECT_THAT(error([](Table& t) { t.popularity.pop_back(); }),
              HasSubstr("3 items, but popularity of 2"));
  EXPECT_THAT(error([](Table& t) { t.neighbour_ends.push_back(3); }),
              HasSubstr("neighbour_ends of 4"));
  EXPECT_THAT(error([](Table& t) { t.weights.pop_back(); }),
              HasSubstr("3 neighbours, but 2 weights"));
  EXPECT_THAT(error([](Table& t) { t.neighbour_ends[1] = 1; }),
              HasSubstr("neighbour_ends: number 1 is 1, after 2"));
  EXPECT_THAT(error([](Table& t) { t.neighbour_ends[2] = 4; }),
              HasSubstr("neighbour_ends: the last is 4, of 3"));
  EXPECT_THAT(error([](Table& t) { t.neighbours[1] = 3; }),
              HasSubstr("neighbours: number 1 is 3, of 3 items"));
  EXPECT_THAT(error([](Table& t) { t.neighbours[1] = -1; }),
              HasSubstr("neighbours: number 1 is -1"));
  EXPECT_THAT(error([](Table& t) { t.weights[0] = 0; }),
              HasSubstr("weights: number 0 is 0"));
  EXPECT_THAT(error([](Table& t) { t.weights[2] = std::nanf(""); }),
              HasSubstr("weights: number 2 is nan"));
  EXPECT_THAT(error([](Table& t) {
                t.popularity[0] = std::numeric_limits<float>::infinity();
              }),
              HasSubstr("popularity: number 0 is inf"));
  EXPECT_THAT(error([](Table& t) { t.mixture.text_weight = -1; }),
              HasSubstr("mixture: number 1 is -1"));
  EXPECT_THAT(error([](Table& t) { t.ids[1] = "a"; }),
              HasSubstr("item_ids: \"a\" is there twice"));
  EXPECT_THAT(error([](Table& t) { t.ids[1] = ""; }),
              HasSubstr("item_ids: number 1 is empty"));
}

class CooccurrenceFileTest : public ::testing::Test {
 protected:
  std::string Error() const {
    const absl::Status status = Cooccurrence::Open(path_).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
    return std::string(status.message());
  }

  const TempFolder folder_;
  const std::string path_ = folder_.File("recommendation.x.safetensors");
};

TEST_F(CooccurrenceFileTest, RefusesEveryCut) {
  ASSERT_TRUE(Counts()->Write(path_).ok());
  const std::string whole = *ReadFile(path_);
  for (size_t size = 0; size < whole.size(); ++size) {
    ASSERT_TRUE(WriteFile(path_, whole.substr(0, size)).ok());
    EXPECT_FALSE(Cooccurrence::Open(path_).ok()) << size;
  }
}

TEST_F(CooccurrenceFileTest, NamesWhatIsMissingUnknownOrMistyped) {
  NamedTensor tensor;
  tensor.name = "popularity";
  tensor.shape = {1};
  tensor.values = {0};
  ASSERT_TRUE(WriteSafetensors(path_, {tensor}).ok());
  EXPECT_THAT(Error(), HasSubstr("item_ids: missing"));
  tensor.name = "item_ids";
  ASSERT_TRUE(WriteSafetensors(path_, {tensor}).ok());
  EXPECT_THAT(Error(),
              HasSubstr("item_ids: not a list of elements of 1 bytes"));
  tensor.name = "more";
  ASSERT_TRUE(WriteSafetensors(path_, {tensor}).ok());
  EXPECT_THAT(Error(), HasSubstr("more: no such tensor"));
}

}  // namespace
}  // namespace vitrine
