// Relevance: a query and an item as one sequence, one logit, its sigmoid held
// against the grade mapped to [0, 1] by binary cross-entropy, beside which a
// loss over the order of a query's rows may stand; beside the encoder, and
// learnt beside it, a linear model of their words (model/lexical_scorer.h).

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "trainer/bm25.h"
#include "trainer/fit_task.h"
#include "trainer/lambda_loss.h"
#include "trainer/lexical_fit.h"
#include "trainer/task.h"

namespace vitrine {
namespace {

// Fewer give the linear model too little to count.
constexpr size_t kLeastTrainingRows = 100;

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
        split_(split),
        source_(settings.source_tables.lexical) {}

  absl::Status Init(const TaskSettings& settings,
                    const Featurizer& featurizer) {
    Texts training, validation;
    RETURN_IF_ERROR(Encode(featurizer, split_.training, &training, &training_));
    RETURN_IF_ERROR(
        Encode(featurizer, split_.validation, &validation, &validation_));
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
    return FitLexicalModel(settings, training.pairs, validation.pairs);
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
    if (fitted_ != nullptr && !calibrated_) {
      return Ranking(Combined(Mixture(logits), logits, values_), true);
    }
    return EvaluateWith(served_.get(), logits, values_);
  }

  Evaluation EvaluateSource(const Inference& model, int h) const override {
    if (validation_.empty()) return {};
    return EvaluateWith(source_.get(), model.Infer(h, Pointers(validation_)),
                        source_values_);
  }

  // The weights of encoder and linear model, by the rows held out: three
  // numbers can hardly be over-fitted.
  void Calibrate(Network* network, int h) override {
    calibrated_ = true;
    if (fitted_ == nullptr) return;
    const std::vector<float> logits = network->Infer(h, Pointers(validation_));
    LexicalTable table = fitted_->table();
    table.mixture = Mixture(logits);
    if (table.mixture.lexical_weight == 0) return;
    served_ = *LexicalScorer::Create(std::move(table));
    if (validation_.empty()) return;
    encoder_alone_ = Ranking({logits.begin(), logits.end()}, true).metrics();
  }

  std::vector<Baseline> Parts() const override {
    if (encoder_alone_.empty()) return {};
    return {{"encoder alone", encoder_alone_}};
  }

  HeadTables tables() const override { return {.lexical = served_}; }

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
    std::vector<Baseline> out = {
        {"bm25", Ranking(scores, false).metrics()},
        {"random", Ranking(std::vector<double>(held_out), false).metrics()}};
    if (fitted_ != nullptr) {
      const std::vector<float> none(held_out);
      out.push_back(
          {"lexical",
           Ranking(Combined(Mixture(none), none, values_), true).metrics()});
    }
    return out;
  }

  std::vector<const Encoding*> Samples(size_t count) const override {
    return SpreadOver(validation_.empty() ? training_ : validation_, count);
  }

 private:
  // The tokens of rows.
  struct Texts {
    // Rows of one query and of one item are many: each text is tokenized once.
    std::unordered_map<std::string, Tokens> queries;
    std::unordered_map<int32_t, Tokens> items;
    std::vector<TokenPair> pairs;  // of each row
  };

  absl::Status Encode(const Featurizer& featurizer, const Dataset& data,
                      Texts* texts, std::vector<Encoding>* out) const {
    for (const RelevanceRow& row : data.relevance) {
      const auto [query, new_query] = texts->queries.try_emplace(row.query);
      if (new_query) {
        ASSIGN_OR_RETURN(query->second, featurizer.Query(row.query));
      }
      const auto [item, new_item] = texts->items.try_emplace(row.item);
      if (new_item) {
        ASSIGN_OR_RETURN(item->second,
                         featurizer.ItemText(catalogue_.items[row.item]));
      }
      texts->pairs.push_back({query->second.ids, item->second.ids});
      out->push_back(featurizer.Pair(query->second, item->second));
    }
    return absl::OkStatus();
  }

  absl::Status FitLexicalModel(const TaskSettings& settings,
                               absl::Span<const TokenPair> training,
                               absl::Span<const TokenPair> validation) {
    if (source_ != nullptr) source_values_ = ValuesOf(*source_, validation);
    if (!settings.evaluation_only &&
        settings.ngrams_from == TablesFrom::kRows &&
        training.size() >= kLeastTrainingRows) {
      ASSIGN_OR_RETURN(
          fitted_, LexicalScorer::Create(FitLexical(training, targets_,
                                                    weights_, settings.stop)));
      if (settings.stop != nullptr) {
        RETURN_IF_ERROR(CheckStop(*settings.stop));
      }
      values_ = ValuesOf(*fitted_, validation);
    } else if (settings.evaluation_only ||
               settings.ngrams_from != TablesFrom::kNone) {
      served_ = source_;
      values_ = source_values_;
    }
    return absl::OkStatus();
  }

  static std::vector<float> ValuesOf(const LexicalScorer& scorer,
                                     absl::Span<const TokenPair> pairs) {
    std::vector<float> values;
    for (const TokenPair& pair : pairs) {
      values.push_back(scorer.Value(scorer.OfQuery(pair.query), pair.item));
    }
    return values;
  }

  LexicalMixture Mixture(absl::Span<const float> logits) const {
    return FitLexicalMixture({.query = group_,
                              .logits = logits,
                              .values = values_,
                              .rows = Rows(),
                              .range = Range()});
  }

  static std::vector<double> Combined(const LexicalMixture& mixture,
                                      absl::Span<const float> logits,
                                      absl::Span<const float> values) {
    std::vector<double> out(logits.size());
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = mixture.Logit(logits[i], values[i]);
    }
    return out;
  }

  Evaluation EvaluateWith(const LexicalScorer* lexical,
                          absl::Span<const float> logits,
                          absl::Span<const float> values) const {
    if (lexical == nullptr) {
      return Ranking({logits.begin(), logits.end()}, true);
    }
    return Ranking(Combined(lexical->mixture(), logits, values), true);
  }

  double Range() const {
    return split_.validation.grades.max - split_.validation.grades.min;
  }

  // The held-out rows, without scores.
  std::vector<RankedRow> Rows() const {
    std::vector<RankedRow> rows(validation_.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].gain_grade =
          split_.validation.relevance[i].grade - split_.validation.grades.min;
      rows[i].tie = ties_[i];
    }
    return rows;
  }

  Evaluation Ranking(const std::vector<double>& scores,
                     bool probabilities) const {
    std::vector<RankedRow> rows = Rows();
    for (size_t i = 0; i < rows.size(); ++i) rows[i].score = scores[i];
    Evaluation evaluation =
        EvaluateRelevance(group_, rows, Range(), probabilities);
    evaluation.set_unit_digest(DigestOf(split_.validation, catalogue_));
    return evaluation;
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

  const std::shared_ptr<const LexicalScorer> source_;
  std::vector<float> source_values_;  // its, of the held-out rows
  // Of the training rows, without a mixture yet; null: none is made.
  std::unique_ptr<const LexicalScorer> fitted_;
  bool calibrated_ = false;
  std::shared_ptr<const LexicalScorer> served_;  // null: none, or none yet
  // Of the held-out rows: fitted_'s, or served_'s where nothing is fitted.
  std::vector<float> values_;
  std::vector<MetricValue> encoder_alone_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> NewRelevanceTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Catalogue& catalogue, const Split& split) {
  auto task = std::make_unique<RelevanceTask>(settings, catalogue, split);
  RETURN_IF_ERROR(task->Init(settings, featurizer));
  return task;
}

}  // namespace vitrine
