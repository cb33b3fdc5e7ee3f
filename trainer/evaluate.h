#pragma once

// Measures a version on labelled rows, by the code that measures a fit and with
// the engine that would serve it. The command line's `evaluate` is a thin shell
// around it.

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/evaluation_report.h"
#include "trainer/fit_task.h"
#include "vitrine/internal/config.pb.h"

namespace vitrine {

struct EvaluateOptions {
  std::string from;      // folder, MODEL/NUMBER or MODEL
  std::string registry;  // needed for the last two
  std::string items;
  // All rows of a task's data are measured on.
  std::vector<FitTask> tasks;
  std::string scores;  // a RowScoreWriter's file, of one task; empty: none
  internal::Device device = internal::DEVICE_AUTO;
  internal::Dtype dtype = internal::DTYPE_AUTO;
  internal::EngineKind engine = internal::ENGINE_KIND_AUTO;
  int threads = 0;  // 0: as many as processors
};

// `after` of each head has its metrics, `validation_rows` its rows. Relevance
// has baselines; those of the others need rows to train on.
struct EvaluateReport : EvaluationReport {
  std::string source;                 // "shop/3", or the folder
  std::string engine, device, dtype;  // as the engine says
  int64_t rows = 0;                   // of all tasks
  int64_t sequences = 0;              // that the engine ran
  double seconds = 0;                 // from the first file to the last metric
};

// Told what happens, on the calling thread.
class EvaluateListener {
 public:
  virtual ~EvaluateListener() = default;
  // The version is loaded and the rows are read.
  virtual void OnStart(const EvaluateReport& report) { (void)report; }
  virtual void OnProgress(const std::string& head, int64_t sequences,
                          int64_t of) {
    (void)head, (void)sequences, (void)of;
  }
};

// Blocking. kCancelled soon after `stop` is set. kInvalidArgument: a head that
// the version does not have, or of another kind; rows as ReadTaskData() has
// them. A label that the head does not know is always missed, and a warning
// counts the rows.
absl::StatusOr<EvaluateReport> EvaluateVersion(const EvaluateOptions& options,
                                               EvaluateListener* listener,
                                               const std::atomic<bool>& stop);

}  // namespace vitrine
