#pragma once

// One head's training: its rows as token sequences, its loss, its metrics.
// Immutable after construction, but for the network it is given. Each kind of
// head has a file of its own; NewTask() picks.

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/featurizer.h"
#include "model/head_tables.h"
#include "trainer/dataset.h"
#include "trainer/evaluation.h"
#include "trainer/inference.h"
#include "trainer/network.h"
#include "vitrine/internal/manifest.pb.h"

namespace at {
class Tensor;
}

namespace vitrine {

// What the same held-out rows give without a model.
struct Baseline {
  // "bm25", "random", "popularity", "item-item", "most frequent"
  std::string name;
  std::vector<MetricValue> metrics;
};

// How relevance learns.
enum class RelevanceLoss {
  kGraded,  // cross-entropy on grades, row by row
  kLambda,  // half of that, half LambdaLoss over the rows of a query
};

// Where what a head has beside its weights comes from.
enum class TablesFrom {
  kRows,    // made of the training rows, where there are enough
  kSource,  // what the version has that training started from
  kNone,    // there is nothing
};

struct TaskSettings {
  // Name, kind and pooling. Labels are kept, those new in the data follow.
  internal::Head head;
  RelevanceLoss relevance_loss = RelevanceLoss::kGraded;
  double temperature = 0.05;  // recommendation: of the cosines in the softmax
  // Recommendation: a user's newest items that become targets; 0: all.
  int targets_per_user = 20;
  TablesFrom counts_from = TablesFrom::kRows;  // recommendation
  // Classification and relevance: the linear model beside the encoder.
  TablesFrom ngrams_from = TablesFrom::kRows;
  HeadTables source_tables;  // what the source's head has
  // Of what is fitted to rows: who shares it (null: nobody), and whether the
  // run is to end (null: never).
  Workers* workers = nullptr;
  const std::atomic<bool>* stop = nullptr;
  // The task is for Evaluate() and Samples(); training rows may be missing.
  // Tables are the source's.
  bool evaluation_only = false;
};

class Task {
 public:
  virtual ~Task() = default;

  // With the labels of parent and data.
  const internal::Head& head() const { return head_; }

  // Training examples, and how many tokens one makes: what batches are made
  // by.
  virtual int examples() const = 0;
  virtual int tokens(int example) const = 0;

  // Whose examples belong side by side in a batch; -1: nobody's. Of all
  // examples or of none.
  virtual int group(int example) const {
    (void)example;
    return -1;
  }

  // What the network is to run for the examples.
  virtual std::vector<const Encoding*> Sequences(
      absl::Span<const int32_t> examples) const = 0;
  // The mean loss of the examples, a scalar, from the head's raw outputs for
  // those sequences.
  virtual at::Tensor Loss(absl::Span<const int32_t> examples,
                          const at::Tensor& outputs) const = 0;

  // Held-out rows that count.
  virtual int validation_rows() const = 0;
  // Over the held-out rows; the first metric is the one to select by (the
  // larger the better). Of nothing without such rows. Head number `h` of
  // `model` is head(). Two tasks over one held-out set, each with a model of
  // its own, give evaluations that pair up.
  virtual Evaluation Evaluate(const Inference& model, int h) const = 0;
  // The same of the source that training starts from, `model` being it: what a
  // head has beside its weights is the source's too.
  virtual Evaluation EvaluateSource(const Inference& model, int h) const {
    return Evaluate(model, h);
  }
  virtual std::vector<Baseline> Baselines() const = 0;

  // After training: fits what is fitted to the trained head, which Evaluate()
  // goes by from then on.
  virtual void Calibrate(Network* network, int h) { (void)network, (void)h; }
  // Once calibrated: what the head would be without some part of it, "text
  // alone", over the held-out rows.
  virtual std::vector<Baseline> Parts() const { return {}; }
  // Once calibrated: what is served beside the head's weights.
  virtual HeadTables tables() const { return {}; }

  // Sequences that the head is made for, for golden outputs.
  virtual std::vector<const Encoding*> Samples(size_t count) const = 0;

 protected:
  explicit Task(const internal::Head& head) : head_(head) {}
  internal::Head head_;
};

// All outlive the task. kCancelled soon after `stop` is set. kInvalidArgument
// names the row's text that cannot be encoded, or says what the data lacks (two
// labels, say).
absl::StatusOr<std::unique_ptr<Task>> NewTask(const TaskSettings& settings,
                                              const Featurizer& featurizer,
                                              const Catalogue& catalogue,
                                              const Split& split);

// The kinds, each in its file.
absl::StatusOr<std::unique_ptr<Task>> NewRelevanceTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Catalogue& catalogue, const Split& split);
absl::StatusOr<std::unique_ptr<Task>> NewRecommendationTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Catalogue& catalogue, const Split& split);
absl::StatusOr<std::unique_ptr<Task>> NewInterestTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Catalogue& catalogue, const Split& split);
absl::StatusOr<std::unique_ptr<Task>> NewClassificationTask(
    const TaskSettings& settings, const Featurizer& featurizer,
    const Split& split);

// Shared by the kinds.

// `h`'s history as the featurizer takes it.
absl::StatusOr<Encoding> EncodeHistory(const Featurizer& featurizer,
                                       const Catalogue& catalogue,
                                       absl::Span<const int32_t> items);
std::vector<const Encoding*> Pointers(const std::vector<Encoding>& encodings);
std::vector<const Encoding*> Pick(const std::vector<Encoding>& encodings,
                                  absl::Span<const int32_t> numbers);
// SHA-256 over held-out rows, texts and labels, in their order.
std::string DigestOf(const Dataset& held_out, const Catalogue& catalogue);
// Every n-th of `encodings`, at most `count`.
std::vector<const Encoding*> SpreadOver(const std::vector<Encoding>& encodings,
                                        size_t count);

}  // namespace vitrine
