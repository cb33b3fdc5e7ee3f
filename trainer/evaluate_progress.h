#pragma once

// How an evaluation shows itself: a line now and then, a table at the end, one
// line of JSON for scripts.

#include <chrono>
#include <cstdio>
#include <string>

#include "trainer/evaluate.h"
#include "trainer/status_line.h"

namespace vitrine {

// Writes to `out`, which outlives it.
class EvaluatePrinter : public EvaluateListener {
 public:
  explicit EvaluatePrinter(std::FILE* out) : out_(out), line_(out) {}

  void OnStart(const EvaluateReport& report) override;
  void OnProgress(const std::string& head, int64_t sequences,
                  int64_t of) override;

 private:
  std::FILE* const out_;
  StatusLine line_;
  // Of the sequences that are being run: when they were first heard of, and
  // how many had been run by then.
  std::string head_;
  int64_t first_sequences_ = 0, last_sequences_ = 0;
  std::chrono::steady_clock::time_point start_;
};

// A row for each metric of each head, baselines beside it.
std::string EvaluationTable(const EvaluateReport& report);

std::string ReportToJson(const EvaluateReport& report);

}  // namespace vitrine
