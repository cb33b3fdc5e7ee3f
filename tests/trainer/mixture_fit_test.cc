#include "trainer/mixture_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace vitrine {
namespace {

constexpr int kItems = 40;

// Item i speaks for i + 1 and, weaker, for i + 2.
std::unique_ptr<const Cooccurrence> Ring() {
  CooccurrenceTable table;
  for (int i = 0; i < kItems; ++i) {
    table.ids.push_back(absl::StrCat(i));
    table.popularity.push_back(1);
    table.neighbours.push_back((i + 1) % kItems);
    table.neighbours.push_back((i + 2) % kItems);
    table.weights.push_back(1);
    table.weights.push_back(0.5);
    table.neighbour_ends.push_back(2 * i + 2);
  }
  auto counts = Cooccurrence::Create(std::move(table));
  EXPECT_TRUE(counts.ok()) << counts.status();
  return *std::move(counts);
}

// Users whose next items follow `truth`, each with cosines at random.
std::vector<MixtureRow> RowsOf(const Cooccurrence& counts, const Mixture& truth,
                               int users) {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> unit(-1, 1);
  std::vector<MixtureRow> rows;
  for (int user = 0; user < users; ++user) {
    MixtureRow row;
    row.history = {static_cast<int32_t>(random() % kItems),
                   static_cast<int32_t>(random() % kItems)};
    const HistoryCounts history(counts, row.history, truth.history_decay);
    std::vector<double> chances;
    for (int32_t item = 0; item < kItems; ++item) {
      const auto cosine = static_cast<float>(unit(random));
      row.candidates.push_back({item, cosine, 1});
      chances.push_back(std::exp(
          truth.Logit(cosine, history.Of(item), counts.popularity(item))));
    }
    std::discrete_distribution<int> choose(chances.begin(), chances.end());
    std::swap(row.candidates[0], row.candidates[choose(random)]);
    rows.push_back(std::move(row));
  }
  return rows;
}

double MeanLoss(const Cooccurrence& counts, const std::vector<MixtureRow>& rows,
                const Mixture& mixture) {
  double loss = 0;
  for (const MixtureRow& row : rows) {
    const HistoryCounts history(counts, row.history, mixture.history_decay);
    double sum = 0, first = 0;
    for (const MixtureRow::Candidate& c : row.candidates) {
      const double logit = mixture.Logit(c.cosine, history.Of(c.item),
                                         counts.popularity(c.item));
      if (sum == 0) first = logit;
      sum += c.copies * std::exp(logit);
    }
    loss += std::log(sum) - first;
  }
  return loss / static_cast<double>(rows.size());
}

TEST(MixtureFitTest, FindsWhatTheRowsWereDrawnBy) {
  const auto counts = Ring();
  const Mixture truth = {.history_decay = 0.6,
                         .text_weight = 2,
                         .count_scale = 20,
                         .count_power = 1.5,
                         .popularity_power = 0.6};
  const auto rows = RowsOf(*counts, truth, 3000);
  const Mixture fit = FitMixture(*counts, rows);
  EXPECT_NEAR(fit.text_weight, 2, 0.2);
  EXPECT_NEAR(fit.history_decay, 0.6, 0.15);
  EXPECT_NEAR(fit.count_power, 1.5, 0.4);
  EXPECT_LE(MeanLoss(*counts, rows, fit),
            MeanLoss(*counts, rows, truth) + 1e-3);
}

TEST(MixtureFitTest, TextsThatSayNothingHardlyCount) {
  const auto counts = Ring();
  const Mixture truth = {.text_weight = 0};
  const Mixture fit = FitMixture(*counts, RowsOf(*counts, truth, 3000));
  EXPECT_LT(fit.text_weight, 0.2);
  EXPECT_GT(fit.text_weight, 0) << "it orders what nothing else does";
}

TEST(MixtureFitTest, ACopyCountsAsAnItem) {
  const auto counts = Ring();
  auto rows = RowsOf(*counts, {.text_weight = 2}, 200);
  for (MixtureRow& row : rows) row.candidates.push_back(row.candidates.back());
  const Mixture twice = FitMixture(*counts, rows);
  for (MixtureRow& row : rows) {
    row.candidates.pop_back();
    row.candidates.back().copies = 2;
  }
  const Mixture copies = FitMixture(*counts, rows);
  EXPECT_FLOAT_EQ(twice.text_weight, copies.text_weight);
  EXPECT_FLOAT_EQ(twice.count_scale, copies.count_scale);
}

}  // namespace
}  // namespace vitrine
