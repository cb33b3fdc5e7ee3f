#include "trainer/lambda_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace vitrine {
namespace {

// Straight from the paper's formulas, over all pairs of rows.
double Reference(const std::vector<double>& s,
                 const std::vector<LambdaRow>& rows,
                 const std::vector<double>& ranking_scores) {
  const int n = static_cast<int>(rows.size());
  const auto log2 = [](double x) { return std::log(x) / std::log(2.0); };
  double sum = 0;
  int queries = 0;
  for (int query = 0; query < 10; ++query) {
    std::vector<int> members;
    for (int i = 0; i < n; ++i) {
      if (rows[i].query == query) members.push_back(i);
    }
    const auto place = [&](int row, auto value) {
      int before = 1;
      for (const int other : members) {
        if (value(other) > value(row) ||
            (value(other) == value(row) && other < row)) {
          ++before;
        }
      }
      return before;
    };
    const auto by_score = [&](int row) { return ranking_scores[row]; };
    const auto by_grade = [&](int row) { return double{rows[row].grade}; };
    double ideal = 0, of_query = 0;
    for (const int i : members) {
      ideal +=
          (std::pow(2.0, rows[i].grade) - 1) / log2(1.0 + place(i, by_grade));
    }
    bool any = false;
    for (const int i : members) {
      for (const int j : members) {
        if (rows[i].grade <= rows[j].grade) continue;
        any = true;
        const double di = log2(1.0 + place(i, by_score));
        const double dj = log2(1.0 + place(j, by_score));
        const int apart = std::abs(place(i, by_score) - place(j, by_score));
        const double rho = std::abs(1 / di - 1 / dj);
        const double delta =
            std::abs(1 / log2(1.0 + apart) - 1 / log2(2.0 + apart));
        const double gain = std::abs(std::pow(2.0, rows[i].grade) -
                                     std::pow(2.0, rows[j].grade)) /
                            ideal;
        of_query += (rho + 10 * delta) * gain *
                    (rows[i].weight + rows[j].weight) / 2 *
                    log2(1 + std::exp(s[j] - s[i]));
      }
    }
    sum += of_query;
    queries += any;
  }
  return queries == 0 ? 0 : sum / queries;
}

class LambdaLossTest : public ::testing::Test {
 protected:
  const std::vector<LambdaRow> rows_ = {
      {0, 2, 1},   {1, 0, 1}, {0, 0, 3}, {0, 1, 1},
      {1, 1, 2},   {2, 1, 1}, {2, 1, 1},  // equal grades: says nothing
      {0, 1, 0.5}, {3, 2, 1},             // alone
      {1, 0.5, 1}};
  const std::vector<double> scores_ = {0.3,  -1.2, 0.9, 0.1, -0.4,
                                       0.25, 0.2,  1.7, 0.0, 0.6};

  at::Tensor Tensor(const std::vector<double>& scores) const {
    return at::tensor(std::vector<float>(scores.begin(), scores.end()));
  }
};

TEST_F(LambdaLossTest, IsWhatThePaperSays) {
  EXPECT_NEAR(LambdaLoss(Tensor(scores_), rows_).item<double>(),
              Reference(scores_, rows_, scores_), 1e-5);
}

TEST_F(LambdaLossTest, GradientIsThatOfTheLossWithRanksHeld) {
  at::Tensor scores = Tensor(scores_).requires_grad_();
  LambdaLoss(scores, rows_).backward();
  for (size_t i = 0; i < scores_.size(); ++i) {
    constexpr double kStep = 1e-4;
    std::vector<double> up = scores_, down = scores_;
    up[i] += kStep;
    down[i] -= kStep;
    const double slope =
        (Reference(up, rows_, scores_) - Reference(down, rows_, scores_)) /
        (2 * kStep);
    EXPECT_NEAR(scores.grad()[static_cast<int64_t>(i)].item<double>(), slope,
                1e-4)
        << "row " << i;
  }
}

TEST_F(LambdaLossTest, EqualGradesSayNothing) {
  const std::vector<LambdaRow> rows = {{0, 1, 1}, {0, 1, 1}};
  at::Tensor scores = Tensor({0.5, -0.5}).requires_grad_();
  const at::Tensor loss = LambdaLoss(scores, rows);
  EXPECT_EQ(loss.item<double>(), 0);
  loss.backward();
  EXPECT_EQ(scores.grad().abs().sum().item<double>(), 0);
}

TEST_F(LambdaLossTest, FallsAsTheOrderGetsRight) {
  const std::vector<LambdaRow> rows = {{0, 2, 1}, {0, 1, 1}, {0, 0, 1}};
  EXPECT_LT(LambdaLoss(Tensor({2, 1, 0}), rows).item<double>(),
            LambdaLoss(Tensor({1, 2, 0}), rows).item<double>());
  EXPECT_LT(LambdaLoss(Tensor({1, 2, 0}), rows).item<double>(),
            LambdaLoss(Tensor({0, 1, 2}), rows).item<double>());
}

}  // namespace
}  // namespace vitrine
