#pragma once

// The sequences that a calibration runs, encoded as in serving, and those that
// it is measured on, of labelled rows or of plain texts.

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/featurizer.h"
#include "trainer/fit_task.h"
#include "trainer/source_model.h"
#include "trainer/task.h"
#include "trainer/text_inputs.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

struct CalibrationRows {
  // Sequences, and the numbers of the heads that they are run for, rising.
  struct Group {
    std::vector<int> heads;
    std::vector<const Encoding*> calibration;  // at least two
    std::vector<const Encoding*> held_out;     // may be empty
  };
  std::vector<Group> groups;  // every head is in one
  std::vector<std::unique_ptr<Task>> tasks;
  std::vector<int> task_heads;  // the number of each task's head
  std::string digest;           // SHA-256 over the rows
  std::vector<std::string> warnings;

  // What the pointers above point into.
  TaskData data;
  TextInputs texts;

  int calibration_sequences() const;
};

// `count` sequences of each task, from the rows that a fit would train on; the
// tasks evaluate with `counts`, which recommendation heads have beside them. A
// head without rows of its own gets those of the first task. kInvalidArgument:
// a task whose head is not among `heads`, labels that a head does not know, too
// few rows. `featurizer` outlives the result.
absl::StatusOr<std::unique_ptr<CalibrationRows>> RowsOfTasks(
    const std::string& items, absl::Span<const FitTask> tasks,
    absl::Span<const internal::Head> heads, const TablesByHead& tables,
    const Featurizer& featurizer, int count, double validation_share,
    const std::atomic<bool>& stop);

// As ReadTextInputs(): pairs for relevance heads, each text alone for others.
absl::StatusOr<std::unique_ptr<CalibrationRows>> RowsOfTexts(
    const std::string& path, absl::Span<const internal::Head> heads,
    const Featurizer& featurizer, int count, double validation_share);

}  // namespace vitrine
