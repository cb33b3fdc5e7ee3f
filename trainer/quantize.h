#pragma once

// Makes a version that serves in int8 of one that does not: calibrates on rows,
// measures on others what is lost, has it judged, publishes. The weights stay
// what they are; the new version's manifest says how they are to be run.
// The command line's `quantize` is a thin shell around it.

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/calibration.h"
#include "trainer/evaluation_report.h"
#include "trainer/fit_task.h"
#include "trainer/parity.h"

namespace vitrine {

struct QuantizeOptions {
  std::string from;      // folder, MODEL/NUMBER or MODEL
  std::string registry;  // where the version goes
  std::string model;     // empty: the source's
  // Either labelled rows, which measure quality too, or plain texts.
  std::string items;
  std::vector<FitTask> tasks;
  std::string texts;

  int calibration_rows = 512;     // of each task, at most
  double validation_share = 0.1;  // as the fit had it, for the same rows
  CalibrationOptions calibration;
  // What a head's first metric may lose: the default gate's rule.
  double max_metric_loss = 0.003;
  // Rules in place of that one; without rules, the rest of it counts.
  std::optional<v1::Gate> gate;
  uint64_t seed = 1;  // of the bootstrap
  int threads = 0;    // 0: as many as processors
  bool publish = true;
  std::string recipe;  // for the manifest: the options as text
};

// Outputs in int8 against those in fp32.
struct HeadParity {
  std::string head;
  Parity parity;
  int sequences = 0;
  bool held_out = false;  // none of them was calibrated on
};

// What one engine makes of the version's weights.
struct EngineReport {
  std::string engine;  // "torch fp32"
  double tokens_per_second = 0;
  // Of each head, on the held-out rows.
  std::vector<std::vector<MetricValue>> metrics;
};

// `before` is fp32, `after` int8.
struct QuantizeReport : EvaluationReport {
  std::string source;  // "shop/3", or the folder
  std::string model;
  int calibration_sequences = 0;
  Calibration calibration;
  float golden_tolerance = 0;
  std::vector<HeadParity> parity;
  // fp32, what the version is served by as it is, int8.
  std::vector<EngineReport> engines;
  double seconds = 0;
};

// Told what happens, on the calling thread.
class QuantizeListener {
 public:
  virtual ~QuantizeListener() = default;
  // Rows are read.
  virtual void OnStart(const QuantizeReport& report) { (void)report; }
  // A run over the calibration's rows is done.
  virtual void OnRun(int run, int at_most, double loss) {
    (void)run, (void)at_most, (void)loss;
  }
  // Calibration is over; what it chose is measured.
  virtual void OnJudge(const QuantizeReport& report) { (void)report; }
};

// Blocking. kCancelled, and nothing is published, soon after `stop` is set.
// What is refused is no error: the report says so. kFailedPrecondition: no
// engine of this machine runs int8.
absl::StatusOr<QuantizeReport> Quantize(const QuantizeOptions& options,
                                        QuantizeListener* listener,
                                        const std::atomic<bool>& stop);

}  // namespace vitrine
