#pragma once

// How a run shows itself: a bar with the time left on a terminal, plain lines
// otherwise; tables before and after; one line of JSON for scripts.

#include <cstdio>
#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"
#include "trainer/fine_tune.h"
#include "trainer/status_line.h"

namespace vitrine {

// Writes to `out`, which outlives it.
class ProgressPrinter : public FineTuneListener {
 public:
  explicit ProgressPrinter(std::FILE* out) : out_(out), line_(out) {}

  void OnStart(const FineTuneReport& report) override;
  void OnStep(const StepProgress& progress) override;
  void OnJudge() override;
  void OnEpoch(int epoch, double loss, bool best,
               const std::vector<std::vector<MetricValue>>& metrics) override;

 private:
  std::FILE* const out_;
  StatusLine line_;
  std::vector<std::string> head_names_;
};

// A row for each metric: baselines, before, after, and the interval of the
// change where a gate made one.
std::string MetricsTable(const EvaluationReport& report);

// What the gate said, and why.
std::string VerdictText(const EvaluationReport& report);

std::string ReportToJson(const FineTuneReport& report,
                         const std::string& model);

// {name: value}, in the order given.
nlohmann::ordered_json ToJson(const std::vector<MetricValue>& metrics);

// "41 s", "3:07", "1:02:09".
std::string FormatDuration(double seconds);

}  // namespace vitrine
