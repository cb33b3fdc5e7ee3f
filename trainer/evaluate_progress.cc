#include "trainer/evaluate_progress.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "trainer/progress.h"

namespace vitrine {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

}  // namespace

void EvaluatePrinter::OnStart(const EvaluateReport& report) {
  absl::FPrintF(out_, "%s by %s %s on %s\n", report.source, report.engine,
                report.dtype, report.device);
  for (const HeadReport& head : report.heads) {
    absl::FPrintF(out_, "head %s: %d rows\n", head.name, head.validation_rows);
  }
  for (const std::string& warning : report.warnings) {
    absl::FPrintF(out_, "warning: %s\n", warning);
  }
  std::fflush(out_);
}

void EvaluatePrinter::OnProgress(const std::string& head, int64_t sequences,
                                 int64_t of) {
  const auto now = Clock::now();
  if (head != head_ || sequences < last_sequences_) {
    head_ = head;
    start_ = now;
    line_.Start();
    first_sequences_ = sequences;
  }
  last_sequences_ = sequences;
  if (sequences == of) line_.Clear();
  if (sequences == of || sequences == first_sequences_ || !line_.Due()) return;
  const double rate = static_cast<double>(sequences - first_sequences_) /
                      std::chrono::duration<double>(now - start_).count();
  line_.Show(absl::StrFormat(
      "head %s: %d of %d sequences, %.0f/s, %s left", head, sequences, of, rate,
      FormatDuration(static_cast<double>(of - sequences) / rate)));
}

std::string EvaluationTable(const EvaluateReport& report) {
  std::string out;
  for (const HeadReport& head : report.heads) {
    absl::StrAppendFormat(&out, "%-16s %-10s", head.name, "metric");
    for (const Baseline& baseline : head.baselines) {
      absl::StrAppendFormat(&out, " %10s", baseline.name);
    }
    absl::StrAppendFormat(&out, " %10s\n", "version");
    for (const MetricValue& metric : head.after) {
      absl::StrAppendFormat(&out, "%-16s %-10s", "", metric.name);
      for (const Baseline& baseline : head.baselines) {
        const auto same = std::find_if(
            baseline.metrics.begin(), baseline.metrics.end(),
            [&](const MetricValue& m) { return m.name == metric.name; });
        absl::StrAppendFormat(&out, " %10s",
                              same == baseline.metrics.end()
                                  ? "-"
                                  : absl::StrFormat("%.4f", same->value));
      }
      absl::StrAppendFormat(&out, " %10.4f\n", metric.value);
    }
  }
  return out;
}

std::string ReportToJson(const EvaluateReport& report) {
  Json json;
  json["source"] = report.source;
  json["version"] = report.version;
  json["folder"] = report.folder;
  json["engine"] = report.engine;
  json["device"] = report.device;
  json["dtype"] = report.dtype;
  json["rows"] = report.rows;
  json["sequences"] = report.sequences;
  json["seconds"] = report.seconds;
  json["data_digest"] = report.data_digest;
  json["heads"] = Json::array();
  for (const HeadReport& head : report.heads) {
    Json entry;
    entry["name"] = head.name;
    entry["kind"] = KindName(head.kind);
    entry["rows"] = head.validation_rows;
    entry["metrics"] = ToJson(head.after);
    entry["baselines"] = Json::object();
    for (const Baseline& baseline : head.baselines) {
      entry["baselines"][baseline.name] = ToJson(baseline.metrics);
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
  json["warnings"] = report.warnings;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace vitrine
