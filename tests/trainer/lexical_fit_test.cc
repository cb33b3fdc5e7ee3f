#include "trainer/lexical_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/file.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

// tests/data/lexical.json is scikit-learn's: see make_lexical_goldens.py there.
TEST(LexicalFitTest, LearnsWhatScikitLearnLearns) {
  const nlohmann::json golden = nlohmann::json::parse(
      *ReadFile(std::string(VITRINE_TEST_DATA) + "/lexical.json"));
  const std::vector<std::vector<int32_t>> queries = golden["queries"];
  const std::vector<std::vector<int32_t>> items = golden["items"];
  const std::vector<float> targets = golden["targets"];
  const std::vector<float> weights = golden["weights"];
  std::vector<TokenPair> pairs;
  for (size_t i = 0; i < targets.size(); ++i) {
    pairs.push_back({queries[i], items[i]});
  }
  LexicalTable table = FitLexical(pairs, targets, weights);
  ASSERT_EQ(table.ngrams.size(), golden["ngrams"].size());
  for (size_t i = 0; i < table.ngrams.size(); ++i) {
    EXPECT_EQ(table.ngrams[i].first, golden["ngrams"][i][0]);
    EXPECT_EQ(table.ngrams[i].second, golden["ngrams"][i][1]);
    EXPECT_NEAR(table.idf[i], golden["idf"][i], 1e-5);
  }
  const auto scorer = LexicalScorer::Create(std::move(table));
  ASSERT_TRUE(scorer.ok()) << scorer.status();
  double largest = 0;
  for (size_t i = targets.size(); i < queries.size(); ++i) {
    const double expected = golden["values"][i - targets.size()];
    EXPECT_NEAR((*scorer)->Value((*scorer)->OfQuery(queries[i]), items[i]),
                expected, 1e-4);
    largest = std::max(largest, std::abs(expected));
  }
  EXPECT_GT(largest, 0.2) << "the goldens say something";
}

TEST(LexicalFitTest, MakesATableOfTextsThatShareNothing) {
  const std::vector<int32_t> a = {1}, b = {2}, c = {3}, d = {4};
  const LexicalTable table = FitLexical({{a, b}, {c, d}}, {0, 1}, {1, 1});
  EXPECT_TRUE(table.ngrams.empty());
  const auto scorer = LexicalScorer::Create(table);
  ASSERT_TRUE(scorer.ok()) << scorer.status();
  EXPECT_NEAR((*scorer)->Value((*scorer)->OfQuery(a), b), 0, 1e-6);
}

// ---- The mixture ----

// Rows of ten a query, of grades 0 to 2; logits and values say the grade with
// so much noise.
struct HeldOut {
  HeldOut(int queries, double logit_noise, double value_noise) {
    std::mt19937_64 random(5);
    std::normal_distribution<double> normal;
    for (int q = 0; q < queries; ++q) {
      for (int i = 0; i < 10; ++i) {
        const auto grade = static_cast<double>(random() % 3);
        query.push_back(q);
        logits.push_back(static_cast<float>(
            1.5 * (grade - 1) + 1.5 * logit_noise * normal(random)));
        values.push_back(static_cast<float>(
            0.3 * (grade - 1) + 0.3 * value_noise * normal(random)));
        rows.push_back({0, grade, random()});
      }
    }
  }

  LexicalMixture Fit() const {
    return FitLexicalMixture({query, logits, values, rows, 2});
  }

  Evaluation Of(const LexicalMixture& mixture) const {
    std::vector<RankedRow> scored = rows;
    for (size_t i = 0; i < rows.size(); ++i) {
      scored[i].score = mixture.Logit(logits[i], values[i]);
    }
    return EvaluateRelevance(query, scored, 2, true);
  }
  double Ndcg(const LexicalMixture& mixture) const {
    return Of(mixture).metrics()[0].value;
  }
  double Rmse(const LexicalMixture& mixture) const {
    const Evaluation evaluation = Of(mixture);
    for (const MetricValue& metric : evaluation.metrics()) {
      if (metric.name == "rmse") return metric.value;
    }
    ADD_FAILURE();
    return 0;
  }

  std::vector<int32_t> query;
  std::vector<float> logits, values;
  std::vector<RankedRow> rows;
};

TEST(LexicalMixtureTest, RanksBetterThanEitherAlone) {
  const HeldOut rows(200, 1, 1);
  const LexicalMixture best = rows.Fit();
  EXPECT_GT(best.encoder_weight, 0);
  EXPECT_GT(best.lexical_weight, 0);
  EXPECT_GT(rows.Ndcg(best), rows.Ndcg({1, 0, 0}) + 0.02);
  EXPECT_GT(rows.Ndcg(best), rows.Ndcg({0, 1, 0}) + 0.02);
  EXPECT_LT(rows.Rmse(best), rows.Rmse({1, 0, 0}));
  for (const float factor : {0.6f, 1.6f}) {
    EXPECT_GT(rows.Rmse({factor * best.encoder_weight,
                         factor * best.lexical_weight, best.bias}),
              rows.Rmse(best))
        << factor;
  }
}

TEST(LexicalMixtureTest, GoesByTheBetterOne) {
  const LexicalMixture encoder = HeldOut(200, 0.3, 8).Fit();
  EXPECT_LT(encoder.lexical_weight, 2 * encoder.encoder_weight);
  const LexicalMixture lexical = HeldOut(200, 8, 0.3).Fit();
  EXPECT_GT(lexical.lexical_weight, 8 * lexical.encoder_weight);
}

TEST(LexicalMixtureTest, LeavesOutWhatSaysNothing) {
  // Values that speak for the wrong grade.
  HeldOut rows(100, 0.5, 0.2);
  for (float& value : rows.values) value = -value;
  const LexicalMixture mixture = rows.Fit();
  EXPECT_EQ(mixture.encoder_weight, 1);
  EXPECT_EQ(mixture.lexical_weight, 0);
  EXPECT_EQ(mixture.bias, 0);
}

TEST(LexicalMixtureTest, FewRowsLeaveTheUsualRatio) {
  const LexicalMixture mixture = HeldOut(3, 1, 1).Fit();
  EXPECT_NEAR(mixture.lexical_weight / mixture.encoder_weight, 3, 1e-4);
}

TEST(LexicalMixtureTest, StaysFiniteWhereEveryRowIsRight) {
  HeldOut rows(20, 0, 0);
  for (const bool silent : {false, true}) {
    if (silent) rows.logits.assign(rows.logits.size(), 0);
    const LexicalMixture mixture = rows.Fit();
    EXPECT_GT(mixture.lexical_weight, 0);
    EXPECT_LT(mixture.lexical_weight, 100);
    EXPECT_LT(std::abs(mixture.bias), 10);
  }
}

}  // namespace
}  // namespace vitrine
