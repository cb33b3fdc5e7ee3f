#pragma once

// Whether a candidate may be published: the rules of v1::Gate (admin.proto)
// held against what the candidate and the version in service do on the same
// held-out rows.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "trainer/evaluation.h"
#include "vitrine/internal/manifest.pb.h"
#include "vitrine/v1/admin.pb.h"

namespace vitrine {

struct GateHead {
  std::string name;
  internal::HeadKind kind = internal::HEAD_KIND_UNSPECIFIED;
};

// Before training: every problem of the gate, one a line. kInvalidArgument: a
// head or a metric that there is not, a number out of its range, a rule that
// asks for nothing.
absl::Status CheckGate(const v1::Gate& gate, absl::Span<const GateHead> heads);

// A head that was trained.
struct HeadUnderTest {
  GateHead head;
  int validation_rows = 0;
  const Evaluation* candidate = nullptr;
  // Null: the version in service has no such head, and only bounds count.
  const Evaluation* incumbent = nullptr;
};

// Of the same batch. Zero: not measured.
struct BatchLatency {
  double candidate_ms = 0;
  double incumbent_ms = 0;
};

struct Verdict {
  // Why the candidate must not be published, each a sentence; empty: it may.
  std::vector<std::string> rejections;
  // Every metric of every head, in order.
  std::vector<v1::EvaluationMetric> metrics;
};

// kInvalidArgument: as CheckGate(), or evaluations that do not pair up.
absl::StatusOr<Verdict> Judge(const v1::Gate& gate,
                              absl::Span<const HeadUnderTest> heads,
                              const BatchLatency& latency, uint64_t seed);

}  // namespace vitrine
