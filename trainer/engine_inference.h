#pragma once

// An engine as evaluation and calibration ask it.

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/engine.h"
#include "trainer/inference.h"

namespace vitrine {

// Raw outputs of each of `heads` (their numbers, rising) for the sequences:
// one pass serves all. Row-major, in the order of the sequences; batched by
// length inside.
absl::StatusOr<std::vector<std::vector<float>>> RunHeads(
    const Engine& engine, absl::Span<const int> heads,
    absl::Span<const Encoding* const> sequences);

// For one thread. `engine` outlives it.
class EngineInference : public Inference {
 public:
  explicit EngineInference(const Engine& engine) : engine_(engine) {}

  // Zeros where the engine fails: then status() says why.
  std::vector<float> Infer(
      int h, absl::Span<const Encoding* const> sequences) const override;
  int width(int h) const override { return engine_.width(h); }

  // The first error; whoever has evaluated asks.
  const absl::Status& status() const { return status_; }

 private:
  const Engine& engine_;
  mutable absl::Status status_;
};

}  // namespace vitrine
