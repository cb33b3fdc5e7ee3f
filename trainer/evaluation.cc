#include "trainer/evaluation.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace vitrine {
namespace {

constexpr int kDepth = 10;

double Discount(int64_t place) { return 1.0 / std::log2(place + 2.0); }

double DcgAt(int k, const std::vector<RankedRow>& rows) {
  double sum = 0;
  for (int64_t i = 0; i < rows.size() && i < k; ++i) {
    sum += (std::exp2(rows[i].gain_grade) - 1) * Discount(i);
  }
  return sum;
}

void SortByScore(std::vector<RankedRow>* rows) {
  std::stable_sort(rows->begin(), rows->end(),
                   [](const RankedRow& a, const RankedRow& b) {
                     if (a.score != b.score) return a.score > b.score;
                     return a.tie < b.tie;
                   });
}

}  // namespace

uint64_t TieOf(absl::string_view query, absl::string_view item_id) {
  const std::string hash = Sha256(absl::StrCat(query, item_id)).substr(0, 8);
  return std::strtoul(hash.c_str(), nullptr, 16);
}

double NdcgAt(int k, std::vector<RankedRow> rows) {
  SortByScore(&rows);
  const double dcg = DcgAt(k, rows);
  std::sort(rows.begin(), rows.end(),
            [](const RankedRow& a, const RankedRow& b) {
              return a.gain_grade > b.gain_grade;
            });
  return dcg / DcgAt(k, rows);
}

double ReciprocalRank(double relevant, std::vector<RankedRow> rows) {
  SortByScore(&rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].gain_grade >= relevant) return 1.0 / (i + 1);
  }
  return 0;
}

RankingMetrics EvaluateRanking(absl::Span<const int32_t> group,
                               absl::Span<const RankedRow> rows,
                               double relevant) {
  std::vector<std::vector<RankedRow>> queries;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (group[i] >= queries.size()) queries.resize(group[i] + 1);
    queries[group[i]].push_back(rows[i]);
  }
  RankingMetrics metrics;
  for (const std::vector<RankedRow>& query : queries) {
    const bool differ =
        std::any_of(query.begin(), query.end(), [&query](const RankedRow& row) {
          return row.gain_grade != query.front().gain_grade;
        });
    if (!differ) continue;
    metrics.ndcg_at_10 += NdcgAt(kDepth, query);
    metrics.mrr += ReciprocalRank(relevant, query);
    ++metrics.queries;
  }
  if (metrics.queries > 0) {
    metrics.ndcg_at_10 /= metrics.queries;
    metrics.mrr /= metrics.queries;
  }
  return metrics;
}

int64_t PlaceOf(int32_t target, absl::Span<const float> scores,
                absl::Span<const int32_t> seen) {
  const float score = scores[target];
  if (std::isnan(score)) return static_cast<int64_t>(scores.size());
  const auto better = [&](int32_t item) {
    return scores[item] > score || (scores[item] == score && item < target);
  };
  int64_t place = 0;
  for (int32_t item = 0; item < scores.size(); ++item) place += better(item);
  absl::flat_hash_set<int32_t> once;
  for (const int32_t item : seen) {
    if (item != target && once.insert(item).second) place -= better(item);
  }
  return place;
}

NextItemMetrics EvaluateNextItem(absl::Span<const int64_t> places) {
  NextItemMetrics metrics;
  for (const int64_t place : places) {
    if (place >= kDepth) continue;
    metrics.hit_rate_at_10 += 1;
    metrics.ndcg_at_10 += Discount(place);
  }
  if (!places.empty()) {
    metrics.hit_rate_at_10 /= places.size();
    metrics.ndcg_at_10 /= places.size();
  }
  return metrics;
}

double MacroF1(absl::Span<const uint8_t> truth,
               absl::Span<const uint8_t> predicted, int labels) {
  std::vector<int64_t> hits(labels), wrong(labels);
  for (size_t i = 0; i < truth.size(); ++i) {
    const bool t = truth[i] != 0, p = predicted[i] != 0;
    hits[i % labels] += t && p;
    wrong[i % labels] += t != p;
  }
  double sum = 0;
  int counted = 0;
  for (int label = 0; label < labels; ++label) {
    if (hits[label] + wrong[label] == 0) continue;
    sum += 2.0 * hits[label] / (2.0 * hits[label] + wrong[label]);
    ++counted;
  }
  return counted == 0 ? 0 : sum / counted;
}

InterestMetrics EvaluateInterests(absl::Span<const float> scores,
                                  absl::Span<const uint8_t> truth, int labels,
                                  double threshold) {
  std::vector<uint8_t> predicted(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    predicted[i] = scores[i] >= threshold;
  }
  InterestMetrics metrics;
  metrics.macro_f1 = MacroF1(truth, predicted, labels);
  int64_t rows = 0;
  std::vector<int> order(labels);
  for (size_t start = 0; start < scores.size(); start += labels) {
    const auto row = scores.subspan(start, labels);
    const auto yes = truth.subspan(start, labels);
    const int64_t positives =
        std::count_if(yes.begin(), yes.end(), [](uint8_t y) { return y != 0; });
    if (positives == 0) continue;
    for (int i = 0; i < labels; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&row](int a, int b) { return row[a] > row[b]; });
    double dcg = 0, best = 0;
    for (int i = 0; i < std::min(labels, kDepth); ++i) {
      if (yes[order[i]]) dcg += Discount(i);
      if (i < positives) best += Discount(i);
    }
    metrics.accuracy += yes[order[0]] != 0;
    metrics.ndcg_at_10 += dcg / best;
    ++rows;
  }
  if (rows > 0) {
    metrics.accuracy /= rows;
    metrics.ndcg_at_10 /= rows;
  }
  return metrics;
}

ClassificationMetrics EvaluateClassification(
    absl::Span<const int32_t> predicted, absl::Span<const int32_t> truth,
    int labels) {
  ClassificationMetrics metrics;
  std::vector<uint8_t> t(truth.size() * labels), p(truth.size() * labels);
  for (size_t i = 0; i < truth.size(); ++i) {
    t[i * labels + truth[i]] = 1;
    p[i * labels + predicted[i]] = 1;
    metrics.accuracy += truth[i] == predicted[i];
  }
  metrics.macro_f1 = MacroF1(t, p, labels);
  if (!truth.empty()) metrics.accuracy /= truth.size();
  return metrics;
}

PlattScale FitPlatt(absl::Span<const float> positives,
                    absl::Span<const float> negatives) {
  PlattScale fit;
  if (positives.empty() || negatives.empty()) return fit;
  constexpr double kRidge = 1e-4;
  double a = 0, b = 0;
  for (int step = 0; step < 100; ++step) {
    // Gradient and Hessian of the mean loss in (a, b).
    double ga = kRidge * a, gb = 0, haa = kRidge, hab = 0, hbb = 1e-12;
    const auto add = [&](absl::Span<const float> xs, double y) {
      const double weight = 0.5 / xs.size();
      for (const double x : xs) {
        const double p = 1 / (1 + std::exp(-(a * x + b)));
        const double g = weight * (p - y), h = weight * p * (1 - p);
        ga += g * x, gb += g;
        haa += h * x * x, hab += h * x, hbb += h;
      }
    };
    add(positives, 1);
    add(negatives, 0);
    const double det = haa * hbb - hab * hab;
    if (!(det > 0)) break;
    // Damped: cosines are small numbers, a full step may overshoot.
    double da = (hbb * ga - hab * gb) / det, db = (haa * gb - hab * ga) / det;
    const double limit = 5 / std::max({std::abs(da), std::abs(db), 5.0});
    a -= da * limit, b -= db * limit;
    if (std::abs(da) + std::abs(db) < 1e-9) break;
  }
  fit.scale = a;
  fit.bias = b;
  return fit;
}

}  // namespace vitrine
