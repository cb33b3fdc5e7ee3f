// Recommendation: a history and its next item, each a unit vector; softmax of
// their cosines over the items of the batch. An item that is often a target is
// often a negative too: the log of its share of the targets is taken off its
// logit (Yi et al., Sampling-bias-corrected neural modeling, 2019).

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "trainer/task.h"

namespace vitrine {
namespace {

class RecommendationTask : public Task {
 public:
  RecommendationTask(const TaskSettings& settings, const Catalogue& catalogue,
                     const Split& split)
      : Task(settings.head),
        temperature_(settings.temperature),
        targets_per_user_(settings.targets_per_user),
        catalogue_(catalogue),
        split_(split) {}

  absl::Status Init(const Featurizer& featurizer) {
    for (int32_t i = 0; i < catalogue_.listed; ++i) {
      const absl::StatusOr<Tokens> text =
          featurizer.ItemText(catalogue_.items[i]);
      RETURN_IF_ERROR(Annotate(
          text.status(), absl::StrCat("item ", catalogue_.items[i].id())));
      items_.push_back(featurizer.Single(*text));
    }
    counts_.assign(catalogue_.listed, 0);
    const auto& users = split_.training.histories;
    for (int32_t user = 0; user < users.size(); ++user) {
      const std::vector<int32_t>& items = users[user].items;
      for (const int32_t item : items) ++counts_[item];
      size_t first = 1;
      if (targets_per_user_ > 0 && items.size() > targets_per_user_) {
        first = std::max<size_t>(1, items.size() - targets_per_user_);
      }
      for (size_t i = first; i < items.size(); ++i) {
        ASSIGN_OR_RETURN(Encoding history,
                         EncodeHistory(featurizer, catalogue_,
                                       absl::MakeSpan(items).subspan(0, i)));
        training_.push_back({user, items[i], std::move(history)});
      }
    }
    for (const HistoryRow& row : split_.validation.histories) {
      ASSIGN_OR_RETURN(Encoding history,
                       EncodeHistory(featurizer, catalogue_,
                                     absl::MakeSpan(row.items).subspan(
                                         0, row.items.size() - 1)));
      validation_.push_back(std::move(history));
    }
    return absl::OkStatus();
  }

  int examples() const override { return static_cast<int>(training_.size()); }
  int tokens(int example) const override {
    const Example& e = training_[example];
    return static_cast<int>(e.history.ids.size() + items_[e.target].ids.size());
  }

  std::vector<const Encoding*> Sequences(
      absl::Span<const int32_t> examples) const override {
    std::vector<const Encoding*> sequences;
    for (const int32_t example : examples) {
      sequences.push_back(&training_[example].history);
    }
    for (const int32_t item : ColumnsOf(examples).items) {
      sequences.push_back(&items_[item]);
    }
    return sequences;
  }

  at::Tensor Loss(absl::Span<const int32_t> examples,
                  const at::Tensor& outputs) const override {
    const Columns columns = ColumnsOf(examples);
    const auto rows = static_cast<int64_t>(examples.size());
    const auto width = static_cast<int64_t>(columns.items.size());
    std::vector<float> shift(rows * width);
    for (int64_t c = 0; c < width; ++c) {
      // -log of the share; what all columns have in common does not matter.
      const float correction =
          -std::log(static_cast<float>(std::max(counts_[columns.items[c]], 1)));
      for (int64_t r = 0; r < rows; ++r) shift[r * width + c] = correction;
    }
    for (int64_t r = 0; r < rows; ++r) {
      // What the same user chose at another time is no negative.
      const Example& e = training_[examples[r]];
      for (const int32_t item : split_.training.histories[e.user].items) {
        const auto it = columns.of.find(item);
        if (it != columns.of.end() && it->second != columns.targets[r]) {
          shift[r * width + it->second] = -1e9f;
        }
      }
    }
    const at::Tensor logits =
        at::mm(outputs.narrow(0, 0, rows), outputs.narrow(0, rows, width).t()) /
            temperature_ +
        at::tensor(shift).view({rows, width});
    return at::nll_loss(at::log_softmax(logits, 1),
                        at::tensor(columns.targets));
  }

  int validation_rows() const override {
    return static_cast<int>(validation_.size());
  }

  Evaluation Evaluate(const Inference& model, int h) const override {
    if (validation_.empty()) return {};
    // Some users at a time: all of them times all items may be too much.
    constexpr size_t kUsers = 1024;
    const at::Tensor items = Vectors(model, h, Pointers(items_));
    const at::Tensor users = Vectors(model, h, Pointers(validation_));
    std::vector<int64_t> places;
    for (size_t begin = 0; begin < validation_.size(); begin += kUsers) {
      const size_t end = std::min(begin + kUsers, validation_.size());
      const at::Tensor cosines = Cosines(users.slice(0, begin, end), items);
      for (size_t i = begin; i < end; ++i) {
        places.push_back(Place(
            i, absl::MakeSpan(
                   cosines.data_ptr<float>() + (i - begin) * items_.size(),
                   items_.size())));
      }
    }
    Evaluation evaluation = EvaluateNextItem(places);
    evaluation.set_unit_digest(DigestOf(split_.validation, catalogue_));
    return evaluation;
  }

  std::vector<Baseline> Baselines() const override {
    if (validation_.empty()) return {};
    const std::vector<float> popularity(counts_.begin(), counts_.end());
    std::vector<int64_t> places;
    for (size_t i = 0; i < validation_.size(); ++i) {
      places.push_back(Place(i, popularity));
    }
    return {{"popularity", EvaluateNextItem(places).metrics()}};
  }

  // The score's scale: next items against the rest of the catalogue, by the
  // rows held out, or by some of the training rows where there are none.
  void Calibrate(Network* network, int h) const override {
    constexpr size_t kRows = 1000;
    std::vector<const Encoding*> histories;
    std::vector<const std::vector<int32_t>*> seen;
    std::vector<int32_t> targets;
    for (size_t i = 0; i < validation_.size() && i < kRows; ++i) {
      const auto& items = split_.validation.histories[i].items;
      histories.push_back(&validation_[i]);
      seen.push_back(&items);
      targets.push_back(items.back());
    }
    for (size_t i = 0; validation_.empty() && i < training_.size() && i < kRows;
         ++i) {
      const Example& e =
          training_[i * training_.size() / std::min(kRows, training_.size())];
      histories.push_back(&e.history);
      seen.push_back(&split_.training.histories[e.user].items);
      targets.push_back(e.target);
    }
    const at::Tensor cosines = Cosines(Vectors(*network, h, histories),
                                       Vectors(*network, h, Pointers(items_)));
    std::vector<float> positives, negatives;
    for (size_t i = 0; i < histories.size(); ++i) {
      const float* const row = cosines.data_ptr<float>() + i * items_.size();
      positives.push_back(row[targets[i]]);
      const absl::flat_hash_set<int32_t> own(seen[i]->begin(), seen[i]->end());
      // Some hundred a row, spread over the catalogue, say enough.
      const size_t stride = std::max<size_t>(1, items_.size() / 200);
      for (size_t item = i % stride; item < items_.size(); item += stride) {
        if (!own.contains(static_cast<int32_t>(item))) {
          negatives.push_back(row[item]);
        }
      }
    }
    const PlattScale fit = FitPlatt(positives, negatives);
    network->SetScoreScale(h, static_cast<float>(fit.scale),
                           static_cast<float>(fit.bias));
  }

  std::vector<const Encoding*> Samples(size_t count) const override {
    return SpreadOver(items_, count);
  }

 private:
  struct Example {
    int32_t user;
    int32_t target;
    Encoding history;
  };

  // The items that a batch is told apart by, each once.
  struct Columns {
    std::vector<int32_t> items;
    absl::flat_hash_map<int32_t, int32_t> of;  // the column of an item
    std::vector<int64_t> targets;              // the column of each example
  };
  Columns ColumnsOf(absl::Span<const int32_t> examples) const {
    Columns columns;
    for (const int32_t example : examples) {
      const int32_t target = training_[example].target;
      const auto [it, added] = columns.of.emplace(
          target, static_cast<int32_t>(columns.items.size()));
      if (added) columns.items.push_back(target);
      columns.targets.push_back(it->second);
    }
    return columns;
  }

  // Of length 1, (encodings, width) fp32.
  static at::Tensor Vectors(const Inference& model, int h,
                            const std::vector<const Encoding*>& encodings) {
    return at::tensor(model.Infer(h, encodings))
        .view({static_cast<int64_t>(encodings.size()), model.width(h)});
  }

  // (users, items) fp32, contiguous.
  static at::Tensor Cosines(const at::Tensor& users, const at::Tensor& items) {
    const at::NoGradGuard no_grad;
    return at::mm(users, items.t()).contiguous();
  }

  int64_t Place(size_t row, absl::Span<const float> scores) const {
    const std::vector<int32_t>& items = split_.validation.histories[row].items;
    return PlaceOf(items.back(), scores,
                   absl::MakeSpan(items).subspan(0, items.size() - 1));
  }
  const double temperature_;
  const int targets_per_user_;
  const Catalogue& catalogue_;
  const Split& split_;
  std::vector<Encoding> items_;  // of the catalogue's listed items
  std::vector<int> counts_;      // of each in the training histories
  std::vector<Example> training_;
  std::vector<Encoding> validation_;  // all but the last item of each history
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> NewRecommendationTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Catalogue& catalogue, const Split& split) {
  auto task = std::make_unique<RecommendationTask>(settings, catalogue, split);
  RETURN_IF_ERROR(task->Init(featurizer));
  return task;
}

}  // namespace vitrine
