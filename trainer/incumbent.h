#pragma once

// The version in service, on the rows that a candidate is judged by.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "trainer/dataset.h"
#include "trainer/evaluation.h"
#include "trainer/pass_device.h"
#include "trainer/task.h"
#include "trainer/workers.h"

namespace vitrine {

// A head and the rows that are held out of its training.
struct HeldOutRows {
  TaskSettings settings;
  const Dataset* rows = nullptr;
};

// One of them, as the version does it.
struct IncumbentHead {
  bool exists = false;  // of this name and kind; else there is nothing here
  Evaluation evaluation;
  std::vector<Encoding> samples;  // as Task::Samples() gives them
};

struct Incumbent {
  std::vector<std::string> heads;    // all that the version has
  std::vector<IncumbentHead> asked;  // one for each of `held_out`
};

// Evaluates the version in `folder` by the code that evaluates the candidate,
// but with the version's own tokenizer, encoding and labels. Labels that it
// does not know start as in a training that goes on from it.
absl::StatusOr<Incumbent> EvaluateIncumbent(
    const std::string& folder, absl::Span<const HeldOutRows> held_out,
    const Catalogue& catalogue, size_t samples, bool bf16, Workers* workers,
    PassDevice device);

}  // namespace vitrine
