// Recommendation: a history and its next item, each a unit vector, beside what
// the training rows say of which items go together (model/cooccurrence.h).
//
// The vectors learn by the softmax of their cosines over the items of the
// batch. An item that is often a target is often a negative too: the log of its
// share of the targets is taken off its logit (Yi et al.,
// Sampling-bias-corrected neural modeling, 2019).

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/cooccurrence.h"
#include "trainer/catalogue_logits.h"
#include "trainer/cooccurrence_counts.h"
#include "trainer/mixture_fit.h"
#include "trainer/mixture_rows.h"
#include "trainer/task.h"

namespace vitrine {
namespace {

// Users for the mixture: a share of them, at most so many; and fewer say
// nothing.
constexpr double kMixtureShare = 0.1;
constexpr double kMostMixtureUsers = 2000;
constexpr size_t kLeastMixtureUsers = 30;
// Items that the scale is fitted on, of each row.
constexpr size_t kOthers = 200;

class RecommendationTask : public Task {
 public:
  RecommendationTask(const TaskSettings& settings, const Catalogue& catalogue,
                     const Split& split)
      : Task(settings.head),
        temperature_(settings.temperature),
        targets_per_user_(settings.targets_per_user),
        source_counts_(settings.source_tables.counts),
        counts_from_(settings.evaluation_only ? TablesFrom::kSource
                                              : settings.counts_from),
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
    RETURN_IF_ERROR(InitCounts(featurizer));
    const auto& users = split_.training.histories;
    for (int32_t user = 0; user < users.size(); ++user) {
      const std::vector<int32_t>& items = users[user].items;
      for (const int32_t item : items) ++counts_[item];
      if (IsForMixture(users[user])) continue;
      size_t first = 1;
      if (targets_per_user_ > 0 && items.size() > targets_per_user_) {
        first = std::max<size_t>(1, items.size() - targets_per_user_);
      }
      for (size_t i = first; i < items.size(); ++i) {
        ASSIGN_OR_RETURN(Encoding history,
                         EncodeHistory(featurizer, catalogue_,
                                       absl::MakeSpan(items).subspan(0, i)));
        training_.push_back({user, items[i], i, std::move(history)});
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
    const at::Tensor items = Vectors(model, h, Pointers(items_));
    std::shared_ptr<const Cooccurrence> counts = served_;
    if (!calibrated_ && counts_from_ == TablesFrom::kRows) {
      counts = Fitted(model, h, items);
    }
    return EvaluateBy(counts.get(), items,
                      Vectors(model, h, Pointers(validation_)));
  }

  Evaluation EvaluateSource(const Inference& model, int h) const override {
    if (validation_.empty()) return {};
    return EvaluateBy(source_counts_.get(), Vectors(model, h, Pointers(items_)),
                      Vectors(model, h, Pointers(validation_)));
  }

  std::vector<Baseline> Baselines() const override {
    if (validation_.empty()) return {};
    const std::vector<float> popularity(counts_.begin(), counts_.end());
    std::vector<int64_t> places;
    for (size_t i = 0; i < validation_.size(); ++i) {
      places.push_back(Place(i, popularity));
    }
    return {{"popularity", EvaluateNextItem(places).metrics()},
            {"item-item", EvaluateItemItem().metrics()}};
  }

  // The score's scale: next items against the rest of the catalogue, by the
  // rows held out, or by some of the training rows where there are none.
  void Calibrate(Network* network, int h) override {
    const at::Tensor items = Vectors(*network, h, Pointers(items_));
    if (counts_from_ == TablesFrom::kRows) {
      served_ = Fitted(*network, h, items);
    }
    calibrated_ = true;
    if (served_ != nullptr && !validation_.empty()) {
      text_alone_ = EvaluateBy(nullptr, items,
                               Vectors(*network, h, Pointers(validation_)))
                        .metrics();
    }

    constexpr size_t kRows = 1000;
    std::vector<const Encoding*> histories;
    std::vector<const std::vector<int32_t>*> seen;
    std::vector<absl::Span<const int32_t>> before;  // what came, of all seen
    std::vector<int32_t> targets;
    const auto add = [&](const Encoding& history,
                         const std::vector<int32_t>& all, int32_t target,
                         size_t place) {
      histories.push_back(&history);
      seen.push_back(&all);
      before.push_back(absl::MakeSpan(all).subspan(0, place));
      targets.push_back(target);
    };
    for (size_t i = 0; i < validation_.size() && i < kRows; ++i) {
      const auto& all = split_.validation.histories[i].items;
      add(validation_[i], all, all.back(), all.size() - 1);
    }
    // Without held-out rows, those of the mixture are; without them, some that
    // were trained on.
    for (size_t i = 0;
         validation_.empty() && i < mixture_users_.size() && i < kRows; ++i) {
      const auto& all = mixture_users_[i]->items;
      add(mixture_histories_[i], all, all.back(), all.size() - 1);
    }
    const bool by_training = histories.empty();
    for (size_t i = 0; by_training && i < training_.size() && i < kRows; ++i) {
      const Example& e =
          training_[i * training_.size() / std::min(kRows, training_.size())];
      add(e.history, split_.training.histories[e.user].items, e.target,
          e.place);
    }
    const at::Tensor scores = Cosines(Vectors(*network, h, histories), items);
    const CatalogueLogits logits(served_.get(), catalogue_);
    std::vector<float> positives, negatives;
    for (size_t i = 0; i < histories.size(); ++i) {
      float* const row = scores.data_ptr<float>() + i * items_.size();
      logits.Combine(before[i], absl::MakeSpan(row, items_.size()));
      positives.push_back(row[targets[i]]);
      const absl::flat_hash_set<int32_t> own(seen[i]->begin(), seen[i]->end());
      // Some hundred a row, spread over the catalogue, say enough.
      const size_t stride = std::max<size_t>(1, items_.size() / kOthers);
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

  std::vector<Baseline> Parts() const override {
    if (text_alone_.empty()) return {};
    return {{"text alone", text_alone_}};
  }

  HeadTables tables() const override { return {.counts = served_}; }

  std::vector<const Encoding*> Samples(size_t count) const override {
    return SpreadOver(items_, count);
  }

 private:
  struct Example {
    int32_t user;
    int32_t target;
    size_t place;  // of the target in the user's row
    Encoding history;
  };

  // Users whom texts do not train on, so that the mixture weighs what it will
  // meet, and not what has been learnt by heart.
  bool IsForMixture(const HistoryRow& row) const {
    return counts_from_ == TablesFrom::kRows &&
           IsHeldOut(absl::StrCat("mixture ", row.user_id), mixture_share_);
  }

  // Counts, or says where they come from instead.
  absl::Status InitCounts(const Featurizer& featurizer) {
    if (counts_from_ == TablesFrom::kRows) {
      const auto& users = split_.training.histories;
      mixture_share_ =
          std::min(kMixtureShare,
                   kMostMixtureUsers / static_cast<double>(users.size() + 1));
      std::vector<const HistoryRow*> all_users, rest;
      for (const HistoryRow& row : users) {
        all_users.push_back(&row);
        (IsForMixture(row) ? mixture_users_ : rest).push_back(&row);
      }
      if (mixture_users_.size() < kLeastMixtureUsers) {
        mixture_users_.clear();
        counts_from_ = TablesFrom::kSource;
      } else {
        ASSIGN_OR_RETURN(
            mixture_counts_,
            Cooccurrence::Create(CountCooccurrences(rest, catalogue_)));
        table_ = CountCooccurrences(all_users, catalogue_);
      }
    }
    if (counts_from_ == TablesFrom::kSource) served_ = source_counts_;
    for (const HistoryRow* const row : mixture_users_) {
      const auto history =
          absl::MakeSpan(row->items).subspan(0, row->items.size() - 1);
      ASSIGN_OR_RETURN(Encoding encoding,
                       EncodeHistory(featurizer, catalogue_, history));
      mixture_histories_.push_back(std::move(encoding));
    }
    return absl::OkStatus();
  }

  // The counts of all training rows, with the mixture for such vectors.
  std::shared_ptr<const Cooccurrence> Fitted(const Inference& model, int h,
                                             const at::Tensor& items) const {
    const at::Tensor users = Vectors(model, h, Pointers(mixture_histories_));
    std::vector<MixtureRow> rows;
    for (size_t i = 0; i < mixture_users_.size(); ++i) {
      const at::Tensor cosines = Cosines(
          users.slice(0, static_cast<int64_t>(i), static_cast<int64_t>(i) + 1),
          items);
      rows.push_back(MixtureRowOf(
          *mixture_counts_, catalogue_, mixture_users_[i]->items,
          absl::MakeConstSpan(cosines.data_ptr<float>(), items_.size()), i));
    }
    CooccurrenceTable table = table_;
    table.mixture = FitMixture(*mixture_counts_, rows);
    absl::StatusOr<std::shared_ptr<const Cooccurrence>> made =
        Cooccurrence::Create(std::move(table));
    // What was counted fits together; where it does not, texts alone serve.
    return made.ok() ? *std::move(made) : nullptr;
  }

  // Over the held-out rows, by `counts` where there are some.
  Evaluation EvaluateBy(const Cooccurrence* counts, const at::Tensor& items,
                        const at::Tensor& users) const {
    // Some users at a time: all of them times all items may be too much.
    constexpr size_t kUsers = 1024;
    const CatalogueLogits logits(counts, catalogue_);
    std::vector<int64_t> places;
    for (size_t begin = 0; begin < validation_.size(); begin += kUsers) {
      const size_t end = std::min(begin + kUsers, validation_.size());
      const at::Tensor scores = Cosines(users.slice(0, begin, end), items);
      for (size_t i = begin; i < end; ++i) {
        const auto row = absl::MakeSpan(
            scores.data_ptr<float>() + (i - begin) * items_.size(),
            items_.size());
        logits.Combine(HistoryOf(i), row);
        places.push_back(Place(i, row));
      }
    }
    Evaluation evaluation = EvaluateNextItem(places);
    evaluation.set_unit_digest(DigestOf(split_.validation, catalogue_));
    return evaluation;
  }

  // What a shop would have without a language model.
  Evaluation EvaluateItemItem() const {
    std::vector<const HistoryRow*> users;
    for (const HistoryRow& row : split_.training.histories) {
      users.push_back(&row);
    }
    const auto counts = Cooccurrence::Create(
        CountCooccurrences(users, catalogue_, ClassicalCounting()));
    std::vector<int64_t> places;
    for (size_t i = 0; i < validation_.size() && counts.ok(); ++i) {
      std::vector<float> scores(items_.size());
      const HistoryCounts history(**counts,
                                  NumbersOf(**counts, catalogue_, HistoryOf(i)),
                                  kClassicalDecay);
      for (const auto& [number, sum] : history.all()) {
        scores[catalogue_.by_id.at((*counts)->id(number))] = sum;
      }
      places.push_back(Place(i, scores));
    }
    return EvaluateNextItem(places);
  }

  // A held-out row but for its last item.
  absl::Span<const int32_t> HistoryOf(size_t row) const {
    const std::vector<int32_t>& items = split_.validation.histories[row].items;
    return absl::MakeConstSpan(items).subspan(0, items.size() - 1);
  }

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
    return PlaceOf(split_.validation.histories[row].items.back(), scores,
                   HistoryOf(row));
  }

  const double temperature_;
  const int targets_per_user_;
  const std::shared_ptr<const Cooccurrence> source_counts_;
  TablesFrom counts_from_;
  const Catalogue& catalogue_;
  const Split& split_;
  std::vector<Encoding> items_;  // of the catalogue's listed items
  std::vector<int> counts_;      // of each in the training histories
  std::vector<Example> training_;
  std::vector<Encoding> validation_;  // all but the last item of each history

  CooccurrenceTable table_;  // of all training rows
  double mixture_share_ = 0;
  std::vector<const HistoryRow*> mixture_users_;
  std::vector<Encoding> mixture_histories_;  // all but the last item of each
  std::unique_ptr<const Cooccurrence> mixture_counts_;  // of the other users

  bool calibrated_ = false;
  std::shared_ptr<const Cooccurrence> served_;  // null: none, or none yet
  std::vector<MetricValue> text_alone_;
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
