#pragma once

// How a calibration shows itself: a line now and then, tables at the end, one
// line of JSON for scripts.

#include <chrono>
#include <cstdio>
#include <string>

#include "trainer/quantize.h"
#include "trainer/status_line.h"

namespace vitrine {

// Writes to `out`, which outlives it.
class QuantizePrinter : public QuantizeListener {
 public:
  explicit QuantizePrinter(std::FILE* out) : out_(out), line_(out) {}

  void OnStart(const QuantizeReport& report) override;
  void OnRun(int run, int at_most, double loss) override;
  void OnJudge(const QuantizeReport& report) override;

 private:
  std::FILE* const out_;
  StatusLine line_;
  std::chrono::steady_clock::time_point start_;
};

// A row for each layer, a column for each product: its bound, "-" for none, or
// "kept".
std::string ProductsTable(const internal::Quantization& quantization);

// Outputs against fp32, and how fast the engines are.
std::string ParityTable(const QuantizeReport& report);

std::string ReportToJson(const QuantizeReport& report);

}  // namespace vitrine
