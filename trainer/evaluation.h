#pragma once

// The numbers by which versions are compared, defined exactly. Plain
// arithmetic over scores: no model in here.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace vitrine {

struct MetricValue {
  std::string name;  // such as "ndcg@10"
  double value = 0;
  bool lower_is_better = false;
};

// ---- Ranking of graded items (relevance) ----

// One scored row of a query.
struct RankedRow {
  double score = 0;
  double gain_grade = 0;  // the grade less the lowest one there can be
  uint64_t tie = 0;       // equal scores: the smaller first
};

// The tie of a row: the first 32 bits of SHA-256 over query and item id, so
// that a constant score gives a random order, the same in every run.
uint64_t TieOf(absl::string_view query, absl::string_view item_id);

// Sum over the first `k` of (2^grade - 1) / log2(rank + 1), rank from 1, over
// that of the best order. Rows must hold two different grades.
double NdcgAt(int k, std::vector<RankedRow> rows);

// 1 / rank of the first row whose grade is at least `relevant`; 0 if none is.
double ReciprocalRank(double relevant, std::vector<RankedRow> rows);

struct RankingMetrics {
  double ndcg_at_10 = 0;
  double mrr = 0;
  int queries = 0;  // that were counted
};

// Means over the queries with at least two rows and two different grades;
// `group[i]` is the query of rows[i]. For the reciprocal rank, `relevant` is
// the middle of the range of grades.
RankingMetrics EvaluateRanking(absl::Span<const int32_t> group,
                               absl::Span<const RankedRow> rows,
                               double relevant);

// ---- The next item out of a whole catalogue (recommendation) ----

struct NextItemMetrics {
  double hit_rate_at_10 = 0;
  double ndcg_at_10 = 0;
};

// The place, from 0, of item `target` among all items of `scores` but those in
// `seen` (the target itself is never left out). Equal scores: the smaller
// index is the better.
int64_t PlaceOf(int32_t target, absl::Span<const float> scores,
                absl::Span<const int32_t> seen);

// Hit rate: the share of places below 10. NDCG: the mean of 1 / log2(place +
// 2), 0 from place 10 on.
NextItemMetrics EvaluateNextItem(absl::Span<const int64_t> places);

// ---- Labels ----

// Mean over the labels that occur in `truth` or `predicted` of 2TP / (2TP + FP
// + FN). Both are (rows, labels) row-major, nonzero meaning yes.
double MacroF1(absl::Span<const uint8_t> truth,
               absl::Span<const uint8_t> predicted, int labels);

struct InterestMetrics {
  double macro_f1 = 0;    // of the labels with probability >= 0.5
  double accuracy = 0;    // share of rows whose likeliest label is a true one
  double ndcg_at_10 = 0;  // of the labels by probability, gain 1 for true ones
};

// (rows, labels) row-major. Accuracy and NDCG are over rows that have a true
// label; equal scores: the smaller label first. `threshold` is on `scores`.
InterestMetrics EvaluateInterests(absl::Span<const float> scores,
                                  absl::Span<const uint8_t> truth, int labels,
                                  double threshold);

struct ClassificationMetrics {
  double macro_f1 = 0;
  double accuracy = 0;
};

ClassificationMetrics EvaluateClassification(
    absl::Span<const int32_t> predicted, absl::Span<const int32_t> truth,
    int labels);

// ---- From cosines to probabilities ----

// score = sigmoid(scale * x + bias), the maximum of the likelihood of
// positives against negatives (Platt), each side weighing one half, with a
// little ridge so that separable data gives finite numbers.
struct PlattScale {
  double scale = 1;
  double bias = 0;
};
PlattScale FitPlatt(absl::Span<const float> positives,
                    absl::Span<const float> negatives);

}  // namespace vitrine
