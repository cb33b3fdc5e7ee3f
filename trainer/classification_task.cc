// Classification: a text, a logit per label, softmax cross-entropy; beside the
// encoder, and learnt beside it, a linear classifier over the text's n-grams
// (model/ngram_classifier.h).

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/status_macros.h"
#include "trainer/fit_task.h"
#include "trainer/ideograph_splits.h"
#include "trainer/label_numbers.h"
#include "trainer/ngram_fit.h"
#include "trainer/task.h"

namespace vitrine {
namespace {

// Fewer give n-grams too little to count.
constexpr size_t kLeastTrainingRows = 100;
// Held-out rows on which the weights of encoder and n-grams can be told; with
// fewer they are what larger sets came to.
constexpr size_t kLeastMixtureRows = 30;
constexpr NgramMixture kUsualMixture = {1, 4};

class ClassificationTask : public Task {
 public:
  ClassificationTask(const TaskSettings& settings, const Split& split)
      : Task(settings.head),
        split_(split),
        source_ngrams_(settings.source_tables.ngrams) {}

  absl::Status Init(const TaskSettings& settings,
                    const Featurizer& featurizer) {
    // Labels of held-out rows too: one that no training row has is always
    // missed, as it should be.
    std::set<std::string> names;
    for (const Dataset* part : {&split_.training, &split_.validation}) {
      for (const TextRow& row : part->texts) names.insert(row.label);
    }
    const LabelNumbers numbers = AddLabels(names, &head_);
    if (head_.labels_size() < 2) {
      return absl::InvalidArgumentError(
          "the rows have one label only; at least two are needed");
    }
    RETURN_IF_ERROR(Encode(split_.training, numbers, featurizer, &training_,
                           &training_truth_));
    RETURN_IF_ERROR(Encode(split_.validation, numbers, featurizer, &validation_,
                           &validation_truth_));
    if (settings.evaluation_only) {
      served_ = source_ngrams_;
    } else if (settings.ngrams_from == TablesFrom::kRows &&
               training_.size() >= kLeastTrainingRows) {
      ASSIGN_OR_RETURN(fitted_, NgramClassifier::Create(FitNgrams(
                                    Pointers(training_), training_truth_,
                                    head_.labels_size(),
                                    IdeographSplits(featurizer.tokenizer()),
                                    settings.workers, settings.stop)));
      if (settings.stop != nullptr) {
        RETURN_IF_ERROR(CheckStop(*settings.stop));
      }
      margins_ = MarginsOf(*fitted_);
    } else if (settings.ngrams_from != TablesFrom::kNone &&
               source_ngrams_ != nullptr &&
               source_ngrams_->labels() == head_.labels_size()) {
      served_ = source_ngrams_;
    }
    return absl::OkStatus();
  }

  int examples() const override { return static_cast<int>(training_.size()); }
  int tokens(int example) const override {
    return static_cast<int>(training_[example].ids.size());
  }

  std::vector<const Encoding*> Sequences(
      absl::Span<const int32_t> examples) const override {
    return Pick(training_, examples);
  }

  at::Tensor Loss(absl::Span<const int32_t> examples,
                  const at::Tensor& outputs) const override {
    std::vector<int64_t> targets;
    for (const int32_t example : examples) {
      targets.push_back(training_truth_[example]);
    }
    return at::nll_loss(at::log_softmax(outputs, 1), at::tensor(targets));
  }

  int validation_rows() const override {
    return static_cast<int>(validation_.size());
  }

  Evaluation Evaluate(const Inference& model, int h) const override {
    if (validation_.empty()) return {};
    const std::vector<float> logits = model.Infer(h, Pointers(validation_));
    if (fitted_ == nullptr || calibrated_) {
      return EvaluateWith(served_.get(), logits, model.width(h));
    }
    return EvaluateLogits(Combined(Mixture(logits), margins_, logits),
                          head_.labels_size());
  }

  Evaluation EvaluateSource(const Inference& model, int h) const override {
    if (validation_.empty()) return {};
    return EvaluateWith(source_ngrams_.get(),
                        model.Infer(h, Pointers(validation_)), model.width(h));
  }

  // The weights of encoder and n-grams, by the rows held out: two numbers can
  // hardly be over-fitted.
  void Calibrate(Network* network, int h) override {
    calibrated_ = true;
    if (fitted_ == nullptr) return;
    const std::vector<float> logits = network->Infer(h, Pointers(validation_));
    NgramTable table = fitted_->table();
    table.mixture = Mixture(logits);
    if (table.mixture.ngram_weight == 0) return;
    served_ = *NgramClassifier::Create(std::move(table));
    if (validation_.empty()) return;
    encoder_alone_ = EvaluateLogits(logits, head_.labels_size()).metrics();
  }

  std::vector<Baseline> Parts() const override {
    if (encoder_alone_.empty()) return {};
    return {{"encoder alone", encoder_alone_}};
  }

  HeadTables tables() const override { return {.ngrams = served_}; }

  std::vector<Baseline> Baselines() const override {
    if (validation_.empty()) return {};
    std::vector<double> shares(head_.labels_size());
    for (const int32_t label : training_truth_) {
      shares[label] += 1.0 / static_cast<double>(training_.size());
    }
    std::vector<double> probabilities;
    for (size_t i = 0; i < validation_.size(); ++i) {
      probabilities.insert(probabilities.end(), shares.begin(), shares.end());
    }
    std::vector<Baseline> out = {
        {"most frequent", EvaluateProbabilities(probabilities).metrics()}};
    if (fitted_ != nullptr) {
      const std::vector<float> none(margins_.size());
      out.push_back(
          {"n-grams", EvaluateLogits(Combined(Mixture(none), margins_, none),
                                     head_.labels_size())
                          .metrics()});
    }
    return out;
  }

  std::vector<const Encoding*> Samples(size_t count) const override {
    return SpreadOver(validation_.empty() ? training_ : validation_, count);
  }

 private:
  static absl::Status Encode(const Dataset& data, const LabelNumbers& numbers,
                             const Featurizer& featurizer,
                             std::vector<Encoding>* sequences,
                             std::vector<int32_t>* truth) {
    for (const TextRow& row : data.texts) {
      ASSIGN_OR_RETURN(Encoding encoding, featurizer.Text(row.text));
      sequences->push_back(std::move(encoding));
      truth->push_back(numbers.at(row.label));
    }
    return absl::OkStatus();
  }

  // (held-out rows, the classifier's labels).
  std::vector<float> MarginsOf(const NgramClassifier& ngrams) const {
    std::vector<float> out;
    for (const Encoding& text : validation_) {
      const std::vector<float> row = ngrams.Margins(text.ids);
      out.insert(out.end(), row.begin(), row.end());
    }
    return out;
  }

  NgramMixture Mixture(absl::Span<const float> logits) const {
    if (validation_.size() < kLeastMixtureRows) return kUsualMixture;
    return FitNgramMixture(logits, margins_, validation_truth_,
                           head_.labels_size());
  }

  // Of the held-out rows.
  std::vector<float> Combined(const NgramMixture& mixture,
                              absl::Span<const float> margins,
                              std::vector<float> logits) const {
    const size_t rows = validation_.size();
    const size_t width = logits.size() / rows, labels = margins.size() / rows;
    for (size_t i = 0; i < rows; ++i) {
      mixture.Combine(margins.subspan(i * labels, labels),
                      absl::MakeSpan(logits).subspan(i * width, width));
    }
    return logits;
  }

  Evaluation EvaluateWith(const NgramClassifier* ngrams,
                          std::vector<float> logits, size_t known) const {
    if (ngrams == nullptr) return EvaluateLogits(logits, known);
    return EvaluateLogits(
        Combined(ngrams->mixture(), MarginsOf(*ngrams), std::move(logits)),
        known);
  }

  // (rows, known): a version that is only evaluated knows its own labels, the
  // first ones; what the rows have beyond them has no chance.
  Evaluation EvaluateLogits(absl::Span<const float> logits,
                            size_t known) const {
    const size_t all = head_.labels_size();
    std::vector<double> probabilities(validation_.size() * all);
    for (size_t i = 0; i < validation_.size(); ++i) {
      const float* const row = logits.data() + i * known;
      const double most = *std::max_element(row, row + known);
      double* const out = probabilities.data() + i * all;
      double sum = 0;
      for (size_t l = 0; l < known; ++l)
        sum += out[l] = std::exp(row[l] - most);
      for (size_t l = 0; l < known; ++l) out[l] /= sum;
    }
    Evaluation evaluation = EvaluateProbabilities(probabilities);
    evaluation.set_unit_digest(DigestOf(split_.validation, {}));
    return evaluation;
  }

  // (rows, head()'s labels).
  Evaluation EvaluateProbabilities(
      const std::vector<double>& probabilities) const {
    const std::vector<std::string> labels(head_.labels().begin(),
                                          head_.labels().end());
    return EvaluateClassification(probabilities, validation_truth_, labels);
  }

  const Split& split_;
  std::vector<Encoding> training_, validation_;
  std::vector<int32_t> training_truth_, validation_truth_;

  const std::shared_ptr<const NgramClassifier> source_ngrams_;
  // Of the training rows, without a mixture yet; null: none is made.
  std::unique_ptr<const NgramClassifier> fitted_;
  std::vector<float> margins_;  // its, of the held-out rows
  bool calibrated_ = false;
  std::shared_ptr<const NgramClassifier> served_;  // null: none, or none yet
  std::vector<MetricValue> encoder_alone_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> NewClassificationTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Split& split) {
  auto task = std::make_unique<ClassificationTask>(settings, split);
  RETURN_IF_ERROR(task->Init(settings, featurizer));
  return task;
}

}  // namespace vitrine
