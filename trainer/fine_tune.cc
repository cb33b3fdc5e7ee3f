#include "trainer/fine_tune.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <random>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "model/load_tokenizer.h"
#include "trainer/batches.h"
#include "trainer/incumbent.h"
#include "trainer/network.h"
#include "trainer/optimizer.h"
#include "trainer/serving_check.h"
#include "trainer/source_model.h"
#include "trainer/tensorboard_writer.h"
#include "trainer/threads.h"
#include "trainer/training_state.h"
#include "trainer/version_writer.h"

namespace vitrine {
namespace {

using Clock = std::chrono::steady_clock;
using Metrics = std::vector<std::vector<MetricValue>>;

constexpr char kCreatedBy[] = "vitrine-trainer 0.1.0";
constexpr size_t kGoldenPerHead = 4;
constexpr size_t kLatencySamples = 8;  // of each head
constexpr double kLossSmoothing = 0.98;
// Points of a curve: a step of a small model takes milliseconds.
constexpr int64_t kPlotSteps = 5;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The parent's options with the run's own on top.
internal::EncodingOptions Merge(internal::EncodingOptions base,
                                const internal::EncodingOptions& over) {
  base.MergeFrom(over);  // zero means unset, and unset fields do not merge
  return base;
}

// The layer of an encoder tensor from 0; -1 for the embeddings.
int LayerOf(absl::string_view name) {
  constexpr absl::string_view kPrefix = "encoder.layer.";
  if (!absl::StartsWith(name, kPrefix)) return -1;
  name.remove_prefix(kPrefix.size());
  int layer = -1;
  (void)absl::SimpleAtoi(name.substr(0, name.find('.')), &layer);
  return layer;
}

// Every batch has shapes of its own: to keep the code of all their products
// would fill the memory.
constexpr int kMaxProducts = 256;

class Run {
 public:
  Run(const FineTuneOptions& options, FineTuneListener* listener,
      const std::atomic<bool>& stop)
      : options_(options), listener_(listener), stop_(stop) {}

  absl::StatusOr<FineTuneReport> Go();

 private:
  absl::Status Load();
  void LeaveOutUntrainedHeads();
  absl::Status ReadData();
  absl::Status MakeTasks();
  void MakeOptimizer();
  absl::StatusOr<std::string> Fingerprint() const;
  std::vector<StateFile> StateFiles();
  absl::Status Resume();
  void Plot(int64_t step,
            const std::vector<TensorBoardWriter::Scalar>& scalars);
  void SaveState();
  void SaveStateWhenDue();
  absl::Status Train();
  absl::Status TrainEpoch(std::vector<TrainingBatch> batches);
  absl::Status Step(const TrainingBatch& batch, double* loss);
  Metrics EvaluateAll() const;
  double Selection(const Metrics& metrics) const;
  NewVersion MakeVersion() const;
  absl::Status Publish();
  void ReportWithoutGate();
  absl::StatusOr<Incumbent> MeetIncumbent() const;
  absl::Status Judge(const NewVersion& version, const std::string& folder,
                     absl::Span<const std::vector<float>> outputs,
                     const Incumbent& incumbent);
  bool EncoderChanges() const {
    return options_.freeze < source_->checkpoint.config.num_layers;
  }
  absl::Status CheckStop() const { return vitrine::CheckStop(stop_); }

  const FineTuneOptions& options_;
  FineTuneListener* const listener_;
  const std::atomic<bool>& stop_;

  const ModelRegistry registry_{options_.registry};
  std::unique_ptr<Workers> workers_;
  std::unique_ptr<SourceModel> source_;
  std::string incumbent_folder_;
  EncoderConfig config_;  // as the source has it, the run's dropout aside
  internal::EncodingOptions encoding_;
  std::unique_ptr<Featurizer> featurizer_;
  std::unique_ptr<Network> network_;

  Catalogue catalogue_;
  std::string digest_;
  std::vector<Split> splits_;  // of each task
  std::vector<std::unique_ptr<Task>> tasks_;
  std::vector<int> heads_;  // the network's number of each task's head
  std::vector<std::vector<int>> tokens_;  // of each task's examples
  std::vector<std::vector<int>> groups_;  // likewise; empty: there are none
  // Of each task with the source's weights; of nothing where its head is new.
  std::vector<Evaluation> before_;
  std::vector<Evaluation> after_;  // with the weights that were kept

  std::vector<at::Tensor> trained_;
  std::vector<std::string> trained_names_;
  std::unique_ptr<Optimizer> optimizer_;
  // Where training stands: what a checkpoint keeps.
  std::mt19937_64 random_;
  std::string epoch_random_;  // random_ before the epoch's batches were made
  int64_t step_ = 0, total_steps_ = 0;
  int epoch_ = 1;
  int64_t epoch_step_ = 0;
  double epoch_loss_ = 0, smoothed_loss_ = 0;
  int64_t examples_done_ = 0;
  double training_seconds_ = 0, evaluation_seconds_ = 0;
  double seconds_before_ = 0;  // of the runs that this one goes on from
  std::vector<at::Tensor> best_;
  Metrics best_metrics_;
  double best_selection_ = -std::numeric_limits<double>::infinity();
  int without_gain_ = 0;

  std::unique_ptr<TrainingStateStore> states_;  // null: no checkpoints
  Clock::time_point start_, saved_;
  bool best_changed_ = true;                  // since the last checkpoint
  std::unique_ptr<TensorBoardWriter> plots_;  // null: none, or it failed
  double gradient_norm_ = 0;                  // of the last step

  FineTuneReport report_;
};

absl::Status Run::Load() {
  ASSIGN_OR_RETURN(const std::string folder,
                   ResolveSource(options_.from, registry_));
  ASSIGN_OR_RETURN(source_, LoadSourceModel(folder));
  LeaveOutUntrainedHeads();
  RETURN_IF_ERROR(SetMatchMarks(options_.match_marks, source_.get()));
  incumbent_folder_ = folder;
  if (!options_.incumbent.empty()) {
    ASSIGN_OR_RETURN(
        incumbent_folder_,
        ResolveSource(options_.incumbent, registry_, "--incumbent"));
  }
  config_ = source_->checkpoint.config;
  if (options_.freeze != FineTuneOptions::kFreezeEncoder &&
      options_.freeze > config_.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("--freeze ", options_.freeze, ": the encoder has ",
                     config_.num_layers, " layers"));
  }
  // An embedding table in fp32 and its layers: what a version takes at most.
  int64_t bytes = 0;
  for (const auto& [name, view] : source_->checkpoint.encoder) {
    bytes += view.elements() * (options_.save_f16 ? 2 : 4);
  }
  RETURN_IF_ERROR(CheckFreeDisk(options_.registry, bytes));
  if (!options_.checkpoint_folder.empty()) {
    // Parameters, two moments and the best so far, in fp32; twice, for the
    // old checkpoint goes when the new one is there.
    const int64_t fp32 = bytes / (options_.save_f16 ? 2 : 4) * 4;
    RETURN_IF_ERROR(CheckFreeDisk(options_.checkpoint_folder,
                                  EncoderChanges() ? 2 * 4 * fp32 : 0,
                                  "checkpoints"));
  }

  ASSIGN_OR_RETURN(
      encoding_,
      ResolveEncodingOptions(
          Merge(source_->manifest.encoding(), options_.encoding), config_));
  featurizer_ =
      std::make_unique<Featurizer>(*source_->tokenizer, encoding_, config_);
  report_.device = options_.device.name();
  report_.bf16 =
      options_.bf16.value_or(options_.device.cuda() || Bf16Pays(config_));
  if (options_.dropout >= 0) {
    source_->checkpoint.config.hidden_dropout = options_.dropout;
    source_->checkpoint.config.attention_dropout = options_.dropout;
  }
  if (options_.attention_dropout >= 0) {
    source_->checkpoint.config.attention_dropout = options_.attention_dropout;
  }
  workers_ = std::make_unique<Workers>(SetUpThreads(
      options_.threads, report_.bf16 && !options_.device.cuda(), kMaxProducts));
  ASSIGN_OR_RETURN(
      network_, Network::Create(source_->checkpoint, source_->heads(),
                                report_.bf16, workers_.get(), options_.device));
  return absl::OkStatus();
}

// A version's heads are carried over, for somebody may be served by them. What
// a Hugging Face folder brings along is nobody's, and over an encoder that has
// changed it says nothing.
void Run::LeaveOutUntrainedHeads() {
  if (source_->manifest.version() > 0 || !EncoderChanges()) return;
  std::vector<internal::Head> trained;
  for (const internal::Head& head : source_->manifest.heads()) {
    const auto is_its = [&head](const FitTask& task) {
      return HeadName(task) == head.name();
    };
    if (std::any_of(options_.tasks.begin(), options_.tasks.end(), is_its)) {
      trained.push_back(head);
    } else {
      report_.warnings.push_back(absl::StrCat("head ", head.name(), " of ",
                                              source_->folder,
                                              " is not trained, and left out"));
    }
  }
  source_->manifest.mutable_heads()->Assign(trained.begin(), trained.end());
}

absl::Status Run::ReadData() {
  ASSIGN_OR_RETURN(TaskData data,
                   ReadTaskData(options_.items, options_.tasks,
                                options_.validation_share, stop_));
  catalogue_ = std::move(data.catalogue);
  splits_ = std::move(data.splits);
  digest_ = std::move(data.digest);
  return absl::OkStatus();
}

absl::Status Run::MakeTasks() {
  for (size_t i = 0; i < options_.tasks.size(); ++i) {
    TaskSettings settings;
    settings.relevance_loss = options_.relevance_loss;
    settings.temperature = options_.temperature;
    settings.targets_per_user = options_.targets_per_user;
    settings.counts_from =
        options_.co_occurrence ? TablesFrom::kRows : TablesFrom::kNone;
    const std::string name = HeadName(options_.tasks[i]);
    const int parent = network_->FindHead(name);
    if (parent >= 0) {
      settings.head = network_->head(parent);
    } else {
      settings.head.set_pooling(options_.pooling);
    }
    settings.ngrams_from =
        options_.ngrams ? TablesFrom::kRows : TablesFrom::kNone;
    settings.source_tables = source_->TablesOf(name);
    settings.workers = workers_.get();
    settings.stop = &stop_;
    settings.head.set_name(name);
    settings.head.set_kind(options_.tasks[i].kind);
    if (parent >= 0 && network_->head(parent).kind() != settings.head.kind()) {
      return absl::InvalidArgumentError(
          absl::StrCat("head ", name, " of the parent is of kind ",
                       internal::HeadKind_Name(network_->head(parent).kind()),
                       "; give the new one another name with --head"));
    }
    ASSIGN_OR_RETURN(auto task,
                     NewTask(settings, *featurizer_, catalogue_, splits_[i]));
    HeadReport& report = report_.heads.emplace_back();
    report.name = name;
    report.kind = task->head().kind();
    report.examples = task->examples();
    report.validation_rows = task->validation_rows();
    report.baselines = task->Baselines();
    if (task->examples() == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "head ", name, ": no examples in ", options_.tasks[i].data));
    }
    if (task->validation_rows() == 0) {
      report_.warnings.push_back(absl::StrCat(
          "head ", name, ": no rows are held out, so it is not evaluated"));
    }
    ASSIGN_OR_RETURN(const int head,
                     network_->PutHead(task->head(), options_.seed + i));
    Evaluation before;
    if (parent >= 0) before = task->EvaluateSource(*network_, head);
    report.before = before.metrics();
    before_.push_back(std::move(before));
    std::vector<int> tokens(task->examples());
    for (int e = 0; e < tokens.size(); ++e) tokens[e] = task->tokens(e);
    tokens_.push_back(std::move(tokens));
    std::vector<int>& groups = groups_.emplace_back();
    if (task->group(0) >= 0) {
      for (int e = 0; e < task->examples(); ++e) {
        groups.push_back(task->group(e));
      }
    }
    heads_.push_back(head);
    tasks_.push_back(std::move(task));
    RETURN_IF_ERROR(CheckStop());
  }
  for (int h = 0; h < network_->head_count(); ++h) {
    if (EncoderChanges() &&
        std::find(heads_.begin(), heads_.end(), h) == heads_.end()) {
      report_.warnings.push_back(absl::StrCat(
          "head ", network_->head(h).name(),
          " is carried over as it is, over an encoder that changes"));
    }
  }
  return absl::OkStatus();
}

void Run::MakeOptimizer() {
  const double head_rate = options_.head_learning_rate > 0
                               ? options_.head_learning_rate
                               : options_.learning_rate;
  // Decayed and not, of the encoder and of the heads.
  std::vector<ParameterGroup> groups(4);
  const auto add = [&](const std::string& name, at::Tensor tensor, bool head) {
    groups[2 * head + !IsDecayed(name)].tensors.push_back(tensor);
    trained_.push_back(tensor);
    trained_names_.push_back(name);
  };
  for (const auto& [name, tensor] : network_->EncoderParameters()) {
    // The pooler is no part of what our heads read.
    if (absl::StartsWith(name, "pooler.")) continue;
    if (LayerOf(name) >= options_.freeze) add(name, tensor, false);
  }
  for (const int h : heads_) {
    for (const auto& [name, tensor] : network_->HeadParameters(h)) {
      add(name, tensor, true);
    }
  }
  for (int i = 0; i < 4; ++i) {
    groups[i].learning_rate = i < 2 ? options_.learning_rate : head_rate;
    groups[i].weight_decay = i % 2 == 0 ? options_.weight_decay : 0;
  }
  optimizer_ = options_.sgd ? NewSgd(groups, workers_.get())
                            : NewAdamW(groups, workers_.get());
  network_->StartTraining(trained_, options_.seed);
}

absl::Status Run::Step(const TrainingBatch& batch, double* loss) {
  const FitTask& fit = options_.tasks[batch.task];
  const Task& task = *tasks_[batch.task];
  *loss = network_->ForwardBackward(
      heads_[batch.task], task.Sequences(batch.examples),
      [&task, &batch](const at::Tensor& outputs) {
        return task.Loss(batch.examples, outputs);
      },
      fit.weight);
  if (!std::isfinite(*loss)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "head ", task.head().name(), ": the loss became ", *loss, " at step ",
        step_ + 1, "; a lower --learning-rate may help"));
  }
  const double norm = GradientNorm(trained_, workers_.get());
  if (!std::isfinite(norm)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "head ", task.head().name(), ": the gradient became ", norm,
        " at step ", step_ + 1, "; a lower --learning-rate may help"));
  }
  gradient_norm_ = norm;
  const double scale =
      options_.clip > 0 && norm > options_.clip ? options_.clip / norm : 1;
  optimizer_->Step(
      RateFactor(options_.schedule, options_.warmup, step_, total_steps_),
      scale);
  ++step_;
  return absl::OkStatus();
}

// All that the numbers of a step depend on.
absl::StatusOr<std::string> Run::Fingerprint() const {
  const FineTuneOptions& o = options_;
  std::string text = kCreatedBy;
  for (const double value :
       {o.learning_rate, o.head_learning_rate, o.warmup, o.weight_decay,
        o.dropout, o.clip, o.validation_share, o.temperature}) {
    absl::StrAppendFormat(&text, "|%.17g", value);
  }
  for (const int64_t value :
       {int64_t{o.sgd}, static_cast<int64_t>(o.schedule),
        static_cast<int64_t>(o.relevance_loss), int64_t{o.batch_size},
        int64_t{o.batch_tokens}, int64_t{o.epochs}, int64_t{o.patience},
        int64_t{o.freeze}, static_cast<int64_t>(o.seed),
        int64_t{o.targets_per_user}, int64_t{o.co_occurrence},
        int64_t{o.ngrams}, int64_t{o.device.cuda()}, int64_t{report_.bf16},
        int64_t{workers_->count()}, int64_t{at::get_num_threads()}}) {
    absl::StrAppend(&text, "|", value);
  }
  absl::StrAppend(&text, "|", digest_, "|", PrintTextProto(encoding_), "|",
                  EncoderConfigToJson(source_->checkpoint.config));
  for (size_t i = 0; i < tasks_.size(); ++i) {
    const FitTask& task = o.tasks[i];
    absl::StrAppend(&text, "|", PrintTextProto(tasks_[i]->head()), "|",
                    tasks_[i]->examples(), "|", tasks_[i]->validation_rows());
    absl::StrAppendFormat(&text, "|%.9g:%.9g|%.17g", task.grades.min,
                          task.grades.max, task.weight);
  }
  // A version's manifest has the digests of its files.
  absl::StrAppend(&text, "|", PrintTextProto(source_->manifest));
  if (source_->manifest.version() == 0) {
    for (const auto* const part :
         {&source_->checkpoint.encoder, &source_->checkpoint.heads}) {
      for (const auto& [name, view] : *part) {
        absl::StrAppend(&text, "|", name, Sha256(view.bytes));
      }
    }
    for (const std::string& name : TokenizerFiles(source_->folder)) {
      ASSIGN_OR_RETURN(const std::string digest,
                       Sha256OfFile(JoinPath(source_->folder, name)));
      absl::StrAppend(&text, "|", name, digest);
    }
  }
  return Sha256(text);
}

std::vector<StateFile> Run::StateFiles() {
  std::vector<StateFile> files = {{"parameters", trained_names_, trained_}};
  AddMoments(optimizer_.get(), &files);
  if (!best_.empty()) {
    files.push_back({"best", trained_names_, best_, best_changed_});
  }
  return files;
}

// Goes on from the checkpoint, if there is one that fits.
absl::Status Run::Resume() {
  random_.seed(options_.seed);
  best_metrics_.resize(tasks_.size());
  if (options_.checkpoint_folder.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(MakeFolders(options_.checkpoint_folder));
  ASSIGN_OR_RETURN(std::string fingerprint, Fingerprint());
  states_ = std::make_unique<TrainingStateStore>(options_.checkpoint_folder,
                                                 std::move(fingerprint));
  for (const at::Tensor& tensor : trained_) {
    best_.push_back(tensor.detach().clone());  // to be read into
  }
  internal::TrainingState state;
  const absl::Status loaded = states_->Load(&state, StateFiles());
  if (!loaded.ok()) {
    best_.clear();
    if (absl::IsNotFound(loaded)) return absl::OkStatus();
    Log(LogLevel::kWarning, "checkpoint_not_used",
        {{"folder", options_.checkpoint_folder}, {"reason", loaded}});
    report_.warnings.push_back(absl::StrCat(
        "training starts from the beginning: ", std::string(loaded.message())));
    return absl::OkStatus();
  }
  // Its digest was right: it is as SaveState made it.
  if (state.best_epoch() == 0) best_.clear();
  best_changed_ = false;
  std::istringstream(state.random()) >> random_;
  const std::vector<Dropout>& dropout = network_->dropout();
  for (int i = 0; i < state.dropout_size() && i < dropout.size(); ++i) {
    network_->dropout()[i].set_state(state.dropout(i));
  }
  if (int64_t* const steps = optimizer_->GetState().steps) {
    *steps = state.optimizer_steps();
  }
  step_ = state.step();
  epoch_ = state.epoch();
  epoch_step_ = state.epoch_step();
  epoch_loss_ = state.epoch_loss();
  smoothed_loss_ = state.smoothed_loss();
  examples_done_ = state.examples();
  training_seconds_ = state.training_seconds();
  evaluation_seconds_ = state.evaluation_seconds();
  seconds_before_ = state.seconds();
  best_selection_ = state.best_selection();
  without_gain_ = state.epochs_without_gain();
  for (const internal::Metric& metric : state.best_metrics()) {
    for (size_t i = 0; i < tasks_.size(); ++i) {
      if (tasks_[i]->head().name() != metric.head()) continue;
      best_metrics_[i].push_back(
          {metric.name(), metric.value(), metric.lower_is_better()});
    }
  }
  report_.epochs = epoch_ - 1;
  report_.best_epoch = state.best_epoch();
  report_.resumed_step = step_;
  Log(LogLevel::kInfo, "training_resumed",
      {{"folder", options_.checkpoint_folder}, {"step", step_}});
  return absl::OkStatus();
}

// A plot is not worth the run: the first error is told, and there are no more.
void Run::Plot(int64_t step,
               const std::vector<TensorBoardWriter::Scalar>& scalars) {
  if (plots_ == nullptr) return;
  const absl::Status written = plots_->Write(step, scalars);
  if (written.ok()) return;
  Log(LogLevel::kWarning, "plots_end", {{"error", written}});
  plots_.reset();
}

// A checkpoint that cannot be written costs the work since the one before,
// and only if the run is cut off: training goes on.
void Run::SaveState() {
  if (states_ == nullptr) return;
  internal::TrainingState state;
  state.set_step(step_);
  state.set_epoch(epoch_);
  state.set_epoch_step(epoch_step_);
  state.set_random(epoch_random_);
  for (const Dropout& dropout : network_->dropout()) {
    state.add_dropout(dropout.state());
  }
  if (const int64_t* const steps = optimizer_->GetState().steps) {
    state.set_optimizer_steps(*steps);
  }
  state.set_epoch_loss(epoch_loss_);
  state.set_smoothed_loss(smoothed_loss_);
  state.set_examples(examples_done_);
  state.set_training_seconds(training_seconds_);
  state.set_evaluation_seconds(evaluation_seconds_);
  state.set_seconds(seconds_before_ + SecondsSince(start_));
  state.set_best_epoch(report_.best_epoch);
  state.set_best_selection(best_selection_);
  state.set_epochs_without_gain(without_gain_);
  for (size_t i = 0; i < tasks_.size(); ++i) {
    for (const MetricValue& value : best_metrics_[i]) {
      internal::Metric* const metric = state.add_best_metrics();
      metric->set_head(tasks_[i]->head().name());
      metric->set_name(value.name);
      metric->set_value(value.value);
      metric->set_lower_is_better(value.lower_is_better);
    }
  }
  const absl::Status saved = states_->Save(std::move(state), StateFiles());
  if (saved.ok()) {
    best_changed_ = false;
  } else {
    Log(LogLevel::kWarning, "checkpoint_failed",
        {{"folder", options_.checkpoint_folder},
         {"step", step_},
         {"error", saved}});
  }
  saved_ = Clock::now();
}

void Run::SaveStateWhenDue() {
  const int64_t steps = options_.checkpoint_steps;
  if (SecondsSince(saved_) >= options_.checkpoint_seconds ||
      (steps > 0 && step_ % steps == 0)) {
    SaveState();
  }
}

absl::Status Run::TrainEpoch(std::vector<TrainingBatch> batches) {
  while (epoch_step_ < batches.size()) {
    if (stop_) SaveState();
    RETURN_IF_ERROR(CheckStop());
    const TrainingBatch& batch = batches[epoch_step_];
    const Clock::time_point start = Clock::now();
    double loss = 0;
    RETURN_IF_ERROR(Step(batch, &loss));
    training_seconds_ += SecondsSince(start);
    ++epoch_step_;
    examples_done_ += batch.examples.size();
    epoch_loss_ += loss;
    smoothed_loss_ = step_ == 1 ? loss
                                : kLossSmoothing * smoothed_loss_ +
                                      (1 - kLossSmoothing) * loss;
    if (step_ % kPlotSteps == 0 || step_ == 1) {
      Plot(step_, {{"training/loss", loss},
                   {"training/smoothed_loss", smoothed_loss_},
                   {"training/learning_rate",
                    options_.learning_rate *
                        RateFactor(options_.schedule, options_.warmup,
                                   step_ - 1, total_steps_)},
                   {"training/gradient_norm", gradient_norm_},
                   {"training/examples_per_second",
                    examples_done_ / training_seconds_}});
    }
    SaveStateWhenDue();
    StepProgress progress;
    progress.epoch = epoch_;
    progress.epochs = options_.epochs;
    progress.step = epoch_step_;
    progress.steps = batches.size();
    progress.loss = smoothed_loss_;
    progress.examples_per_second = examples_done_ / training_seconds_;
    progress.eta_seconds =
        training_seconds_ / step_ * (total_steps_ - step_) +
        evaluation_seconds_ / epoch_ * (options_.epochs - epoch_ + 1);
    listener_->OnStep(progress);
  }
  return absl::OkStatus();
}

Metrics Run::EvaluateAll() const {
  Metrics metrics;
  for (size_t i = 0; i < tasks_.size(); ++i) {
    metrics.push_back(tasks_[i]->Evaluate(*network_, heads_[i]).metrics());
  }
  return metrics;
}

// The mean of the tasks' first metrics, by their weights.
double Run::Selection(const Metrics& metrics) const {
  double sum = 0, weights = 0;
  for (size_t i = 0; i < metrics.size(); ++i) {
    if (metrics[i].empty()) continue;
    sum += options_.tasks[i].weight * metrics[i].front().value;
    weights += options_.tasks[i].weight;
  }
  return weights == 0 ? 0 : sum / weights;
}

absl::Status Run::Train() {
  start_ = saved_ = Clock::now();
  // The first epoch's batches tell how many steps there are, about: the cut
  // by tokens moves a little from epoch to epoch.
  const auto make = [&] {
    std::vector<TrainingBatch> batches;
    for (size_t i = 0; i < tasks_.size(); ++i) {
      const auto task = static_cast<int>(i);
      std::vector<TrainingBatch> more =
          groups_[i].empty()
              ? MakeBatches(task, tokens_[i], options_.batch_size,
                            options_.batch_tokens, &random_)
              : MakeGroupedBatches(task, tokens_[i], groups_[i],
                                   options_.batch_size, options_.batch_tokens,
                                   &random_);
      std::move(more.begin(), more.end(), std::back_inserter(batches));
    }
    Shuffle(&batches, &random_);
    return batches;
  };
  const auto keep_random = [this] {
    std::ostringstream out;
    out << random_;
    epoch_random_ = out.str();
  };
  const auto is_over = [this] {
    return epoch_ > options_.epochs ||
           (options_.patience > 0 && without_gain_ >= options_.patience);
  };
  const bool evaluates =
      std::any_of(tasks_.begin(), tasks_.end(),
                  [](const auto& task) { return task->validation_rows() > 0; });

  keep_random();
  while (!is_over()) {
    std::vector<TrainingBatch> batches = make();
    total_steps_ =
        step_ - epoch_step_ +
        static_cast<int64_t>(batches.size()) * (options_.epochs - epoch_ + 1);
    const auto steps = static_cast<double>(batches.size());
    RETURN_IF_ERROR(TrainEpoch(std::move(batches)));
    report_.epochs = epoch_;

    const Clock::time_point evaluation = Clock::now();
    const Metrics metrics = EvaluateAll();
    evaluation_seconds_ += SecondsSince(evaluation);
    const double selection = evaluates ? Selection(metrics) : epoch_;
    const bool gain = selection > best_selection_;
    if (gain) {
      best_selection_ = selection;
      best_metrics_ = metrics;
      report_.best_epoch = epoch_;
      without_gain_ = 0;
      best_.clear();
      for (const at::Tensor& tensor : trained_) {
        best_.push_back(tensor.detach().clone());
      }
      best_changed_ = true;
    } else {
      ++without_gain_;
    }
    std::vector<TensorBoardWriter::Scalar> scalars = {
        {"epoch/loss", epoch_loss_ / steps}};
    for (size_t i = 0; i < metrics.size(); ++i) {
      for (const MetricValue& metric : metrics[i]) {
        scalars.emplace_back(
            absl::StrCat("validation/", tasks_[i]->head().name(), "/",
                         metric.name),
            metric.value);
      }
    }
    Plot(step_, scalars);
    listener_->OnEpoch(epoch_, epoch_loss_ / steps, gain, metrics);
    ++epoch_;
    epoch_step_ = 0;
    epoch_loss_ = 0;
    keep_random();
    SaveState();
    RETURN_IF_ERROR(CheckStop());
  }
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < best_.size(); ++i) trained_[i].copy_(best_[i]);
  for (size_t i = 0; i < tasks_.size(); ++i) {
    tasks_[i]->Calibrate(network_.get(), heads_[i]);
    report_.heads[i].after = best_metrics_[i];
  }
  report_.steps = step_;
  report_.seconds = seconds_before_ + SecondsSince(start_);
  report_.examples_per_second = examples_done_ / training_seconds_;
  return absl::OkStatus();
}

NewVersion Run::MakeVersion() const {
  NewVersion version;
  const TensorType type =
      options_.save_f16 ? TensorType::kF16 : TensorType::kF32;
  version.config = WithoutTask(config_);
  version.encoder = network_->SaveEncoder(type);
  version.heads = network_->SaveHeads(type);
  version.tokenizer_folder = source_->folder;
  version.tables = source_->tables;
  for (const auto& task : tasks_) {
    version.tables[task->head().name()] = task->tables();
  }

  internal::Manifest& manifest = version.manifest;
  if (source_->manifest.model() == options_.model) {
    manifest.set_parent(source_->manifest.version());
  }
  manifest.set_created_by(kCreatedBy);
  manifest.set_description(absl::StrCat(
      "fine-tuned from ", source_->manifest.version() > 0
                              ? absl::StrCat(source_->manifest.model(), "/",
                                             source_->manifest.version())
                              : "a Hugging Face folder"));
  *manifest.mutable_encoding() = encoding_;
  manifest.set_pooling(source_->manifest.pooling());
  for (const internal::Head& head : network_->head_list()) {
    *manifest.add_heads() = head;
  }
  manifest.set_data_digest(digest_);
  manifest.set_seed(options_.seed);
  manifest.set_recipe(options_.recipe);
  manifest.set_job(options_.job);
  manifest.set_label_watermark(options_.label_watermark);
  for (size_t i = 0; i < tasks_.size(); ++i) {
    for (const Encoding* sample : tasks_[i]->Samples(kGoldenPerHead)) {
      version.samples.emplace_back(tasks_[i]->head().name(), *sample);
    }
  }
  // The heads of the source that were not trained are served as well.
  for (const internal::Head& head : manifest.heads()) {
    const auto is_its = [&head](const std::unique_ptr<Task>& task) {
      return task->head().name() == head.name();
    };
    if (std::any_of(tasks_.begin(), tasks_.end(), is_its)) continue;
    for (const Encoding* sample : tasks_[0]->Samples(kGoldenPerHead)) {
      version.samples.emplace_back(head.name(), *sample);
    }
  }
  return version;
}

void Run::ReportWithoutGate() {
  for (const HeadReport& head : report_.heads) {
    for (size_t i = 0; i < head.after.size(); ++i) {
      v1::EvaluationMetric& metric = report_.metrics.emplace_back();
      metric.set_head(head.name);
      metric.set_name(head.after[i].name);
      metric.set_value(head.after[i].value);
      metric.set_lower_is_better(head.after[i].lower_is_better);
      if (!head.before.empty()) metric.set_before(head.before[i].value);
    }
  }
}

// The version in service on the rows held out. Where it is what the run began
// with, read the same way, it has been evaluated already.
absl::StatusOr<Incumbent> Run::MeetIncumbent() const {
  ASSIGN_OR_RETURN(
      const internal::EncodingOptions own,
      ResolveEncodingOptions(source_->manifest.encoding(), config_));
  if (options_.match_marks == MatchMarks::kAuto &&
      std::filesystem::equivalent(incumbent_folder_, source_->folder) &&
      own.SerializeAsString() == encoding_.SerializeAsString()) {
    Incumbent incumbent;
    for (const internal::Head& head : source_->manifest.heads()) {
      incumbent.heads.push_back(head.name());
    }
    for (size_t i = 0; i < tasks_.size(); ++i) {
      IncumbentHead& head = incumbent.asked.emplace_back();
      head.exists = std::count(incumbent.heads.begin(), incumbent.heads.end(),
                               tasks_[i]->head().name()) > 0;
      if (!head.exists) continue;
      head.evaluation = before_[i];
      for (const Encoding* sample : tasks_[i]->Samples(kLatencySamples)) {
        head.samples.push_back(*sample);
      }
    }
    return incumbent;
  }
  std::vector<HeldOutRows> held_out;
  for (size_t i = 0; i < tasks_.size(); ++i) {
    HeldOutRows& of = held_out.emplace_back();
    of.settings.head = tasks_[i]->head();
    of.settings.temperature = options_.temperature;
    of.settings.targets_per_user = options_.targets_per_user;
    of.rows = &splits_[i].validation;
  }
  absl::StatusOr<Incumbent> incumbent = EvaluateIncumbent(
      incumbent_folder_, held_out, catalogue_, kLatencySamples, report_.bf16,
      workers_.get(), options_.device);
  if (!incumbent.ok()) {
    return Annotate(incumbent.status(), "the version in service");
  }
  return incumbent;
}

// The gate's verdict on the version whose files are in `folder`; `outputs` are
// what the trained network gives for its samples.
absl::Status Run::Judge(const NewVersion& version, const std::string& folder,
                        absl::Span<const std::vector<float>> outputs,
                        const Incumbent& incumbent) {
  absl::StatusOr<std::shared_ptr<const ServableModel>> served =
      LoadForCheck(folder, /*verify_digests=*/false);
  if (!served.ok()) return Annotate(served.status(), "the candidate");
  // bf16 has 8 bits and f16 11; the one is of every product, the other of the
  // weights alone.
  const double tolerance = report_.bf16        ? 5e-2
                           : options_.save_f16 ? 1e-2
                                               : 1e-3;
  ASSIGN_OR_RETURN(report_.rejections, CompareServed(**served, version.samples,
                                                     outputs, tolerance));
  RETURN_IF_ERROR(CheckStop());

  std::vector<HeadUnderTest> heads;
  std::vector<HeadInput> ours, theirs;
  for (size_t i = 0; i < tasks_.size(); ++i) {
    const IncumbentHead& before = incumbent.asked[i];
    HeadReport& report = report_.heads[i];
    report.before = before.evaluation.metrics();
    heads.push_back({{report.name, report.kind},
                     report.validation_rows,
                     &after_[i],
                     before.exists ? &before.evaluation : nullptr});
    const std::vector<const Encoding*> samples =
        tasks_[i]->Samples(kLatencySamples);
    const size_t count = std::min(samples.size(), before.samples.size());
    for (size_t s = 0; s < count; ++s) {
      ours.emplace_back(report.name, *samples[s]);
      theirs.emplace_back(report.name, before.samples[s]);
    }
  }
  if (options_.gate->max_latency_ratio() >= 0 && !ours.empty()) {
    absl::StatusOr<std::shared_ptr<const ServableModel>> in_service =
        LoadForCheck(incumbent_folder_, /*verify_digests=*/true);
    if (!in_service.ok()) {
      return Annotate(in_service.status(), "the version in service");
    }
    ASSIGN_OR_RETURN(report_.latency,
                     CompareLatency(**served, ours, **in_service, theirs));
    RETURN_IF_ERROR(CheckStop());
  }
  ASSIGN_OR_RETURN(
      Verdict verdict,
      vitrine::Judge(*options_.gate, heads, report_.latency, options_.seed));
  report_.metrics = std::move(verdict.metrics);
  std::move(verdict.rejections.begin(), verdict.rejections.end(),
            std::back_inserter(report_.rejections));
  report_.rejected = !report_.rejections.empty();

  for (const std::string& name : incumbent.heads) {
    if (network_->FindHead(name) < 0) {
      report_.warnings.push_back(absl::StrCat(
          "head ", name, " of the version in service is not in this one"));
    }
  }
  return absl::OkStatus();
}

absl::Status Run::Publish() {
  for (size_t i = 0; i < tasks_.size(); ++i) {
    after_.push_back(tasks_[i]->Evaluate(*network_, heads_[i]));
    report_.heads[i].after = after_[i].metrics();
    std::vector<Baseline> parts = tasks_[i]->Parts();
    std::move(parts.begin(), parts.end(),
              std::back_inserter(report_.heads[i].baselines));
    for (internal::LabelScore score : after_[i].label_scores()) {
      score.set_head(report_.heads[i].name);
      report_.label_scores.push_back(std::move(score));
    }
  }
  RETURN_IF_ERROR(CheckStop());
  NewVersion version = MakeVersion();

  // All that the network is asked comes before engines are made: those set up
  // LibTorch for themselves.
  std::vector<std::vector<float>> outputs;
  Incumbent incumbent;
  if (options_.gate.has_value()) {
    for (const auto& [head, encoding] : version.samples) {
      const Encoding* const one = &encoding;
      outputs.push_back(
          network_->Infer(network_->FindHead(head), absl::MakeSpan(&one, 1)));
    }
    ASSIGN_OR_RETURN(incumbent, MeetIncumbent());
    RETURN_IF_ERROR(CheckStop());
  }
  ASSIGN_OR_RETURN(const auto staged,
                   StagedVersion::Write(registry_, options_.model, version));
  if (options_.gate.has_value()) {
    RETURN_IF_ERROR(Judge(version, staged->folder(), outputs, incumbent));
  } else {
    ReportWithoutGate();
  }
  RETURN_IF_ERROR(CheckStop());
  if (report_.rejected || !options_.publish) return absl::OkStatus();
  AddMetrics(report_, &version.manifest);
  ASSIGN_OR_RETURN(report_.version, staged->Publish(version.manifest));
  report_.folder = registry_.VersionFolder(options_.model, report_.version);
  return absl::OkStatus();
}

absl::StatusOr<FineTuneReport> Run::Go() {
  RETURN_IF_ERROR(CheckOptions(options_));
  RETURN_IF_ERROR(Load());
  RETURN_IF_ERROR(ReadData());
  report_.data_digest = digest_;
  RETURN_IF_ERROR(MakeTasks());
  MakeOptimizer();
  RETURN_IF_ERROR(Resume());
  if (!options_.tensorboard_folder.empty()) {
    ASSIGN_OR_RETURN(
        plots_, TensorBoardWriter::Create(options_.tensorboard_folder, step_));
  }
  listener_->OnStart(report_);
  RETURN_IF_ERROR(Train());
  listener_->OnJudge();
  RETURN_IF_ERROR(Publish());
  return report_;
}

}  // namespace

absl::StatusOr<FineTuneReport> FineTune(const FineTuneOptions& options,
                                        FineTuneListener* listener,
                                        const std::atomic<bool>& stop) {
  try {
    return Run(options, listener, stop).Go();
  } catch (const std::exception& e) {  // LibTorch's, out of memory
    return absl::InternalError(absl::StrCat("training: ", e.what()));
  }
}

}  // namespace vitrine
