#include "trainer/progress.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

using Json = nlohmann::ordered_json;

std::string OneLine(const std::string& head,
                    const std::vector<MetricValue>& metrics) {
  std::string line = head;
  for (const MetricValue& metric : metrics) {
    absl::StrAppendFormat(&line, " %s %.4f", metric.name, metric.value);
  }
  return line;
}

const MetricValue* FindMetric(const std::vector<MetricValue>& metrics,
                              const std::string& name) {
  const auto it =
      std::find_if(metrics.begin(), metrics.end(),
                   [&name](const MetricValue& m) { return m.name == name; });
  return it == metrics.end() ? nullptr : &*it;
}

std::string Cell(const MetricValue* metric) {
  return metric == nullptr ? "-" : absl::StrFormat("%.4f", metric->value);
}

const v1::EvaluationMetric* FindJudged(const EvaluationReport& report,
                                       const std::string& head,
                                       const std::string& name) {
  for (const v1::EvaluationMetric& metric : report.metrics) {
    if (metric.head() == head && metric.name() == name) return &metric;
  }
  return nullptr;
}

bool HasIntervals(const EvaluationReport& report, const std::string& head) {
  return std::any_of(report.metrics.begin(), report.metrics.end(),
                     [&head](const v1::EvaluationMetric& metric) {
                       return metric.head() == head && metric.has_change_low();
                     });
}

}  // namespace

nlohmann::ordered_json ToJson(const std::vector<MetricValue>& metrics) {
  Json json = Json::object();
  for (const MetricValue& metric : metrics) json[metric.name] = metric.value;
  return json;
}

std::string FormatDuration(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  if (whole < 60) return absl::StrCat(whole, " s");
  if (whole < 3600) {
    return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
  }
  return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60,
                         whole % 60);
}

void ProgressPrinter::OnStart(const FineTuneReport& report) {
  for (const HeadReport& head : report.heads) {
    head_names_.push_back(head.name);
    absl::FPrintF(out_, "head %s: %d training examples, %d rows held out\n",
                  head.name, head.examples, head.validation_rows);
    for (const Baseline& baseline : head.baselines) {
      absl::FPrintF(out_, "  %s\n", OneLine(baseline.name, baseline.metrics));
    }
    if (!head.before.empty()) {
      absl::FPrintF(out_, "  %s\n", OneLine("before", head.before));
    }
  }
  for (const std::string& warning : report.warnings) {
    absl::FPrintF(out_, "warning: %s\n", warning);
  }
  if (report.resumed_step > 0) {
    absl::FPrintF(out_, "goes on from the checkpoint of step %d\n",
                  report.resumed_step);
  }
  std::fflush(out_);
  line_.Start();
}

void ProgressPrinter::OnStep(const StepProgress& progress) {
  if (!line_.Due(progress.step >= progress.steps)) return;
  const std::string left = FormatDuration(progress.eta_seconds);
  line_.Show(
      line_.terminal()
          ? absl::StrFormat("epoch %d/%d %s loss %.4f  %.0f/s  %s left",
                            progress.epoch, progress.epochs,
                            Bar(progress.step, progress.steps), progress.loss,
                            progress.examples_per_second, left)
          : absl::StrFormat(
                "epoch %d/%d step %d/%d loss %.4f %.0f examples/s %s left",
                progress.epoch, progress.epochs, progress.step, progress.steps,
                progress.loss, progress.examples_per_second, left));
}

void ProgressPrinter::OnEpoch(
    int epoch, double loss, bool best,
    const std::vector<std::vector<MetricValue>>& metrics) {
  line_.Clear();
  std::string line = absl::StrFormat("epoch %d loss %.4f", epoch, loss);
  for (size_t i = 0; i < metrics.size(); ++i) {
    if (!metrics[i].empty()) {
      absl::StrAppend(&line, " | ", OneLine(head_names_[i], metrics[i]));
    }
  }
  absl::FPrintF(out_, "%s%s\n", line, best ? " *" : "");
  std::fflush(out_);
}

void ProgressPrinter::OnJudge() {
  line_.Clear();
  absl::FPrintF(out_, "training is over; evaluating what it gave\n");
  std::fflush(out_);
}

std::string MetricsTable(const EvaluationReport& report) {
  std::string out;
  for (const HeadReport& head : report.heads) {
    if (head.after.empty()) continue;
    absl::StrAppendFormat(&out, "%-16s %-10s", head.name, "metric");
    for (const Baseline& baseline : head.baselines) {
      absl::StrAppendFormat(&out, " %14s", baseline.name);
    }
    const bool intervals = HasIntervals(report, head.name);
    absl::StrAppendFormat(&out, " %10s %10s%s\n", "before", "after",
                          intervals ? "  change" : "");
    for (const MetricValue& metric : head.after) {
      absl::StrAppendFormat(&out, "%-16s %-10s", "", metric.name);
      for (const Baseline& baseline : head.baselines) {
        absl::StrAppendFormat(&out, " %14s",
                              Cell(FindMetric(baseline.metrics, metric.name)));
      }
      absl::StrAppendFormat(&out, " %10s %10s",
                            Cell(FindMetric(head.before, metric.name)),
                            Cell(&metric));
      const v1::EvaluationMetric* const judged =
          FindJudged(report, head.name, metric.name);
      if (judged != nullptr && judged->has_change_low()) {
        absl::StrAppendFormat(&out, "  [%+.4f, %+.4f]", judged->change_low(),
                              judged->change_high());
      }
      out += '\n';
    }
  }
  return out;
}

std::string VerdictText(const EvaluationReport& report) {
  std::string out;
  if (report.latency.incumbent_ms > 0) {
    absl::StrAppendFormat(&out, "a batch takes %.3f ms, %.3f ms in service\n",
                          report.latency.candidate_ms,
                          report.latency.incumbent_ms);
  }
  absl::StrAppend(&out, report.rejected ? "the gate rejects it:\n"
                                        : "the gate passes it\n");
  for (const std::string& reason : report.rejections) {
    absl::StrAppend(&out, "  ", reason, "\n");
  }
  return out;
}

std::string ReportToJson(const FineTuneReport& report,
                         const std::string& model) {
  Json json;
  json["model"] = model;
  json["version"] = report.version;
  json["folder"] = report.folder;
  json["epochs"] = report.epochs;
  json["best_epoch"] = report.best_epoch;
  json["steps"] = report.steps;
  json["resumed_step"] = report.resumed_step;
  json["seconds"] = report.seconds;
  json["examples_per_second"] = report.examples_per_second;
  json["device"] = report.device;
  json["bf16"] = report.bf16;
  json["heads"] = Json::array();
  for (const HeadReport& head : report.heads) {
    Json entry;
    entry["name"] = head.name;
    entry["kind"] = KindName(head.kind);
    entry["examples"] = head.examples;
    entry["validation_rows"] = head.validation_rows;
    entry["before"] = head.before.empty() ? Json() : ToJson(head.before);
    entry["after"] = ToJson(head.after);
    entry["baselines"] = Json::object();
    for (const Baseline& baseline : head.baselines) {
      entry["baselines"][baseline.name] = ToJson(baseline.metrics);
    }
    entry["change"] = Json::object();
    for (const MetricValue& metric : head.after) {
      const v1::EvaluationMetric* const judged =
          FindJudged(report, head.name, metric.name);
      if (judged == nullptr || !judged->has_change_low()) continue;
      entry["change"][metric.name] = {judged->change_low(),
                                      judged->change_high()};
    }
    entry["labels"] = Json::array();
    for (const internal::LabelScore& score : report.label_scores) {
      if (score.head() != head.name) continue;
      entry["labels"].push_back({{"label", score.label()},
                                 {"precision", score.precision()},
                                 {"recall", score.recall()},
                                 {"f1", score.f1()},
                                 {"rows", score.rows()}});
    }
    json["heads"].push_back(std::move(entry));
  }
  json["rejected"] = report.rejected;
  json["rejections"] = report.rejections;
  json["batch_ms"] = report.latency.candidate_ms;
  json["incumbent_batch_ms"] = report.latency.incumbent_ms;
  json["warnings"] = report.warnings;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace vitrine
