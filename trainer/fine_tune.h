#pragma once

// A whole run of fine-tuning: reads the rows, trains, evaluates, judges,
// publishes.
// The command line's `fit` is a thin shell around it.

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/evaluation_report.h"
#include "trainer/fit_task.h"
#include "trainer/match_marks.h"
#include "trainer/pass_device.h"
#include "trainer/schedule.h"
#include "trainer/task.h"
#include "vitrine/internal/manifest.pb.h"
#include "vitrine/v1/admin.pb.h"

namespace vitrine {

struct FineTuneOptions {
  std::string from;      // folder, MODEL/NUMBER or MODEL
  std::string registry;  // where the version goes
  std::string model;
  std::string items;  // a file of items, where rows name them by id
  std::vector<FitTask> tasks;

  bool sgd = false;  // else AdamW
  double learning_rate = 5e-5;
  double head_learning_rate = 0;  // 0: learning_rate
  Schedule schedule = Schedule::kLinear;
  double warmup = 0.1;      // share of all steps
  int batch_size = 32;      // examples
  int batch_tokens = 8192;  // at most, however many examples that leaves
  int epochs = 3;
  double weight_decay = 0.01;     // not on biases and LayerNorm
  double dropout = -1;            // negative: as the model's config says
  double attention_dropout = -1;  // negative: as `dropout` is
  double clip = 1;                // of the gradients' norm; 0: none
  int patience = 0;               // epochs without gain before stopping; 0: off
  double validation_share = 0.1;
  // Layers that stay as they are, counted from the bottom, the embeddings with
  // them; -1: none, kFreezeEncoder: all.
  int freeze = -1;
  static constexpr int kFreezeEncoder = 1 << 20;
  uint64_t seed = 1;
  PassDevice device;
  std::optional<bool> bf16;  // none: where the device gains by it
  int threads = 0;           // 0: as many as processors
  bool save_f16 = false;
  RelevanceLoss relevance_loss = RelevanceLoss::kGraded;
  double temperature = 0.05;
  int targets_per_user = 20;
  // Recommendation: counts which items go together, where there are users
  // enough to weigh that; false: texts alone.
  bool co_occurrence = true;
  // Classification and relevance: adds a linear model over the texts' n-grams,
  // where there are rows enough; false: the encoder alone.
  bool ngrams = true;
  // Of new heads; what is trained already keeps its own.
  internal::Pooling pooling = internal::POOLING_UNSPECIFIED;
  internal::EncodingOptions encoding;  // set fields replace the parent's
  MatchMarks match_marks = MatchMarks::kAuto;
  std::string recipe;  // for the manifest: the options as text

  // What the result must show to be published; none: nothing.
  std::optional<v1::Gate> gate;
  // With a gate: the version in service, a folder, MODEL/NUMBER or MODEL;
  // empty: what the run starts from.
  std::string incumbent;
  bool publish = true;  // false: train and judge only
  // For the manifest.
  int64_t job = 0;
  int64_t label_watermark = 0;

  // Where the run's state is kept while it trains; empty: nowhere. A run of
  // the same options that finds its state there goes on from it, and ends with
  // the same bits as one that was never cut off. The caller removes the folder
  // (RemoveTrainingStates) when it has taken the result.
  std::string checkpoint_folder;
  // Between two checkpoints, but for those that end an epoch.
  double checkpoint_seconds = 60;
  int64_t checkpoint_steps = 0;  // so many steps too; 0: by time alone

  // Where TensorBoard's events go; empty: nowhere.
  std::string tensorboard_folder;
};

struct FineTuneReport : EvaluationReport {
  int epochs = 0;      // that were run
  int best_epoch = 0;  // whose weights were kept
  int64_t steps = 0;
  double seconds = 0;              // of training, evaluation included
  double examples_per_second = 0;  // of training alone
  bool bf16 = false;
  std::string device;        // "cpu", "cuda"
  int64_t resumed_step = 0;  // that a checkpoint had reached; 0: none was used
};

struct StepProgress {
  int epoch = 0;  // from 1
  int epochs = 0;
  int64_t step = 0;  // of the epoch, from 1
  int64_t steps = 0;
  double loss = 0;  // smoothed
  double examples_per_second = 0;
  double eta_seconds = 0;  // to the end of the last epoch
};

// Told what happens, on the calling thread.
class FineTuneListener {
 public:
  virtual ~FineTuneListener() = default;
  // Data is read, baselines and the metrics before are there.
  virtual void OnStart(const FineTuneReport& report) { (void)report; }
  virtual void OnStep(const StepProgress& progress) { (void)progress; }
  // metrics[i] is of tasks[i].
  virtual void OnEpoch(int epoch, double loss, bool best,
                       const std::vector<std::vector<MetricValue>>& metrics) {
    (void)epoch, (void)loss, (void)best, (void)metrics;
  }
  // Training is over; what it gave is evaluated and judged.
  virtual void OnJudge() {}
};

// Blocking. kCancelled, and nothing is published, soon after `stop` is set.
// What the gate rejects is no error: the report says so.
// One seed and one number of threads give one result, whether in one go or
// from checkpoints.
absl::StatusOr<FineTuneReport> FineTune(const FineTuneOptions& options,
                                        FineTuneListener* listener,
                                        const std::atomic<bool>& stop);

// Every problem of the options by themselves, one a line.
absl::Status CheckOptions(const FineTuneOptions& options);

}  // namespace vitrine
