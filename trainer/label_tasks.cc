// The tasks with labels. Interest: a history, a logit per category, binary
// cross-entropy on each. Classification: a text, a logit per label, softmax
// cross-entropy.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "trainer/task.h"

namespace vitrine {
namespace {

using LabelNumbers = absl::flat_hash_map<std::string, int32_t>;

// The head's labels, then those of `names` that are new, in sorted order.
LabelNumbers AddLabels(const std::set<std::string>& names,
                       internal::Head* head) {
  LabelNumbers numbers;
  for (const std::string& label : head->labels()) {
    numbers.emplace(label, static_cast<int32_t>(numbers.size()));
  }
  for (const std::string& name : names) {
    if (numbers.emplace(name, static_cast<int32_t>(numbers.size())).second) {
      head->add_labels(name);
    }
  }
  return numbers;
}

class InterestTask : public Task {
 public:
  InterestTask(const internal::Head& head, const Split& split)
      : Task(head), split_(split) {}

  absl::Status Init(const Featurizer& featurizer, const Catalogue& catalogue) {
    std::set<std::string> names;
    for (const HistoryRow& row : split_.training.histories) {
      names.insert(row.categories.begin(), row.categories.end());
    }
    const LabelNumbers numbers = AddLabels(names, &head_);
    if (head_.labels().empty()) {
      return absl::InvalidArgumentError("the rows name no categories");
    }
    RETURN_IF_ERROR(Encode(split_.training, numbers, featurizer, catalogue,
                           &training_, &training_truth_));
    // A category that only held-out rows have is always missed, as it should
    // be: the truth must not depend on which head is asked.
    internal::Head all = head_;
    std::set<std::string> held_out;
    for (const HistoryRow& row : split_.validation.histories) {
      held_out.insert(row.categories.begin(), row.categories.end());
    }
    const LabelNumbers all_numbers = AddLabels(held_out, &all);
    validation_labels_.assign(all.labels().begin(), all.labels().end());
    digest_ = DigestOf(split_.validation, catalogue);
    return Encode(split_.validation, all_numbers, featurizer, catalogue,
                  &validation_, &validation_truth_);
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
    const int labels = head_.labels_size();
    std::vector<float> targets;
    for (const int32_t example : examples) {
      const auto row = training_truth_.begin() + int64_t{example} * labels;
      targets.insert(targets.end(), row, row + labels);
    }
    // The sum over labels, a row's log-likelihood like the other tasks': the
    // mean would all but vanish beside them where there are many labels.
    return at::binary_cross_entropy_with_logits(
               outputs, at::tensor(targets).view_as(outputs)) *
           labels;
  }

  int validation_rows() const override {
    return static_cast<int>(validation_.size());
  }

  Evaluation Evaluate(const Inference& model, int h) const override {
    if (validation_.empty()) return {};
    Evaluation evaluation =
        EvaluateLogits(model.Infer(h, Pointers(validation_)));
    evaluation.set_unit_digest(digest_);
    return evaluation;
  }

  // Every shopper gets the categories by their share of training rows.
  std::vector<Baseline> Baselines() const override {
    if (validation_.empty()) return {};
    const int labels = head_.labels_size();
    std::vector<float> shares(labels);
    for (size_t i = 0; i < training_truth_.size(); ++i) {
      shares[i % labels] += static_cast<float>(training_truth_[i]) /
                            static_cast<float>(training_.size());
    }
    for (float& share : shares) share = std::log(share / (1 - share));
    std::vector<float> logits;
    for (size_t i = 0; i < validation_.size(); ++i) {
      logits.insert(logits.end(), shares.begin(), shares.end());
    }
    return {{"most frequent", EvaluateLogits(logits).metrics()}};
  }

  std::vector<const Encoding*> Samples(size_t count) const override {
    return SpreadOver(validation_.empty() ? training_ : validation_, count);
  }

 private:
  absl::Status Encode(const Dataset& data, const LabelNumbers& numbers,
                      const Featurizer& featurizer, const Catalogue& catalogue,
                      std::vector<Encoding>* sequences,
                      std::vector<uint8_t>* truth) const {
    const size_t labels = numbers.size();
    truth->assign(data.histories.size() * labels, 0);
    for (size_t i = 0; i < data.histories.size(); ++i) {
      const HistoryRow& row = data.histories[i];
      ASSIGN_OR_RETURN(Encoding encoding,
                       EncodeHistory(featurizer, catalogue, row.items));
      sequences->push_back(std::move(encoding));
      for (const std::string& name : row.categories) {
        (*truth)[i * labels + numbers.at(name)] = 1;
      }
    }
    return absl::OkStatus();
  }

  // (rows, the head's labels); what the head lacks has no chance.
  Evaluation EvaluateLogits(const std::vector<float>& logits) const {
    const size_t known = head_.labels_size(), all = validation_labels_.size();
    std::vector<float> scores(validation_.size() * all,
                              -std::numeric_limits<float>::infinity());
    for (size_t i = 0; i < validation_.size(); ++i) {
      std::copy_n(logits.begin() + i * known, known, scores.begin() + i * all);
    }
    return EvaluateInterests(scores, validation_truth_, validation_labels_);
  }

  const Split& split_;
  // The head's, then those that only held-out rows have.
  std::vector<std::string> validation_labels_;
  std::string digest_;
  std::vector<Encoding> training_, validation_;
  // (rows, the head's labels) and (rows, validation_labels_).
  std::vector<uint8_t> training_truth_, validation_truth_;
};

class ClassificationTask : public Task {
 public:
  ClassificationTask(const internal::Head& head, const Split& split)
      : Task(head), split_(split) {}

  absl::Status Init(const Featurizer& featurizer) {
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
    return Encode(split_.validation, numbers, featurizer, &validation_,
                  &validation_truth_);
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
    // A version that is only evaluated knows its own labels, the first ones;
    // what the rows have beyond them has no chance.
    const size_t known = model.width(h), all = head_.labels_size();
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
    return {{"most frequent", EvaluateProbabilities(probabilities).metrics()}};
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
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> NewInterestTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Catalogue& catalogue, const Split& split) {
  auto task = std::make_unique<InterestTask>(settings.head, split);
  RETURN_IF_ERROR(task->Init(featurizer, catalogue));
  return task;
}

absl::StatusOr<std::unique_ptr<Task>> NewClassificationTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Split& split) {
  auto task = std::make_unique<ClassificationTask>(settings.head, split);
  RETURN_IF_ERROR(task->Init(featurizer));
  return task;
}

}  // namespace vitrine
