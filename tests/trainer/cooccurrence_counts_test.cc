#include "trainer/cooccurrence_counts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Catalogue ItemsNamed(const std::vector<std::string>& ids) {
  Catalogue catalogue;
  for (const std::string& id : ids) {
    catalogue.by_id[id] = static_cast<int32_t>(catalogue.items.size());
    catalogue.items.emplace_back().set_id(id);
  }
  catalogue.listed = static_cast<int32_t>(catalogue.items.size());
  return catalogue;
}

// "a>b": how strongly a speaks for b.
std::map<std::string, float> Weights(const std::vector<HistoryRow>& rows,
                                     const Catalogue& catalogue,
                                     const CountingOptions& options) {
  std::vector<const HistoryRow*> pointers;
  for (const HistoryRow& row : rows) pointers.push_back(&row);
  const CooccurrenceTable table =
      CountCooccurrences(pointers, catalogue, options);
  EXPECT_TRUE(Cooccurrence::Create(table).ok());
  std::map<std::string, float> out;
  int32_t begin = 0;
  for (size_t item = 0; item < table.ids.size(); ++item) {
    for (int32_t i = begin; i < table.neighbour_ends[item]; ++i) {
      out[absl::StrCat(table.ids[item], ">", table.ids[table.neighbours[i]])] =
          table.weights[i];
    }
    begin = table.neighbour_ends[item];
  }
  return out;
}

class CountingTest : public ::testing::Test {
 protected:
  const Catalogue catalogue_ = ItemsNamed({"a", "b", "c", "never"});
};

TEST_F(CountingTest, CountsByOrderAndDistance) {
  const std::vector<HistoryRow> rows = {{"u", {0, 1, 2}}, {"v", {1, 0}}};
  const auto weights = Weights(
      rows, catalogue_,
      {.backward = 0.5, .own_power = 1, .neighbour_power = 0, .neighbours = 9});
  ASSERT_EQ(weights.size(), 6);
  // a and b have two users, c one; c is two steps after a.
  EXPECT_FLOAT_EQ(weights.at("a>b"), (1 + 0.5) / 2);
  EXPECT_FLOAT_EQ(weights.at("b>a"), (0.5 + 1) / 2);
  EXPECT_FLOAT_EQ(weights.at("a>c"), std::sqrt(0.5) / 2);
  EXPECT_FLOAT_EQ(weights.at("c>a"), 0.5 * std::sqrt(0.5));
  EXPECT_FLOAT_EQ(weights.at("b>c"), 0.5);
  EXPECT_FLOAT_EQ(weights.at("c>b"), 0.5);
}

TEST_F(CountingTest, IsTheCosineOfUsersInTheTextbooksWay) {
  const std::vector<HistoryRow> rows = {
      {"u", {0, 1, 2}}, {"v", {1, 0}}, {"w", {2, 1}}};
  const auto weights = Weights(rows, catalogue_, ClassicalCounting());
  EXPECT_FLOAT_EQ(weights.at("a>b"), 2 / std::sqrt(2.0 * 3));
  EXPECT_FLOAT_EQ(weights.at("b>a"), 2 / std::sqrt(2.0 * 3));
  EXPECT_FLOAT_EQ(weights.at("a>c"), 1 / std::sqrt(2.0 * 2));
}

TEST_F(CountingTest, AUserCountsAPairOnceAsCloseAsItWas) {
  // Windows over one history, and an item twice in a row.
  const std::vector<HistoryRow> rows = {
      {"u", {0, 1}}, {"u", {0, 1, 2}}, {"v", {2}}, {"u", {0, 2, 0, 1}}};
  const CountingOptions plain = {.own_power = 0};
  const auto weights = Weights(rows, catalogue_, plain);
  EXPECT_FLOAT_EQ(weights.at("a>b"), 1);
  // a, b, c and, once a stands where it was last, c, a, b.
  EXPECT_FLOAT_EQ(weights.at("a>c"), std::sqrt(0.5));
  EXPECT_FLOAT_EQ(weights.at("c>a"), 1);
  const HistoryRow* const row = &rows[1];
  const HistoryRow* const again = &rows[3];
  const CooccurrenceTable table =
      CountCooccurrences({row, again, &rows[2]}, catalogue_);
  EXPECT_THAT(table.ids, ElementsAre("a", "b", "c"));
  EXPECT_THAT(table.popularity, ElementsAre(1, 1, 2));
}

TEST_F(CountingTest, KeepsTheStrongestNeighbours) {
  std::vector<HistoryRow> rows = {{"u", {0, 1}}, {"v", {0, 1}}, {"w", {0, 2}}};
  const auto weights = Weights(rows, catalogue_, {.neighbours = 1});
  EXPECT_EQ(weights.count("a>b"), 1);
  EXPECT_EQ(weights.count("a>c"), 0);
}

TEST_F(CountingTest, PairsFarApartDoNotCount) {
  Catalogue many = ItemsNamed({"first", "last"});
  HistoryRow row{"u", {0}};
  for (int i = 0; i < 60; ++i) {
    row.items.push_back(static_cast<int32_t>(many.items.size()));
    many.items.emplace_back().set_id(absl::StrCat(i));
  }
  row.items.push_back(1);
  const auto weights = Weights({row}, many, {.neighbours = 1000});
  EXPECT_EQ(weights.count("first>last"), 0);
  EXPECT_EQ(weights.count("first>49"), 1);
}

TEST_F(CountingTest, OfNoRowsThereIsNothing) {
  EXPECT_THAT(CountCooccurrences({}, catalogue_).ids, IsEmpty());
}

}  // namespace
}  // namespace vitrine
