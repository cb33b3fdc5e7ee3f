#include "trainer/ngram_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "base/file.h"
#include "nlohmann/json.hpp"
#include "trainer/task.h"

namespace vitrine {
namespace {

std::vector<Encoding> Texts(const nlohmann::json& ids) {
  std::vector<Encoding> texts;
  for (const nlohmann::json& text : ids) {
    texts.emplace_back().ids = text.get<std::vector<int32_t>>();
  }
  return texts;
}

// tests/data/ngrams.json is scikit-learn's: see make_ngram_goldens.py there.
class NgramGoldenTest : public ::testing::Test {
 protected:
  const nlohmann::json golden_ = nlohmann::json::parse(
      *ReadFile(std::string(VITRINE_TEST_DATA) + "/ngrams.json"));
  const std::vector<Encoding> texts_ = Texts(golden_["texts"]);
  const std::vector<int32_t> truth_ = golden_["truth"];
  const int labels_ = golden_["labels"];
};

TEST_F(NgramGoldenTest, LearnsWhatScikitLearnLearns) {
  NgramTable table =
      FitNgrams(Pointers(texts_), truth_, labels_, {}, /*workers=*/nullptr);
  ASSERT_EQ(table.ngrams.size(), golden_["ngrams"].size());
  for (size_t i = 0; i < table.ngrams.size(); ++i) {
    EXPECT_EQ(table.ngrams[i].first, golden_["ngrams"][i][0]);
    EXPECT_EQ(table.ngrams[i].second, golden_["ngrams"][i][1]);
    EXPECT_NEAR(table.idf[i], golden_["idf"][i], 1e-5);
  }
  const auto classifier = NgramClassifier::Create(std::move(table));
  ASSERT_TRUE(classifier.ok()) << classifier.status();
  const std::vector<Encoding> texts = Texts(golden_["new_texts"]);
  double largest = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<float> margins = (*classifier)->Margins(texts[i].ids);
    for (int l = 0; l < labels_; ++l) {
      const double expected = golden_["margins"][i][l];
      EXPECT_NEAR(margins[l], expected, 2e-3);
      largest = std::max(largest, std::abs(expected));
    }
  }
  EXPECT_GT(largest, 0.5) << "the goldens say something";
}

TEST_F(NgramGoldenTest, IsTheSameWithWorkers) {
  Workers workers(2);
  const NgramTable alone =
      FitNgrams(Pointers(texts_), truth_, labels_, {}, nullptr);
  const NgramTable shared =
      FitNgrams(Pointers(texts_), truth_, labels_, {}, &workers);
  EXPECT_EQ(alone.ngrams, shared.ngrams);
  EXPECT_EQ(alone.weights, shared.weights);
  EXPECT_EQ(alone.bias, shared.bias);
}

TEST(NgramFitTest, MakesATableOfTextsThatShareNothing) {
  std::vector<Encoding> texts(3);
  texts[0].ids = {1};
  texts[1].ids = {2};
  const NgramTable table =
      FitNgrams(Pointers(texts), {0, 1, 1}, 2, {}, nullptr);
  EXPECT_TRUE(table.ngrams.empty());
  const auto classifier = NgramClassifier::Create(table);
  ASSERT_TRUE(classifier.ok()) << classifier.status();
  const std::vector<float> margins = (*classifier)->Margins({1, 2});
  EXPECT_GT(margins[1], margins[0]) << "label 1 is the more frequent one";
}

// ---- The mixture ----

// Rows whose logits and margins say the label with so much noise.
struct Rows {
  Rows(int count, int labels, double logit_noise, double margin_noise) {
    std::mt19937_64 random(3);
    std::normal_distribution<double> normal;
    for (int i = 0; i < count; ++i) {
      truth.push_back(static_cast<int32_t>(random() % labels));
      for (int l = 0; l < labels; ++l) {
        const double said = l == truth.back();
        logits.push_back(
            static_cast<float>(4 * said + logit_noise * normal(random)));
        margins.push_back(
            static_cast<float>(said + margin_noise * normal(random)));
      }
    }
  }

  std::vector<float> Combined(const NgramMixture& mixture, int labels,
                              size_t i) const {
    std::vector<float> row(logits.begin() + i * labels,
                           logits.begin() + (i + 1) * labels);
    mixture.Combine(absl::MakeConstSpan(margins).subspan(i * labels, labels),
                    absl::MakeSpan(row));
    return row;
  }

  double Loss(const NgramMixture& mixture, int labels) const {
    double loss = 0;
    for (size_t i = 0; i < truth.size(); ++i) {
      const std::vector<float> row = Combined(mixture, labels, i);
      double sum = 0;
      for (const float logit : row) sum += std::exp(logit);
      loss += std::log(sum) - row[truth[i]];
    }
    return loss;
  }

  int Right(const NgramMixture& mixture, int labels) const {
    int right = 0;
    for (size_t i = 0; i < truth.size(); ++i) {
      const std::vector<float> row = Combined(mixture, labels, i);
      right +=
          std::max_element(row.begin(), row.end()) - row.begin() == truth[i];
    }
    return right;
  }

  std::vector<int32_t> truth;
  std::vector<float> logits, margins;
};

TEST(NgramMixtureTest, GetsMoreRightThanEitherAlone) {
  const Rows rows(1000, 4, 3, 0.6);
  const NgramMixture best =
      FitNgramMixture(rows.logits, rows.margins, rows.truth, 4);
  EXPECT_GT(best.encoder_weight, 0);
  EXPECT_GT(best.ngram_weight, 0);
  EXPECT_GT(rows.Right(best, 4), rows.Right({1, 0}, 4) + 20);
  EXPECT_GT(rows.Right(best, 4), rows.Right({0, 1}, 4) + 20);
  // Of that ratio it is the likeliest; the ridge is all that may be gained.
  const double loss = rows.Loss(best, 4);
  for (const float scale : {0.5f, 0.9f, 1.1f, 2.0f}) {
    EXPECT_GT(
        rows.Loss({best.encoder_weight * scale, best.ngram_weight * scale}, 4),
        loss - 0.02)
        << scale;
  }
}

TEST(NgramMixtureTest, LeavesOutWhatSaysNothing) {
  // Margins that speak for the wrong label.
  Rows rows(300, 3, 1, 0.2);
  for (float& margin : rows.margins) margin = -margin;
  const NgramMixture mixture =
      FitNgramMixture(rows.logits, rows.margins, rows.truth, 3);
  EXPECT_EQ(mixture.encoder_weight, 1);
  EXPECT_EQ(mixture.ngram_weight, 0);
}

TEST(NgramMixtureTest, StaysFiniteWhereEveryRowIsRight) {
  const Rows rows(50, 2, 0, 0);
  const NgramMixture mixture =
      FitNgramMixture(rows.logits, rows.margins, rows.truth, 2);
  EXPECT_GT(mixture.encoder_weight, 0);
  EXPECT_LT(mixture.encoder_weight, 100);
  EXPECT_LT(mixture.ngram_weight, 100);
  // Logits that say nothing at all, as of a baseline by n-grams alone.
  const std::vector<float> none(rows.logits.size());
  const NgramMixture alone = FitNgramMixture(none, rows.margins, rows.truth, 2);
  EXPECT_GT(alone.ngram_weight, 1);
  EXPECT_LT(alone.ngram_weight, 1e4);
}

}  // namespace
}  // namespace vitrine
