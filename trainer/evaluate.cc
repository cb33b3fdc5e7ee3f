#include "trainer/evaluate.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "model/servable_model.h"
#include "store/model_registry.h"
#include "trainer/engine_inference.h"
#include "trainer/row_scores.h"
#include "trainer/source_model.h"
#include "trainer/task.h"

namespace vitrine {
namespace {

using Clock = std::chrono::steady_clock;

// Sequences between two looks at the clock and at whether to stop.
constexpr size_t kChunk = 512;

// An engine that keeps what it is asked for, says how far it is, and gives up
// once it is to stop.
class WatchedInference : public Inference {
 public:
  WatchedInference(const Engine& engine, std::string head,
                   EvaluateListener* listener, const std::atomic<bool>& stop)
      : engine_(engine),
        head_(std::move(head)),
        listener_(listener),
        stop_(stop) {}

  std::vector<float> Infer(
      int h, absl::Span<const Encoding* const> sequences) const override {
    std::vector<float> all;
    for (size_t i = 0; i < sequences.size() && !stop_; i += kChunk) {
      const std::vector<float> some =
          engine_.Infer(h, sequences.subspan(i, kChunk));
      if (!engine_.status().ok()) break;
      all.insert(all.end(), some.begin(), some.end());
      listener_->OnProgress(
          head_, static_cast<int64_t>(std::min(i + kChunk, sequences.size())),
          static_cast<int64_t>(sequences.size()));
    }
    all.resize(sequences.size() * width(h));
    outputs_.push_back(all);
    return all;
  }
  int width(int h) const override { return engine_.width(h); }

  // Call by call.
  const std::vector<std::vector<float>>& outputs() const { return outputs_; }
  absl::Status status() const {
    RETURN_IF_ERROR(engine_.status());
    return stop_ ? absl::CancelledError("interrupted") : absl::OkStatus();
  }

 private:
  const EngineInference engine_;
  const std::string head_;
  EvaluateListener* const listener_;
  const std::atomic<bool>& stop_;
  mutable std::vector<std::vector<float>> outputs_;
};

absl::Status CheckOptions(const EvaluateOptions& options) {
  std::vector<std::string> errors;
  const auto require = [&errors](bool good, std::string error) {
    if (!good) errors.push_back(std::move(error));
  };
  require(!options.tasks.empty(),
          "--task and --data: there is nothing to measure on");
  require(options.scores.empty() || options.tasks.size() <= 1,
          "--scores: of one --task only");
  require(options.threads >= 0,
          absl::StrCat("--threads ", options.threads, ": below 0"));
  CheckTasks(options.tasks, options.items, &errors);
  if (errors.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(errors, "; "));
}

absl::StatusOr<std::string> FolderOf(const EvaluateOptions& options) {
  std::error_code ignored;
  if (options.registry.empty() &&
      !std::filesystem::is_directory(options.from, ignored)) {
    return absl::NotFoundError(absl::StrCat(
        "--from ", options.from,
        ": no such folder; MODEL and MODEL/NUMBER need --registry"));
  }
  return ResolveSource(options.from, ModelRegistry(options.registry));
}

// The number of the task's head among the version's.
absl::StatusOr<int> FindHead(const ServableModel& model, const FitTask& task) {
  const std::string name = HeadName(task);
  std::vector<std::string> names;
  for (const internal::Head& head : model.manifest().heads()) {
    names.push_back(head.name());
    if (head.name() != name) continue;
    if (head.kind() != task.kind) {
      return absl::InvalidArgumentError(absl::StrCat(
          "head ", name, " of the version is of another kind than --task: ",
          KindName(head.kind()), ", not ", KindName(task.kind)));
    }
    return static_cast<int>(names.size()) - 1;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "head ", name, ": the version has none; ",
      names.empty() ? "it has no heads at all"
                    : absl::StrCat("it has ", absl::StrJoin(names, ", "))));
}

// Says how many rows name a label that the head does not know.
void WarnOfUnknownLabels(const internal::Head& head, const Dataset& rows,
                         std::vector<std::string>* warnings) {
  const std::set<std::string> known(head.labels().begin(), head.labels().end());
  std::set<std::string> unknown;
  int64_t count = 0;
  const auto add = [&](const std::vector<std::string>& labels) {
    bool any = false;
    for (const std::string& label : labels) {
      if (known.contains(label)) continue;
      unknown.insert(label);
      any = true;
    }
    count += any;
  };
  for (const TextRow& row : rows.texts) add({row.label});
  if (head.kind() == internal::HEAD_KIND_INTEREST) {
    for (const HistoryRow& row : rows.histories) add(row.categories);
  }
  if (unknown.empty()) return;
  warnings->push_back(absl::StrCat(
      "head ", head.name(), ": ", count, " rows have a label that it does not ",
      "know, which counts as missed; ", unknown.size(), " such labels, the ",
      "first is \"", *unknown.begin(), "\""));
}

class Run {
 public:
  Run(const EvaluateOptions& options, EvaluateListener* listener,
      const std::atomic<bool>& stop)
      : options_(options), listener_(listener), stop_(stop) {}

  absl::StatusOr<EvaluateReport> Go();

 private:
  absl::Status Load();
  absl::Status ReadRows();
  absl::Status Measure(size_t number);

  const EvaluateOptions& options_;
  EvaluateListener* const listener_;
  const std::atomic<bool>& stop_;

  std::unique_ptr<RowScoreWriter> scores_;  // null: not asked for
  std::shared_ptr<const ServableModel> model_;
  std::vector<int> heads_;  // the model's number of each task's head
  TaskData data_;           // all rows in `validation`
  EvaluateReport report_;
};

absl::Status Run::Load() {
  ASSIGN_OR_RETURN(report_.folder, FolderOf(options_));
  if (!options_.scores.empty()) {
    ASSIGN_OR_RETURN(scores_, RowScoreWriter::Open(options_.scores));
  }
  ServableOptions options;
  options.engine.device = options_.device;
  options.engine.dtype = options_.dtype;
  options.engine.kind = options_.engine;
  options.engine.inner_threads = options_.threads;
  ASSIGN_OR_RETURN(model_, ServableModel::Load(report_.folder, options));
  const internal::Manifest& manifest = model_->manifest();
  report_.version = manifest.version();
  report_.source = manifest.version() > 0
                       ? absl::StrCat(manifest.model(), "/", manifest.version())
                       : report_.folder;
  report_.engine = model_->engine().name();
  report_.device = model_->engine().device();
  report_.dtype = model_->engine().dtype();
  for (const FitTask& task : options_.tasks) {
    ASSIGN_OR_RETURN(const int head, FindHead(*model_, task));
    heads_.push_back(head);
  }
  return absl::OkStatus();
}

absl::Status Run::ReadRows() {
  ASSIGN_OR_RETURN(data_, ReadTaskData(options_.items, options_.tasks,
                                       /*validation_share=*/0, stop_));
  report_.data_digest = data_.digest;
  for (size_t i = 0; i < data_.splits.size(); ++i) {
    Split& split = data_.splits[i];
    std::swap(split.training, split.validation);
    const internal::Head& head = model_->heads()[heads_[i]];
    HeadReport& report = report_.heads.emplace_back();
    report.name = head.name();
    report.kind = head.kind();
    report.validation_rows = static_cast<int>(split.validation.size());
    report_.rows += report.validation_rows;
    WarnOfUnknownLabels(head, split.validation, &report_.warnings);
  }
  return absl::OkStatus();
}

absl::Status Run::Measure(size_t number) {
  TaskSettings settings;
  settings.head = model_->heads()[heads_[number]];
  settings.evaluation_only = true;
  settings.source_tables = model_->tables(heads_[number]);
  const Split& split = data_.splits[number];
  ASSIGN_OR_RETURN(const auto task, NewTask(settings, model_->featurizer(),
                                            data_.catalogue, split));
  HeadReport& report = report_.heads[number];
  const WatchedInference inference(model_->engine(), report.name, listener_,
                                   stop_);
  const Evaluation evaluation = task->Evaluate(inference, heads_[number]);
  RETURN_IF_ERROR(inference.status());
  report.after = evaluation.metrics();
  if (report.kind == internal::HEAD_KIND_RELEVANCE) {
    report.baselines = task->Baselines();
  }
  for (internal::LabelScore score : evaluation.label_scores()) {
    score.set_head(report.name);
    report_.label_scores.push_back(std::move(score));
  }
  for (const std::vector<float>& outputs : inference.outputs()) {
    report_.sequences +=
        static_cast<int64_t>(outputs.size()) / inference.width(heads_[number]);
  }
  if (scores_ == nullptr) return absl::OkStatus();
  return scores_->Write(settings.head, split.validation, data_.catalogue,
                        settings.source_tables, model_->featurizer(),
                        inference.outputs());
}

absl::StatusOr<EvaluateReport> Run::Go() {
  const Clock::time_point start = Clock::now();
  RETURN_IF_ERROR(CheckOptions(options_));
  RETURN_IF_ERROR(Load());
  RETURN_IF_ERROR(ReadRows());
  listener_->OnStart(report_);
  for (size_t i = 0; i < options_.tasks.size(); ++i) {
    RETURN_IF_ERROR(Measure(i));
  }
  if (scores_ != nullptr) RETURN_IF_ERROR(scores_->Close());
  report_.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return report_;
}

}  // namespace

absl::StatusOr<EvaluateReport> EvaluateVersion(const EvaluateOptions& options,
                                               EvaluateListener* listener,
                                               const std::atomic<bool>& stop) {
  try {
    return Run(options, listener, stop).Go();
  } catch (const std::exception& e) {  // LibTorch's, out of memory
    return absl::InternalError(absl::StrCat("evaluating: ", e.what()));
  }
}

}  // namespace vitrine
