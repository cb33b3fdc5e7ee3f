#include "trainer/quantize_progress.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "trainer/progress.h"

namespace vitrine {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr internal::Product kProducts[] = {
    internal::PRODUCT_QUERY_KEY_VALUE, internal::PRODUCT_ATTENTION_OUTPUT,
    internal::PRODUCT_INTERMEDIATE, internal::PRODUCT_OUTPUT};

}  // namespace

void QuantizePrinter::OnStart(const QuantizeReport& report) {
  absl::FPrintF(out_, "%s: %d sequences to calibrate on\n", report.source,
                report.calibration_sequences);
  for (const HeadReport& head : report.heads) {
    absl::FPrintF(out_, "head %s: %d rows held out\n", head.name,
                  head.validation_rows);
  }
  for (const std::string& warning : report.warnings) {
    absl::FPrintF(out_, "warning: %s\n", warning);
  }
  std::fflush(out_);
  start_ = Clock::now();
  line_.Start();
}

void QuantizePrinter::OnRun(int run, int at_most, double loss) {
  if (!line_.Due()) return;
  const double seconds =
      std::chrono::duration<double>(Clock::now() - start_).count();
  line_.Show(absl::StrFormat("run %d of at most %d, loss %.4f, up to %s left",
                             run, at_most, loss,
                             FormatDuration(seconds / run * (at_most - run))));
}

void QuantizePrinter::OnJudge(const QuantizeReport& report) {
  line_.Clear();
  absl::FPrintF(out_, "calibrated in %d runs; measuring what it gave\n",
                report.calibration.runs);
  std::fflush(out_);
}

std::string ProductsTable(const internal::Quantization& quantization) {
  std::map<std::pair<int, int>, const internal::QuantizedProduct*> by_place;
  int layers = 0;
  for (const internal::QuantizedProduct& product : quantization.products()) {
    by_place[{product.layer(), product.product()}] = &product;
    layers = std::max(layers, product.layer() + 1);
  }
  std::string out = "layer";
  for (const internal::Product product : kProducts) {
    absl::StrAppendFormat(&out, " %16s", ProductName(product));
  }
  out += '\n';
  for (int layer = 0; layer < layers; ++layer) {
    absl::StrAppendFormat(&out, "%5d", layer);
    for (const internal::Product product : kProducts) {
      const auto it = by_place.find({layer, product});
      const bool named = it != by_place.end();
      const float bound = named ? it->second->activation_bound() : 0;
      absl::StrAppendFormat(&out, " %16s",
                            named && it->second->keep() ? "kept"
                            : bound > 0 ? absl::StrFormat("%.4g", bound)
                                        : "-");
    }
    out += '\n';
  }
  return out;
}

std::string ParityTable(const QuantizeReport& report) {
  std::string out =
      absl::StrFormat("%-16s rank correlation  largest difference  sequences\n",
                      "against fp32");
  for (const HeadParity& of : report.parity) {
    absl::StrAppendFormat(&out, "%-16s %16.5f %19.4f %10d%s\n", of.head,
                          of.parity.rank_correlation,
                          of.parity.largest_difference, of.sequences,
                          of.held_out ? " held out" : "");
  }
  for (const EngineReport& engine : report.engines) {
    absl::StrAppendFormat(&out, "%-16s %16.0f tokens/s", engine.engine,
                          engine.tokens_per_second);
    for (size_t i = 0; i < engine.metrics.size(); ++i) {
      if (engine.metrics[i].empty()) continue;
      const MetricValue& first = engine.metrics[i].front();
      absl::StrAppendFormat(&out, "  %s %s %.4f", report.heads[i].name,
                            first.name, first.value);
    }
    absl::StrAppend(&out, "\n");
  }
  return out;
}

std::string ReportToJson(const QuantizeReport& report) {
  Json json;
  json["source"] = report.source;
  json["model"] = report.model;
  json["version"] = report.version;
  json["folder"] = report.folder;
  json["calibration_sequences"] = report.calibration_sequences;
  json["loss"] = report.calibration.loss;
  json["dynamic_loss"] = report.calibration.dynamic_loss;
  json["golden_tolerance"] = report.golden_tolerance;
  json["products"] = Json::array();
  for (const internal::QuantizedProduct& product :
       report.calibration.quantization.products()) {
    json["products"].push_back({{"layer", product.layer()},
                                {"product", ProductName(product.product())},
                                {"keep", product.keep()},
                                {"bound", product.activation_bound()}});
  }
  json["metrics"] = Json::array();
  for (const v1::EvaluationMetric& metric : report.metrics) {
    Json& entry = json["metrics"].emplace_back();
    entry["head"] = metric.head();
    entry["name"] = metric.name();
    entry["before"] = metric.before();
    entry["value"] = metric.value();
    if (metric.has_change_low()) {
      entry["change"] = {metric.change_low(), metric.change_high()};
    }
  }
  json["parity"] = Json::array();
  for (const HeadParity& of : report.parity) {
    json["parity"].push_back(
        {{"head", of.head},
         {"rank_correlation", of.parity.rank_correlation},
         {"largest_difference", of.parity.largest_difference},
         {"sequences", of.sequences},
         {"held_out", of.held_out}});
  }
  for (const EngineReport& engine : report.engines) {
    Json& entry = json["engines"][engine.engine];
    entry["tokens_per_second"] = engine.tokens_per_second;
    for (size_t i = 0; i < engine.metrics.size(); ++i) {
      for (const MetricValue& metric : engine.metrics[i]) {
        entry["metrics"][report.heads[i].name][metric.name] = metric.value;
      }
    }
  }
  json["rejected"] = report.rejected;
  json["rejections"] = report.rejections;
  json["batch_ms"] = report.latency.candidate_ms;
  json["source_batch_ms"] = report.latency.incumbent_ms;
  json["warnings"] = report.warnings;
  json["seconds"] = report.seconds;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace vitrine
