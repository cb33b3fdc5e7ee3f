#pragma once

// How a run shows itself: a bar with the time left on a terminal, plain lines
// otherwise; tables before and after; one line of JSON for scripts.

#include <chrono>
#include <cstdio>
#include <string>

#include "trainer/fine_tune.h"

namespace vitrine {

// Writes to `out`, which outlives it.
class ProgressPrinter : public FineTuneListener {
 public:
  explicit ProgressPrinter(std::FILE* out);
  ~ProgressPrinter() override;

  void OnStart(const FineTuneReport& report) override;
  void OnStep(const StepProgress& progress) override;
  void OnJudge() override;
  void OnEpoch(int epoch, double loss, bool best,
               const std::vector<std::vector<MetricValue>>& metrics) override;

 private:
  void ClearBar();

  std::FILE* const out_;
  const bool terminal_;
  bool bar_shown_ = false;
  std::chrono::steady_clock::time_point last_;
  std::vector<std::string> head_names_;
};

// A row for each metric: baselines, before, after, and the interval of the
// change where a gate made one.
std::string MetricsTable(const EvaluationReport& report);

// What the gate said, and why.
std::string VerdictText(const EvaluationReport& report);

std::string ReportToJson(const FineTuneReport& report,
                         const std::string& model);

// "41 s", "3:07", "1:02:09".
std::string FormatDuration(double seconds);

}  // namespace vitrine
