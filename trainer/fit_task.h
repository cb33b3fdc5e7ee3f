#pragma once

// The heads that a run is about, and the rows of each, split into those that
// are trained on and those that measure.

#include <atomic>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "trainer/dataset.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

struct FitTask {
  internal::HeadKind kind = internal::HEAD_KIND_UNSPECIFIED;
  std::string head;        // empty: the kind's name, "classifier" for labels
  std::string data;        // a file of rows
  std::string validation;  // empty: a share of `data`
  GradeRange grades;
  double weight = 1;  // of its loss, and of its metric in choosing an epoch
};

// "relevance", "recommendation", "interest", "classification".
const char* KindName(internal::HeadKind kind);

// task.head, else the name of its kind.
std::string HeadName(const FitTask& task);

// Appends every problem of the tasks by themselves. `items`: the file, or "".
void CheckTasks(absl::Span<const FitTask> tasks, const std::string& items,
                std::vector<std::string>* errors);

struct TaskData {
  Catalogue catalogue;
  std::vector<Split> splits;  // of each task
  std::string digest;         // SHA-256 over items and rows, in order
};

// Errors as ReadItems() and ReadDataset(); kCancelled once `stop` is set. The
// same share holds the same rows out in every run.
absl::StatusOr<TaskData> ReadTaskData(const std::string& items,
                                      absl::Span<const FitTask> tasks,
                                      double validation_share,
                                      const std::atomic<bool>& stop);

// kCancelled once `stop` is set.
absl::Status CheckStop(const std::atomic<bool>& stop);

}  // namespace vitrine
