#include "trainer/evaluation.h"

#include <algorithm>
#include <array>
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

constexpr int kCalibrationBins = 15;

int CalibrationBin(double probability) {
  // Written so that NaN has a bin too.
  if (!(probability > 0)) return 0;
  return std::min(static_cast<int>(probability * kCalibrationBins),
                  kCalibrationBins - 1);
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

void AddToMean(int32_t unit, double value, Measure* measure) {
  measure->terms.push_back({unit, 0, 1});
  measure->terms.push_back({unit, 1, value});
}

void AddToCalibration(int32_t unit, double probability, double outcome,
                      Measure* measure) {
  measure->terms.push_back({unit, 0, 1});
  measure->terms.push_back(
      {unit, 1 + CalibrationBin(probability), probability - outcome});
}

void AddToMacroF1(int32_t unit, int32_t label, bool truth, bool predicted,
                  Measure* measure) {
  if (truth && predicted) measure->terms.push_back({unit, 2 * label, 1});
  if (truth != predicted) measure->terms.push_back({unit, 2 * label + 1, 1});
}

void AddToKappa(int32_t unit, double truth, double predicted,
                Measure* measure) {
  const double gap = truth - predicted;
  int32_t slot = 0;
  for (const double value : {1.0, gap * gap, truth, predicted,
                             truth * truth + predicted * predicted}) {
    measure->terms.push_back({unit, slot++, value});
  }
}

// sums[2r] rows without the label and sums[2r + 1] with it at rank r; -1 where
// one of the two is missing.
double RankArea(absl::Span<const double> sums) {
  double below = 0, with = 0, in_order = 0;
  for (size_t i = 0; i < sums.size(); i += 2) {
    in_order += sums[i + 1] * (below + sums[i] / 2);
    below += sums[i];
    with += sums[i + 1];
  }
  return below > 0 && with > 0 ? in_order / (below * with) : -1;
}

double ValueOf(Measure::Form form, int label_slots,
               absl::Span<const double> sums) {
  switch (form) {
    case Measure::Form::kMean:
      return sums[0] == 0 ? 0 : sums[1] / sums[0];
    case Measure::Form::kRootMean:
      return sums[0] == 0 ? 0 : std::sqrt(sums[1] / sums[0]);
    case Measure::Form::kCalibration: {
      double sum = 0;
      for (const double gap : sums.subspan(1)) sum += std::abs(gap);
      return sums[0] == 0 ? 0 : sum / sums[0];
    }
    case Measure::Form::kMacroF1: {
      double sum = 0;
      int counted = 0;
      for (size_t i = 0; i < sums.size(); i += 2) {
        if (sums[i] + sums[i + 1] == 0) continue;
        sum += 2 * sums[i] / (2 * sums[i] + sums[i + 1]);
        ++counted;
      }
      return counted == 0 ? 0 : sum / counted;
    }
    case Measure::Form::kKappa: {
      if (sums[0] == 0) return 0;
      const double by_chance = sums[4] - 2 * sums[2] * sums[3] / sums[0];
      return by_chance == 0 ? 0 : 1 - sums[1] / by_chance;
    }
    case Measure::Form::kRankArea: {
      double sum = 0;
      int counted = 0;
      for (size_t i = 0; i < sums.size(); i += label_slots) {
        const double area = RankArea(sums.subspan(i, label_slots));
        if (area < 0) continue;
        sum += area;
        ++counted;
      }
      return counted == 0 ? 0 : sum / counted;
    }
  }
  return 0;
}

// The labels that auroc is told of, as the header says, in the labels' order.
std::vector<int32_t> LabelsWithRanks(absl::Span<const int32_t> truth,
                                     size_t labels) {
  constexpr size_t kMostNumbers = 1 << 20;
  std::vector<size_t> rows(labels);
  for (const int32_t label : truth) ++rows[label];
  std::vector<int32_t> kept;
  for (int32_t label = labels == 2 ? 1 : 0; label < labels; ++label) {
    if (rows[label] > 0 && rows[label] < truth.size()) kept.push_back(label);
  }
  if (kept.empty()) return kept;
  std::stable_sort(kept.begin(), kept.end(),
                   [&rows](int32_t a, int32_t b) { return rows[a] > rows[b]; });
  kept.resize(
      std::min(kept.size(), std::max<size_t>(1, kMostNumbers / truth.size())));
  std::sort(kept.begin(), kept.end());
  return kept;
}

Measure RankAreaOf(absl::Span<const double> probabilities,
                   absl::Span<const int32_t> truth, size_t labels) {
  Measure measure{"auroc", Measure::Form::kRankArea};
  const size_t rows = truth.size();
  measure.label_slots = static_cast<int>(2 * rows);
  std::vector<double> scores(rows);
  std::vector<int32_t> order(rows);
  int32_t number = 0;
  for (const int32_t label : LabelsWithRanks(truth, labels)) {
    for (int32_t row = 0; row < rows; ++row) {
      const double p = probabilities[row * labels + label];
      scores[row] = p >= 0 ? p : -1;  // NaN has a rank too
      order[row] = row;
    }
    std::sort(order.begin(), order.end(), [&scores](int32_t a, int32_t b) {
      return scores[a] < scores[b];
    });
    int32_t rank = 0;
    for (size_t i = 0; i < rows; ++i) {
      if (i > 0 && scores[order[i]] > scores[order[i - 1]]) ++rank;
      measure.terms.push_back(
          {order[i],
           number * measure.label_slots + 2 * rank + (truth[order[i]] == label),
           1});
    }
    ++number;
  }
  return measure;
}

// TP, FP and FN of each label.
class LabelCounts {
 public:
  explicit LabelCounts(size_t labels) : counts_(labels) {}
  void Add(int32_t label, bool truth, bool predicted) {
    ++counts_[label][truth ? (predicted ? 0 : 2) : (predicted ? 1 : 3)];
  }
  std::vector<internal::LabelScore> Scores(
      absl::Span<const std::string> names) const {
    std::vector<internal::LabelScore> scores;
    for (size_t label = 0; label < counts_.size(); ++label) {
      const auto [tp, fp, fn, neither] = counts_[label];
      if (tp + fp + fn == 0) continue;
      internal::LabelScore& score = scores.emplace_back();
      score.set_label(names[label]);
      const auto hits = static_cast<double>(tp);
      score.set_precision(tp == 0 ? 0 : hits / static_cast<double>(tp + fp));
      score.set_recall(tp == 0 ? 0 : hits / static_cast<double>(tp + fn));
      score.set_f1(2 * hits / static_cast<double>(2 * tp + fp + fn));
      score.set_rows(tp + fn);
    }
    return scores;
  }

 private:
  std::vector<std::array<int64_t, 4>> counts_;
};

void SortByScore(std::vector<RankedRow>* rows) {
  std::stable_sort(rows->begin(), rows->end(),
                   [](const RankedRow& a, const RankedRow& b) {
                     if (a.score != b.score) return a.score > b.score;
                     return a.tie < b.tie;
                   });
}

}  // namespace

std::vector<std::string> MetricNames(internal::HeadKind kind) {
  switch (kind) {
    case internal::HEAD_KIND_RELEVANCE:
      return {"ndcg@10", "mrr", "map", "rmse", "ece", "kappa"};
    case internal::HEAD_KIND_RECOMMENDATION:
      return {"ndcg@10", "hr@10", "mrr"};
    case internal::HEAD_KIND_INTEREST:
      return {"macro_f1", "accuracy", "ndcg@10", "ece"};
    case internal::HEAD_KIND_CLASSIFICATION:
      return {"macro_f1", "accuracy", "ece", "auroc"};
    default:
      return {};
  }
}

Evaluation::Evaluation(int units, std::vector<Measure> measures)
    : units_(units) {
  std::vector<int32_t> all(units);
  for (int32_t unit = 0; unit < units; ++unit) all[unit] = unit;
  for (Measure& measure : measures) {
    using Term = Measure::Term;
    std::stable_sort(measure.terms.begin(), measure.terms.end(),
                     [](const Term& a, const Term& b) {
                       if (a.unit != b.unit) return a.unit < b.unit;
                       return a.slot < b.slot;
                     });
    Sums& sums = sums_.emplace_back();
    sums.form = measure.form;
    sums.slots = 2;
    sums.label_slots = std::max(measure.label_slots, 2);
    sums.offsets.assign(units + 1, 0);
    const Term* last = nullptr;
    for (const Term& term : measure.terms) {
      sums.slots = std::max(sums.slots, (term.slot / 2 + 1) * 2);
      if (last != nullptr && last->unit == term.unit &&
          last->slot == term.slot) {
        sums.value.back() += term.value;
      } else {
        sums.slot.push_back(term.slot);
        sums.value.push_back(term.value);
        ++sums.offsets[term.unit + 1];
      }
      last = &term;
    }
    sums.slots = (sums.slots + sums.label_slots - 1) / sums.label_slots *
                 sums.label_slots;
    for (int unit = 0; unit < units; ++unit) {
      sums.offsets[unit + 1] += sums.offsets[unit];
    }
    metrics_.push_back({std::move(measure.name), 0, measure.lower_is_better});
    metrics_.back().value = Value(metrics_.size() - 1, all);
  }
}

double Evaluation::Value(size_t metric, absl::Span<const int32_t> units) const {
  const Sums& sums = sums_[metric];
  std::vector<double> totals(sums.slots);
  for (const int32_t unit : units) {
    for (int64_t i = sums.offsets[unit]; i < sums.offsets[unit + 1]; ++i) {
      totals[sums.slot[i]] += sums.value[i];
    }
  }
  return ValueOf(sums.form, sums.label_slots, totals);
}

int Evaluation::Counted(size_t metric) const {
  const std::vector<int64_t>& offsets = sums_[metric].offsets;
  int counted = 0;
  for (int unit = 0; unit < units_; ++unit) {
    counted += offsets[unit + 1] > offsets[unit];
  }
  return counted;
}

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

double AveragePrecision(double relevant, std::vector<RankedRow> rows) {
  SortByScore(&rows);
  double sum = 0;
  int found = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].gain_grade < relevant) continue;
    ++found;
    sum += static_cast<double>(found) / static_cast<double>(i + 1);
  }
  return found == 0 ? 0 : sum / found;
}

std::vector<std::vector<RankedRow>> RowsByQuery(
    absl::Span<const int32_t> query, absl::Span<const RankedRow> rows) {
  std::vector<std::vector<RankedRow>> queries;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (query[i] >= queries.size()) queries.resize(query[i] + 1);
    queries[query[i]].push_back(rows[i]);
  }
  return queries;
}

bool GradesDiffer(absl::Span<const RankedRow> rows) {
  return std::any_of(rows.begin(), rows.end(), [&rows](const RankedRow& row) {
    return row.gain_grade != rows.front().gain_grade;
  });
}

Evaluation EvaluateRelevance(absl::Span<const int32_t> query,
                             absl::Span<const RankedRow> rows, double range,
                             bool probabilities) {
  using Form = Measure::Form;
  Measure ndcg{"ndcg@10"}, mrr{"mrr"}, map{"map"};
  Measure rmse{"rmse", Form::kRootMean, /*lower_is_better=*/true};
  Measure ece{"ece", Form::kCalibration, /*lower_is_better=*/true};
  Measure kappa{"kappa", Form::kKappa};
  const std::vector<std::vector<RankedRow>> queries = RowsByQuery(query, rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    const double probability = Sigmoid(rows[i].score);
    const double error = range * probability - rows[i].gain_grade;
    AddToMean(query[i], error * error, &rmse);
    AddToCalibration(query[i], probability, rows[i].gain_grade / range, &ece);
    AddToKappa(query[i], std::round(rows[i].gain_grade),
               std::round(range * probability), &kappa);
  }
  const double relevant = range / 2;
  for (int32_t q = 0; q < queries.size(); ++q) {
    const std::vector<RankedRow>& of = queries[q];
    if (!GradesDiffer(of)) continue;
    AddToMean(q, NdcgAt(kDepth, of), &ndcg);
    AddToMean(q, ReciprocalRank(relevant, of), &mrr);
    AddToMean(q, AveragePrecision(relevant, of), &map);
  }
  std::vector<Measure> measures = {std::move(ndcg), std::move(mrr),
                                   std::move(map)};
  if (probabilities) {
    measures.push_back(std::move(rmse));
    measures.push_back(std::move(ece));
    measures.push_back(std::move(kappa));
  }
  return Evaluation(static_cast<int>(queries.size()), std::move(measures));
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

Evaluation EvaluateNextItem(absl::Span<const int64_t> places) {
  Measure ndcg{"ndcg@10"}, hits{"hr@10"}, mrr{"mrr"};
  for (int32_t user = 0; user < places.size(); ++user) {
    const int64_t place = places[user];
    AddToMean(user, place < kDepth ? Discount(place) : 0, &ndcg);
    AddToMean(user, place < kDepth ? 1 : 0, &hits);
    AddToMean(user, 1.0 / static_cast<double>(place + 1), &mrr);
  }
  return Evaluation(static_cast<int>(places.size()),
                    {std::move(ndcg), std::move(hits), std::move(mrr)});
}

Evaluation EvaluateInterests(absl::Span<const float> scores,
                             absl::Span<const uint8_t> truth,
                             absl::Span<const std::string> labels) {
  using Form = Measure::Form;
  Measure f1{"macro_f1", Form::kMacroF1}, accuracy{"accuracy"};
  Measure ndcg{"ndcg@10"};
  Measure ece{"ece", Form::kCalibration, /*lower_is_better=*/true};
  const auto width = static_cast<int32_t>(labels.size());
  const auto rows = static_cast<int32_t>(scores.size() / labels.size());
  LabelCounts counts(labels.size());
  std::vector<int32_t> order(width);
  for (int32_t row = 0; row < rows; ++row) {
    const auto of = scores.subspan(int64_t{row} * width, width);
    const auto yes = truth.subspan(int64_t{row} * width, width);
    // A row's pairs are summed here, since there may be thousands.
    std::array<double, kCalibrationBins> gaps{};
    int64_t positives = 0;
    for (int32_t label = 0; label < width; ++label) {
      const bool is = yes[label] != 0, said = of[label] >= 0;
      AddToMacroF1(row, label, is, said, &f1);
      counts.Add(label, is, said);
      positives += is;
      const double probability = Sigmoid(of[label]);
      gaps[CalibrationBin(probability)] += probability - is;
    }
    ece.terms.push_back({row, 0, static_cast<double>(width)});
    for (int bin = 0; bin < kCalibrationBins; ++bin) {
      if (gaps[bin] != 0) ece.terms.push_back({row, 1 + bin, gaps[bin]});
    }
    if (positives == 0) continue;
    for (int32_t i = 0; i < width; ++i) order[i] = i;
    const int32_t depth = std::min(width, kDepth);
    std::partial_sort(order.begin(), order.begin() + depth, order.end(),
                      [&of](int32_t a, int32_t b) {
                        if (of[a] != of[b]) return of[a] > of[b];
                        return a < b;
                      });
    double dcg = 0, best = 0;
    for (int32_t i = 0; i < depth; ++i) {
      if (yes[order[i]]) dcg += Discount(i);
      if (i < positives) best += Discount(i);
    }
    AddToMean(row, yes[order[0]] != 0, &accuracy);
    AddToMean(row, dcg / best, &ndcg);
  }
  Evaluation evaluation(rows, {std::move(f1), std::move(accuracy),
                               std::move(ndcg), std::move(ece)});
  evaluation.set_label_scores(counts.Scores(labels));
  return evaluation;
}

Evaluation EvaluateClassification(absl::Span<const double> probabilities,
                                  absl::Span<const int32_t> truth,
                                  absl::Span<const std::string> labels) {
  using Form = Measure::Form;
  Measure f1{"macro_f1", Form::kMacroF1}, accuracy{"accuracy"};
  Measure ece{"ece", Form::kCalibration, /*lower_is_better=*/true};
  LabelCounts counts(labels.size());
  for (int32_t row = 0; row < truth.size(); ++row) {
    const auto of = probabilities.subspan(row * labels.size(), labels.size());
    const auto most = std::max_element(of.begin(), of.end());
    const auto predicted = static_cast<int32_t>(most - of.begin());
    const bool right = predicted == truth[row];
    AddToMacroF1(row, truth[row], true, right, &f1);
    counts.Add(truth[row], true, right);
    if (!right) {
      AddToMacroF1(row, predicted, false, true, &f1);
      counts.Add(predicted, false, true);
    }
    AddToMean(row, right, &accuracy);
    AddToCalibration(row, *most, right, &ece);
  }
  Evaluation evaluation(static_cast<int>(truth.size()),
                        {std::move(f1), std::move(accuracy), std::move(ece),
                         RankAreaOf(probabilities, truth, labels.size())});
  evaluation.set_label_scores(counts.Scores(labels));
  return evaluation;
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
