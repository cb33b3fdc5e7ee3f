#pragma once

// The numbers by which versions are compared, defined exactly. Plain
// arithmetic over scores: no model in here.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

struct MetricValue {
  std::string name;  // such as "ndcg@10"
  double value = 0;
  bool lower_is_better = false;
};

// What a head of the kind is measured by, in this order; the first is what an
// epoch is chosen by.
//
//   relevance       ndcg@10 mrr map rmse ece kappa
//   recommendation  ndcg@10 hr@10 mrr
//   interest        macro_f1 accuracy ndcg@10 ece
//   classification  macro_f1 accuracy ece auroc
std::vector<std::string> MetricNames(internal::HeadKind kind);

// ---- Sums over units ----

// The units of an evaluation are what was drawn independently: the queries of
// relevance, the users of recommendation, the rows of the others. Every metric
// is a function of sums over units, so that it can be told again for any
// resample of them, fast, without going back to the rows.
struct Measure {
  enum class Form {
    kMean,         // slot 0 counts, slot 1 sums: sum / count
    kRootMean,     // the root of that
    kCalibration,  // slot 0 counts, slot 1 + b sums probability - outcome in
                   // bin b: the sum over bins of its absolute value / count
    kMacroF1,      // slots 2l and 2l + 1: true positives (TP) and errors (FP +
                   // FN) of label l: the mean over labels that have either of
                   // 2TP / (2TP + FP + FN)
    kKappa,        // truth t and prediction p: slot 0 counts, 1 sums (t - p)^2,
                   // 2 t, 3 p, 4 t^2 + p^2: 1 less the mean of (t - p)^2 over
                   // what it would be if t and p were paired by chance
    kRankArea,  // label l has slots [l * label_slots, (l + 1) * label_slots),
                // 2r and 2r + 1 of them counting the rows at rank r from
                // below that do not have it and that do: the mean, over
                // labels with both, of the share of pairs of such rows in
                // the right order, equal ranks counting one half
  };
  struct Term {
    int32_t unit;
    int32_t slot;
    double value;
  };
  std::string name;
  Form form = Form::kMean;
  bool lower_is_better = false;
  int label_slots = 0;      // kRankArea's
  std::vector<Term> terms;  // in any order; those of one slot add up
};

// Immutable.
class Evaluation {
 public:
  // Of nothing: no units, no metrics.
  Evaluation() = default;
  // Every term's unit is below `units`.
  Evaluation(int units, std::vector<Measure> measures);

  int units() const { return units_; }
  // Over all units; 0 where nothing counts.
  const std::vector<MetricValue>& metrics() const { return metrics_; }
  // Metric number `metric` over these units, one as often as it is named.
  double Value(size_t metric, absl::Span<const int32_t> units) const;
  // Units that have a part in the metric: a query whose rows are all of one
  // grade, say, has none in ndcg@10.
  int Counted(size_t metric) const;

  // Each label that occurs in truth or prediction, without the head's name.
  const std::vector<internal::LabelScore>& label_scores() const {
    return label_scores_;
  }
  void set_label_scores(std::vector<internal::LabelScore> scores) {
    label_scores_ = std::move(scores);
  }

  // Says what the units are: two evaluations pair up where it is the same.
  const std::string& unit_digest() const { return unit_digest_; }
  void set_unit_digest(std::string digest) { unit_digest_ = std::move(digest); }

 private:
  // A measure's terms by unit: those of unit u are [offsets[u], offsets[u+1]).
  struct Sums {
    Measure::Form form;
    int slots;
    int label_slots;
    std::vector<int64_t> offsets;
    std::vector<int32_t> slot;
    std::vector<double> value;
  };

  int units_ = 0;
  std::vector<Sums> sums_;
  std::vector<MetricValue> metrics_;
  std::vector<internal::LabelScore> label_scores_;
  std::string unit_digest_;
};

// ---- Calibration (ece) ----
//
// Probabilities in [0, 1] fall into 15 bins of equal width, 1 into the last.
// With n_b probabilities in bin b: the sum over bins of n_b / n * |mean
// probability - mean outcome|. Less is better.

// ---- Ranking of graded items (relevance) ----

// One scored row of a query.
struct RankedRow {
  double score = 0;       // a logit
  double gain_grade = 0;  // the grade less the lowest one there can be
  uint64_t tie = 0;       // equal scores: the smaller first
};

// The tie of a row: the first 32 bits of SHA-256 over query and item id, so
// that a constant score gives a random order, the same in every run.
uint64_t TieOf(absl::string_view query, absl::string_view item_id);

// The rows of each query; query[i] is that of rows[i], from 0.
std::vector<std::vector<RankedRow>> RowsByQuery(
    absl::Span<const int32_t> query, absl::Span<const RankedRow> rows);

// Whether there is an order to get right.
bool GradesDiffer(absl::Span<const RankedRow> rows);

// Sum over the first `k` of (2^grade - 1) / log2(rank + 1), rank from 1, over
// that of the best order. Rows must hold two different grades.
double NdcgAt(int k, std::vector<RankedRow> rows);

// 1 / rank of the first row whose grade is at least `relevant`; 0 if none is.
double ReciprocalRank(double relevant, std::vector<RankedRow> rows);

// The mean, over the rows whose grade is at least `relevant`, of the share of
// such rows among those up to its rank; 0 if there is none.
double AveragePrecision(double relevant, std::vector<RankedRow> rows);

// The units are the queries; query[i] is that of rows[i], from 0. `range` is
// the largest gain_grade there can be. Over the queries with at least two rows
// and two different grades:
//   ndcg@10, mrr, map  means of NdcgAt, ReciprocalRank and AveragePrecision,
//                      relevant being half of `range` or more
// and where `probabilities` are asked for, sigmoid(score) being one, over all
// rows:
//   rmse   the root mean square of range * probability - gain_grade
//   ece    calibration, gain_grade / range being the outcome
//   kappa  quadratic weighted kappa (Cohen, 1968) of gain_grade against range *
//          probability, each rounded to a whole number; 0 where all rows have
//          one grade and it is predicted for all
Evaluation EvaluateRelevance(absl::Span<const int32_t> query,
                             absl::Span<const RankedRow> rows, double range,
                             bool probabilities);

// ---- The next item out of a whole catalogue (recommendation) ----

// The place, from 0, of item `target` among all items of `scores` but those in
// `seen` (the target itself is never left out). Equal scores: the smaller
// index is the better.
int64_t PlaceOf(int32_t target, absl::Span<const float> scores,
                absl::Span<const int32_t> seen);

// The units are the users, one place each. Means of
//   ndcg@10  1 / log2(place + 2), 0 from place 10 on
//   hr@10    1 below place 10, else 0
//   mrr      1 / (place + 1)
Evaluation EvaluateNextItem(absl::Span<const int64_t> places);

// ---- Labels ----

// The units are the rows. Scores are logits, (rows, labels) row-major; nonzero
// in `truth` means yes.
//   macro_f1  of the labels with a logit >= 0, as Measure says
//   accuracy  share of rows whose likeliest label is a true one
//   ndcg@10   of the labels by score, gain 1 for true ones
//   ece       calibration of sigmoid(logit) over all (row, label) pairs
// Accuracy and ndcg@10 are over rows that have a true label; equal scores: the
// smaller label first.
Evaluation EvaluateInterests(absl::Span<const float> scores,
                             absl::Span<const uint8_t> truth,
                             absl::Span<const std::string> labels);

// The units are the rows. Probabilities are (rows, labels) row-major; the
// likeliest label is predicted, of equal ones the first.
//   macro_f1  as Measure says
//   accuracy  share of rows whose prediction is right
//   ece       calibration of the predicted label's, being right the outcome
//   auroc     the area under the ROC curve, exactly: of two labels that of the
//             second (the first's is the same), of more the mean over labels,
//             each against the rest, that some rows have and some do not. Where
//             that is above a million numbers, rows times labels, the labels
//             with most rows count, as many as keep it below.
Evaluation EvaluateClassification(absl::Span<const double> probabilities,
                                  absl::Span<const int32_t> truth,
                                  absl::Span<const std::string> labels);

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
