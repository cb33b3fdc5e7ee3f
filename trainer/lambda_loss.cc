#include "trainer/lambda_loss.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <vector>

namespace vitrine {
namespace {

constexpr double kMu = 10;

double Discount(int64_t rank) {
  return 1 / std::log2(1.0 + static_cast<double>(rank));
}
double Gain(float grade) { return std::exp2(grade) - 1; }

// Adds the weights of one query's pairs to the (n, n) matrix; `members` are its
// rows. Whether it has any.
bool AddPairs(const std::vector<int64_t>& members, const float* scores,
              absl::Span<const LambdaRow> rows, std::vector<float>* weights) {
  std::vector<double> gains;
  for (const int64_t row : members) gains.push_back(Gain(rows[row].grade));
  std::sort(gains.begin(), gains.end(), std::greater<>());
  double ideal = 0;
  for (size_t i = 0; i < gains.size(); ++i) {
    ideal += gains[i] * Discount(static_cast<int64_t>(i) + 1);
  }
  if (gains.front() == gains.back()) return false;

  std::vector<int64_t> order = members;
  std::stable_sort(order.begin(), order.end(), [scores](int64_t a, int64_t b) {
    return scores[a] > scores[b];
  });
  const auto n = static_cast<int64_t>(rows.size());
  const auto count = static_cast<int64_t>(order.size());
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b < count; ++b) {
      const LambdaRow& better = rows[order[a]];
      const LambdaRow& worse = rows[order[b]];
      if (better.grade <= worse.grade) continue;
      const int64_t apart = std::abs(a - b);
      const double rho = std::abs(Discount(a + 1) - Discount(b + 1));
      const double delta = std::abs(Discount(apart) - Discount(apart + 1));
      const double gain =
          std::abs(Gain(better.grade) - Gain(worse.grade)) / ideal;
      const double weight = (better.weight + worse.weight) / 2;
      (*weights)[order[a] * n + order[b]] =
          static_cast<float>((rho + kMu * delta) * gain * weight);
    }
  }
  return true;
}

}  // namespace

at::Tensor LambdaLoss(const at::Tensor& scores,
                      absl::Span<const LambdaRow> rows) {
  const auto n = static_cast<int64_t>(rows.size());
  std::map<int32_t, std::vector<int64_t>> queries;
  for (int64_t i = 0; i < n; ++i) queries[rows[i].query].push_back(i);
  const at::Tensor now = scores.detach().contiguous();
  std::vector<float> weights(n * n);
  int counted = 0;
  for (const auto& [query, members] : queries) {
    counted += AddPairs(members, now.data_ptr<float>(), rows, &weights);
  }
  // Row i, column j: s_j - s_i.
  const at::Tensor behind = scores.view({1, n}) - scores.view({n, 1});
  const at::Tensor pairs =
      at::softplus(behind) / std::log(2.0) * at::tensor(weights).view({n, n});
  return pairs.sum() / std::max(counted, 1);
}

}  // namespace vitrine
