// Interest: a history, a logit per category, binary cross-entropy on each.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "base/status_macros.h"
#include "trainer/label_numbers.h"
#include "trainer/task.h"

namespace vitrine {
namespace {

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

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> NewInterestTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Catalogue& catalogue, const Split& split) {
  auto task = std::make_unique<InterestTask>(settings.head, split);
  RETURN_IF_ERROR(task->Init(featurizer, catalogue));
  return task;
}

}  // namespace vitrine
