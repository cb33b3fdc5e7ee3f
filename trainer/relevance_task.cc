// Relevance: a query and an item as one sequence, one logit, its sigmoid held
// against the grade mapped to [0, 1] by binary cross-entropy, beside which a
// loss over the order of a query's rows may stand.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "trainer/bm25.h"
#include "trainer/lambda_loss.h"
#include "trainer/task.h"

namespace vitrine {
namespace {

// An item's whole text, as BM25 sees it.
std::string PlainText(const v1::Item& item) {
  std::string text = absl::StrCat(item.title(), " ", item.brand(), " ",
                                  absl::StrJoin(item.categories(), " "), " ");
  for (const auto& [key, value] : item.attributes()) {
    absl::StrAppend(&text, value, " ");
  }
  absl::StrAppend(&text, item.description());
  return text;
}

class RelevanceTask : public Task {
 public:
  RelevanceTask(const TaskSettings& settings, const Catalogue& catalogue,
                const Split& split)
      : Task(settings.head),
        loss_(settings.relevance_loss),
        catalogue_(catalogue),
        split_(split) {}

  absl::Status Init(const Featurizer& featurizer) {
    RETURN_IF_ERROR(Encode(featurizer, split_.training, &training_));
    RETURN_IF_ERROR(Encode(featurizer, split_.validation, &validation_));
    const GradeRange& grades = split_.training.grades;
    for (const RelevanceRow& row : split_.training.relevance) {
      targets_.push_back((row.grade - grades.min) / (grades.max - grades.min));
      weights_.push_back(row.weight);
    }
    absl::flat_hash_map<std::string, int32_t> numbers;
    for (const RelevanceRow& row : split_.training.relevance) {
      queries_.push_back(
          numbers.emplace(row.query, static_cast<int32_t>(numbers.size()))
              .first->second);
    }
    numbers.clear();
    for (const RelevanceRow& row : split_.validation.relevance) {
      group_.push_back(
          numbers.emplace(row.query, static_cast<int32_t>(numbers.size()))
              .first->second);
      ties_.push_back(TieOf(row.query, catalogue_.items[row.item].id()));
    }
    return absl::OkStatus();
  }

  int examples() const override { return static_cast<int>(training_.size()); }
  int tokens(int example) const override {
    return static_cast<int>(training_[example].ids.size());
  }

  int group(int example) const override {
    return loss_ == RelevanceLoss::kLambda ? queries_[example] : -1;
  }

  std::vector<const Encoding*> Sequences(
      absl::Span<const int32_t> examples) const override {
    return Pick(training_, examples);
  }

  at::Tensor Loss(absl::Span<const int32_t> examples,
                  const at::Tensor& outputs) const override {
    std::vector<float> targets, weights;
    float sum = 0;
    for (const int32_t example : examples) {
      targets.push_back(targets_[example]);
      weights.push_back(weights_[example]);
      sum += weights_[example];
    }
    // The mean by weights; of equal ones the plain mean.
    for (float& weight : weights) weight *= weights.size() / sum;
    const at::Tensor scores = outputs.view({-1});
    const at::Tensor graded = at::binary_cross_entropy_with_logits(
        scores, at::tensor(targets), at::tensor(weights));
    if (loss_ == RelevanceLoss::kGraded) return graded;
    std::vector<LambdaRow> rows;
    for (const int32_t example : examples) {
      const RelevanceRow& row = split_.training.relevance[example];
      rows.push_back({queries_[example], row.grade - split_.training.grades.min,
                      row.weight});
    }
    // Of the two in equal parts: the order alone would leave the scores
    // anywhere, and they are to be probabilities.
    return 0.5 * graded + 0.5 * LambdaLoss(scores, rows);
  }

  int validation_rows() const override {
    return static_cast<int>(validation_.size());
  }

  Evaluation Evaluate(const Inference& model, int h) const override {
    if (validation_.empty()) return {};
    const std::vector<float> logits = model.Infer(h, Pointers(validation_));
    Evaluation evaluation =
        Ranking({logits.begin(), logits.end()}, /*probabilities=*/true);
    evaluation.set_unit_digest(DigestOf(split_.validation, catalogue_));
    return evaluation;
  }

  std::vector<Baseline> Baselines() const override {
    if (validation_.empty()) return {};
    std::vector<std::string> documents;
    for (const Dataset* part : {&split_.training, &split_.validation}) {
      for (const RelevanceRow& row : part->relevance) {
        documents.push_back(PlainText(catalogue_.items[row.item]));
      }
    }
    const size_t held_out = validation_.size();
    const Bm25 bm25(documents, held_out);
    std::vector<double> scores(held_out);
    for (size_t i = 0; i < held_out; ++i) {
      scores[i] = bm25.Score(split_.validation.relevance[i].query,
                             documents[documents.size() - held_out + i]);
    }
    return {
        {"bm25", Ranking(scores, false).metrics()},
        {"random", Ranking(std::vector<double>(held_out), false).metrics()}};
  }

  std::vector<const Encoding*> Samples(size_t count) const override {
    return SpreadOver(validation_.empty() ? training_ : validation_, count);
  }

 private:
  absl::Status Encode(const Featurizer& featurizer, const Dataset& data,
                      std::vector<Encoding>* out) const {
    // Rows of one query and of one item are many: each text is tokenized once.
    absl::flat_hash_map<absl::string_view, Tokens> queries;
    absl::flat_hash_map<int32_t, Tokens> items;
    for (const RelevanceRow& row : data.relevance) {
      const auto [query, new_query] = queries.try_emplace(row.query);
      if (new_query) {
        ASSIGN_OR_RETURN(query->second, featurizer.Query(row.query));
      }
      const auto [item, new_item] = items.try_emplace(row.item);
      if (new_item) {
        ASSIGN_OR_RETURN(item->second,
                         featurizer.ItemText(catalogue_.items[row.item]));
      }
      out->push_back(featurizer.Pair(query->second, item->second));
    }
    return absl::OkStatus();
  }

  Evaluation Ranking(const std::vector<double>& scores,
                     bool probabilities) const {
    const GradeRange& grades = split_.validation.grades;
    std::vector<RankedRow> rows(scores.size());
    for (size_t i = 0; i < scores.size(); ++i) {
      rows[i] = {scores[i], split_.validation.relevance[i].grade - grades.min,
                 ties_[i]};
    }
    return EvaluateRelevance(group_, rows, grades.max - grades.min,
                             probabilities);
  }

  const RelevanceLoss loss_;
  const Catalogue& catalogue_;
  const Split& split_;
  std::vector<Encoding> training_, validation_;
  std::vector<float> targets_;    // of training rows, in [0, 1]
  std::vector<float> weights_;    // of training rows
  std::vector<int32_t> queries_;  // of training rows: the query's number
  std::vector<int32_t> group_;    // of validation rows: the query's number
  std::vector<uint64_t> ties_;    // of validation rows
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> NewRelevanceTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Catalogue& catalogue, const Split& split) {
  auto task = std::make_unique<RelevanceTask>(settings, catalogue, split);
  RETURN_IF_ERROR(task->Init(featurizer));
  return task;
}

}  // namespace vitrine
