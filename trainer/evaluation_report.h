#pragma once

// What a run found out about the version that it made: metrics on held-out
// rows, and the gate's verdict.

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/evaluation.h"
#include "trainer/gate.h"
#include "trainer/task.h"
#include "vitrine/internal/manifest.pb.h"
#include "vitrine/v1/admin.pb.h"

namespace vitrine {

struct HeadReport {
  std::string name;
  internal::HeadKind kind = internal::HEAD_KIND_UNSPECIFIED;
  int examples = 0;
  int validation_rows = 0;
  std::vector<Baseline> baselines;
  // Of the source; once a gate has judged, of the version in service. Empty:
  // the head is new to it.
  std::vector<MetricValue> before;
  std::vector<MetricValue> after;  // of the version
};

struct EvaluationReport {
  int64_t version = 0;  // 0: nothing was published
  std::string folder;
  std::vector<HeadReport> heads;
  // Every metric of every head; with a gate, the intervals of the changes too.
  std::vector<v1::EvaluationMetric> metrics;
  // Of the heads with labels.
  std::vector<internal::LabelScore> label_scores;
  std::string data_digest;  // SHA-256 over the rows, in order
  // By the gate, for each of these reasons.
  bool rejected = false;
  std::vector<std::string> rejections;
  BatchLatency latency;  // where the gate had it measured
  std::vector<std::string> warnings;
};

// Puts metrics and scores by label into the manifest. `before` is NaN where
// there is none.
void AddMetrics(const EvaluationReport& report, internal::Manifest* manifest);

}  // namespace vitrine
