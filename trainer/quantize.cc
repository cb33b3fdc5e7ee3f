#include "trainer/quantize.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "model/engine.h"
#include "model/featurizer.h"
#include "model/servable_model.h"
#include "trainer/calibration_rows.h"
#include "trainer/engine_inference.h"
#include "trainer/serving_check.h"
#include "trainer/source_model.h"
#include "trainer/version_writer.h"

namespace vitrine {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kGoldenPerHead = 4;
constexpr size_t kLatencySamples = 8;  // of each head
// Products add up in another order on another processor, and what is kept out
// of int8 is fp32 on some: what was seen here is doubled, at least this.
constexpr double kLeastGoldenTolerance = 5e-2;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t Tokens(absl::Span<const Encoding* const> sequences) {
  int64_t tokens = 0;
  for (const Encoding* const s : sequences) {
    tokens += static_cast<int64_t>(s->ids.size());
  }
  return tokens;
}

template <typename T>
std::vector<T> Spread(const std::vector<T>& all, size_t count) {
  count = std::min(count, all.size());
  std::vector<T> out;
  for (size_t i = 0; i < count; ++i) out.push_back(all[i * all.size() / count]);
  return out;
}

absl::Status CheckOptions(const QuantizeOptions& options) {
  std::vector<std::string> errors;
  const auto require = [&errors](bool good, std::string error) {
    if (!good) errors.push_back(std::move(error));
  };
  require(!options.tasks.empty() || !options.texts.empty(),
          "--task and --data, or --texts: there is nothing to calibrate on");
  require(options.tasks.empty() || options.texts.empty(),
          "--texts: not beside --task");
  require(!options.registry.empty(), "--out: empty");
  require(options.calibration_rows >= 2,
          absl::StrCat("--calibration-rows ", options.calibration_rows,
                       ": below 2"));
  require(options.validation_share >= 0 && options.validation_share < 1,
          absl::StrCat("--validation-share ", options.validation_share,
                       ": outside [0, 1)"));
  require(options.calibration.max_loss > 0,
          absl::StrCat("--max-loss ", options.calibration.max_loss,
                       ": above 0 is needed"));
  require(
      options.max_metric_loss >= 0,
      absl::StrCat("--max-metric-loss ", options.max_metric_loss, ": below 0"));
  require(options.threads >= 0 && options.threads <= 1024,
          absl::StrCat("--threads ", options.threads, ": outside 0 to 1024"));
  CheckTasks(options.tasks, options.items, &errors);
  if (options.gate.has_value()) {
    require(!options.tasks.empty(),
            "--gate: without --task and --data there is nothing to judge by");
    std::vector<GateHead> heads;
    for (const FitTask& task : options.tasks) {
      heads.push_back({HeadName(task), task.kind});
    }
    const absl::Status gate = CheckGate(*options.gate, heads);
    require(gate.ok(), std::string(gate.message()));
  }
  if (errors.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(errors, "\n"));
}

class Run {
 public:
  Run(const QuantizeOptions& options, QuantizeListener* listener,
      const std::atomic<bool>& stop)
      : options_(options), listener_(listener), stop_(stop) {}

  absl::StatusOr<QuantizeReport> Go();

 private:
  absl::Status Load();
  absl::Status ReadRows();
  absl::StatusOr<std::unique_ptr<Engine>> Int8(
      const internal::Quantization& quantization,
      ActivationObserver* observer) const;
  absl::StatusOr<std::vector<HeadOutputs>> RunRows(const Engine& engine) const;
  absl::StatusOr<std::vector<Evaluation>> Measure(const Engine& engine);
  absl::Status Search();
  absl::Status CompareEngines(const Engine& int8);
  void FillHeads();
  absl::Status MakeVersion(const Engine& int8);
  v1::Gate Gate() const;
  absl::Status Judge(const std::string& folder);
  void AddParity(internal::Manifest* manifest) const;
  absl::Status Publish();

  const QuantizeOptions& options_;
  QuantizeListener* const listener_;
  const std::atomic<bool>& stop_;

  const ModelRegistry registry_{options_.registry};
  std::unique_ptr<SourceModel> source_;
  std::vector<internal::Head> heads_;  // as the engines number them
  std::unique_ptr<Featurizer> featurizer_;
  std::unique_ptr<CalibrationRows> rows_;
  std::unique_ptr<Engine> reference_;  // fp32

  std::vector<Evaluation> before_, after_;  // of each task
  NewVersion version_;
  QuantizeReport report_;
};

absl::Status Run::Load() {
  ASSIGN_OR_RETURN(const std::string folder,
                   ResolveSource(options_.from, registry_));
  ASSIGN_OR_RETURN(source_, LoadSourceModel(folder));
  const internal::Manifest& manifest = source_->manifest;
  report_.model = options_.model.empty() ? manifest.model() : options_.model;
  if (report_.model.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--model: needed, since ", folder, " has no manifest"));
  }
  RETURN_IF_ERROR(Annotate(CheckModelName(report_.model), "--model"));
  report_.source = manifest.version() > 0
                       ? absl::StrCat(manifest.model(), "/", manifest.version())
                       : folder;
  heads_ = source_->heads();
  if (heads_.empty()) heads_.push_back(EmbeddingHead(manifest));
  const EncoderConfig& config = source_->checkpoint.config;
  ASSIGN_OR_RETURN(const internal::EncodingOptions encoding,
                   ResolveEncodingOptions(manifest.encoding(), config));
  featurizer_ =
      std::make_unique<Featurizer>(*source_->tokenizer, encoding, config);
  return absl::OkStatus();
}

absl::Status Run::ReadRows() {
  if (options_.tasks.empty()) {
    ASSIGN_OR_RETURN(rows_, RowsOfTexts(options_.texts, heads_, *featurizer_,
                                        options_.calibration_rows,
                                        options_.validation_share));
  } else {
    ASSIGN_OR_RETURN(rows_, RowsOfTasks(options_.items, options_.tasks, heads_,
                                        source_->tables, *featurizer_,
                                        options_.calibration_rows,
                                        options_.validation_share, stop_));
  }
  for (size_t i = 0; i < rows_->tasks.size(); ++i) {
    const Task& task = *rows_->tasks[i];
    HeadReport& report = report_.heads.emplace_back();
    report.name = task.head().name();
    report.kind = task.head().kind();
    report.examples = task.examples();
    report.validation_rows = task.validation_rows();
  }
  report_.data_digest = rows_->digest;
  report_.warnings = rows_->warnings;
  report_.calibration_sequences = rows_->calibration_sequences();
  return CheckStop(stop_);
}

absl::StatusOr<std::unique_ptr<Engine>> Run::Int8(
    const internal::Quantization& quantization,
    ActivationObserver* observer) const {
  EngineOptions options;
  options.device = internal::DEVICE_CPU;
  options.dtype = internal::DTYPE_INT8;
  options.quantization = &quantization;
  options.observer = observer;
  options.inner_threads = options_.threads;
  return NewEngine(source_->checkpoint, heads_, options);
}

// The calibration's sequences.
absl::StatusOr<std::vector<HeadOutputs>> Run::RunRows(
    const Engine& engine) const {
  std::vector<HeadOutputs> out;
  for (const CalibrationRows::Group& rows : rows_->groups) {
    ASSIGN_OR_RETURN(std::vector<std::vector<float>> values,
                     RunHeads(engine, rows.heads, rows.calibration));
    for (size_t k = 0; k < rows.heads.size(); ++k) {
      const int h = rows.heads[k];
      out.push_back({heads_[h].name(), engine.width(h), std::move(values[k])});
    }
  }
  return out;
}

// How fast the engine runs the calibration's sequences, once warm, and how well
// its outputs do on the held-out rows: an evaluation a task.
absl::StatusOr<std::vector<Evaluation>> Run::Measure(const Engine& engine) {
  int64_t tokens = 0;
  for (const CalibrationRows::Group& rows : rows_->groups) {
    RETURN_IF_ERROR(
        RunHeads(engine, rows.heads,
                 absl::MakeConstSpan(rows.calibration)
                     .subspan(0, std::min<size_t>(16, rows.calibration.size())))
            .status());
    tokens += Tokens(rows.calibration);
  }
  const Clock::time_point start = Clock::now();
  RETURN_IF_ERROR(RunRows(engine).status());
  EngineReport& report = report_.engines.emplace_back();
  report.engine = absl::StrCat(engine.name(), " ", engine.dtype());
  report.tokens_per_second = static_cast<double>(tokens) / SecondsSince(start);
  std::vector<Evaluation> out;
  for (size_t i = 0; i < rows_->tasks.size(); ++i) {
    RETURN_IF_ERROR(CheckStop(stop_));
    const EngineInference inference(engine);
    out.push_back(rows_->tasks[i]->Evaluate(inference, rows_->task_heads[i]));
    RETURN_IF_ERROR(inference.status());
    report.metrics.push_back(out.back().metrics());
  }
  return out;
}

absl::Status Run::Search() {
  // First, since it says whether this machine can do it at all.
  ActivationMaxima maxima;
  ASSIGN_OR_RETURN(auto observed, Int8({}, &maxima));
  EngineOptions options;
  options.device = internal::DEVICE_CPU;
  options.dtype = internal::DTYPE_FP32;
  options.inner_threads = options_.threads;
  ASSIGN_OR_RETURN(reference_,
                   NewTorchEngine(source_->checkpoint, heads_, options));
  ASSIGN_OR_RETURN(const std::vector<HeadOutputs> expected,
                   RunRows(*reference_));
  RETURN_IF_ERROR(RunRows(*observed).status());
  observed.reset();
  ASSIGN_OR_RETURN(report_.calibration,
                   Calibrate(
                       static_cast<int>(source_->checkpoint.config.num_layers),
                       expected, maxima,
                       [this](const internal::Quantization& candidate)
                           -> absl::StatusOr<std::vector<HeadOutputs>> {
                         ASSIGN_OR_RETURN(const auto engine,
                                          Int8(candidate, nullptr));
                         return RunRows(*engine);
                       },
                       options_.calibration,
                       [this](int run, int at_most, double loss) {
                         listener_->OnRun(run, at_most, loss);
                       },
                       stop_));
  return absl::OkStatus();
}

// int8 against fp32, on rows that were not calibrated on where there are some.
absl::Status Run::CompareEngines(const Engine& int8) {
  for (const CalibrationRows::Group& rows : rows_->groups) {
    const bool held_out = rows.held_out.size() > 1;
    const auto& sequences = held_out ? rows.held_out : rows.calibration;
    ASSIGN_OR_RETURN(const auto expected,
                     RunHeads(*reference_, rows.heads, sequences));
    ASSIGN_OR_RETURN(const auto actual, RunHeads(int8, rows.heads, sequences));
    for (size_t k = 0; k < rows.heads.size(); ++k) {
      report_.parity.push_back({heads_[rows.heads[k]].name(),
                                CompareOutputs(expected[k], actual[k]),
                                static_cast<int>(sequences.size()), held_out});
    }
  }
  ASSIGN_OR_RETURN(before_, Measure(*reference_));
  // What the version would be served by as it is.
  EngineOptions options;
  options.device = internal::DEVICE_CPU;
  options.inner_threads = options_.threads;
  ASSIGN_OR_RETURN(const auto plain,
                   NewEngine(source_->checkpoint, heads_, options));
  if (plain->dtype() != reference_->dtype() ||
      plain->name() != reference_->name()) {
    RETURN_IF_ERROR(Measure(*plain).status());
  }
  ASSIGN_OR_RETURN(after_, Measure(int8));
  return CheckStop(stop_);
}

void Run::FillHeads() {
  for (size_t i = 0; i < rows_->tasks.size(); ++i) {
    HeadReport& report = report_.heads[i];
    report.before = before_[i].metrics();
    report.after = after_[i].metrics();
    for (internal::LabelScore score : after_[i].label_scores()) {
      score.set_head(report.name);
      report_.label_scores.push_back(std::move(score));
    }
  }
}

// The version's samples and what its manifest says, metrics aside.
absl::Status Run::MakeVersion(const Engine& int8) {
  ASSIGN_OR_RETURN(version_, CopyOf(*source_));
  double worst = 0;
  for (const CalibrationRows::Group& rows : rows_->groups) {
    for (const int h : rows.heads) {
      for (const Encoding* const sample :
           Spread(rows.calibration, kGoldenPerHead)) {
        version_.samples.emplace_back(heads_[h].name(), *sample);
        const auto one = absl::MakeConstSpan(&sample, 1);
        ASSIGN_OR_RETURN(const auto expected, RunHeads(*reference_, {h}, one));
        ASSIGN_OR_RETURN(const auto actual, RunHeads(int8, {h}, one));
        for (size_t i = 0; i < expected[0].size(); ++i) {
          worst = std::max(worst,
                           std::abs(double{actual[0][i]} - expected[0][i]) /
                               std::max(1.0, std::abs(double{expected[0][i]})));
        }
      }
    }
  }
  report_.golden_tolerance =
      static_cast<float>(std::max(kLeastGoldenTolerance, 2 * worst));

  internal::Manifest& manifest = version_.manifest;
  const bool child = source_->manifest.model() == report_.model;
  manifest.set_parent(child ? source_->manifest.version() : 0);
  manifest.set_created_by("vitrine-trainer 0.1.0");
  manifest.set_description(absl::StrCat(
      "int8 of ", source_->manifest.version() > 0 ? report_.source
                                                  : "a Hugging Face folder"));
  manifest.clear_metrics();
  manifest.clear_label_scores();
  // The same weights, so that the same labels are in them; but no job made it.
  manifest.clear_job();
  if (!child) manifest.clear_label_watermark();
  manifest.set_data_digest(report_.data_digest);
  manifest.set_seed(options_.seed);
  manifest.set_recipe(options_.recipe);
  *manifest.mutable_quantization() = report_.calibration.quantization;
  manifest.mutable_quantization()->set_golden_tolerance(
      report_.golden_tolerance);
  return absl::OkStatus();
}

// The caller's, with the default rule where it has none: no head's first metric
// may lose more than is allowed, neither as measured nor by proof.
v1::Gate Run::Gate() const {
  v1::Gate gate = options_.gate.value_or(v1::Gate());
  if (!gate.rules().empty()) return gate;
  for (const HeadReport& head : report_.heads) {
    if (head.before.empty()) continue;
    v1::GateRule* const rule = gate.add_rules();
    rule->set_head(head.name);
    rule->set_metric(head.before.front().name);
    rule->set_bound(head.before.front().value - options_.max_metric_loss);
    rule->set_min_change(-options_.max_metric_loss);
  }
  return gate;
}

absl::Status Run::Judge(const std::string& folder) {
  absl::StatusOr<std::shared_ptr<const ServableModel>> candidate =
      LoadForCheck(folder, /*verify_digests=*/false, internal::DTYPE_INT8);
  if (!candidate.ok()) return Annotate(candidate.status(), "the candidate");
  const Calibration& calibration = report_.calibration;
  if (!calibration.good_enough) {
    const auto& products = calibration.quantization.products();
    report_.rejections.push_back(absl::StrFormat(
        "calibration: outputs are off by %.4f of their spread, more than %g, "
        "with %d of %d products kept out of int8",
        calibration.loss, options_.calibration.max_loss,
        std::count_if(products.begin(), products.end(),
                      [](const auto& product) { return product.keep(); }),
        products.size()));
  }
  if (!rows_->tasks.empty()) {
    const v1::Gate gate = Gate();
    std::vector<HeadUnderTest> heads;
    std::vector<HeadInput> inputs;
    for (size_t i = 0; i < rows_->tasks.size(); ++i) {
      const HeadReport& report = report_.heads[i];
      heads.push_back({{report.name, report.kind},
                       report.validation_rows,
                       &after_[i],
                       &before_[i]});
      for (const Encoding* const sample :
           rows_->tasks[i]->Samples(kLatencySamples)) {
        inputs.emplace_back(report.name, *sample);
      }
    }
    if (gate.max_latency_ratio() >= 0) {
      // As a server runs it today.
      absl::StatusOr<std::shared_ptr<const ServableModel>> source =
          LoadForCheck(source_->folder, /*verify_digests=*/true,
                       internal::DTYPE_AUTO);
      if (!source.ok()) return Annotate(source.status(), report_.source);
      ASSIGN_OR_RETURN(report_.latency,
                       CompareLatency(**candidate, inputs, **source, inputs));
      RETURN_IF_ERROR(CheckStop(stop_));
    }
    ASSIGN_OR_RETURN(
        Verdict verdict,
        vitrine::Judge(gate, heads, report_.latency, options_.seed));
    report_.metrics = std::move(verdict.metrics);
    std::move(verdict.rejections.begin(), verdict.rejections.end(),
              std::back_inserter(report_.rejections));
  }
  report_.rejected = !report_.rejections.empty();
  return absl::OkStatus();
}

void Run::AddParity(internal::Manifest* manifest) const {
  const auto add = [&](const HeadParity& of, const char* name, double value,
                       bool lower_is_better) {
    internal::Metric* const metric = manifest->add_metrics();
    metric->set_head(of.head);
    metric->set_name(name);
    metric->set_split(of.held_out ? "validation" : "calibration");
    metric->set_before(std::numeric_limits<double>::quiet_NaN());
    metric->set_value(value);
    metric->set_lower_is_better(lower_is_better);
  };
  for (const HeadParity& of : report_.parity) {
    add(of, "rank_correlation", of.parity.rank_correlation, false);
    add(of, "largest_difference", of.parity.largest_difference, true);
  }
}

absl::Status Run::Publish() {
  ASSIGN_OR_RETURN(const auto staged,
                   StagedVersion::Write(registry_, report_.model, version_));
  RETURN_IF_ERROR(Judge(staged->folder()));
  RETURN_IF_ERROR(CheckStop(stop_));
  if (report_.rejected || !options_.publish) return absl::OkStatus();
  AddMetrics(report_, &version_.manifest);
  AddParity(&version_.manifest);
  ASSIGN_OR_RETURN(report_.version, staged->Publish(version_.manifest));
  report_.folder = registry_.VersionFolder(report_.model, report_.version);
  return absl::OkStatus();
}

absl::StatusOr<QuantizeReport> Run::Go() {
  const Clock::time_point start = Clock::now();
  RETURN_IF_ERROR(CheckOptions(options_));
  RETURN_IF_ERROR(Load());
  RETURN_IF_ERROR(ReadRows());
  listener_->OnStart(report_);
  RETURN_IF_ERROR(Search());
  listener_->OnJudge(report_);
  {
    ASSIGN_OR_RETURN(const auto int8,
                     Int8(report_.calibration.quantization, nullptr));
    RETURN_IF_ERROR(CompareEngines(*int8));
    FillHeads();
    RETURN_IF_ERROR(MakeVersion(*int8));
  }
  RETURN_IF_ERROR(Publish());
  report_.seconds = SecondsSince(start);
  return report_;
}

}  // namespace

absl::StatusOr<QuantizeReport> Quantize(const QuantizeOptions& options,
                                        QuantizeListener* listener,
                                        const std::atomic<bool>& stop) {
  try {
    return Run(options, listener, stop).Go();
  } catch (const std::exception& e) {  // LibTorch's, out of memory
    return absl::InternalError(absl::StrCat("quantizing: ", e.what()));
  }
}

}  // namespace vitrine
