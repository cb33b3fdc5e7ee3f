#include "trainer/fit_task.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

bool IsHeadName(const std::string& name) {
  return !name.empty() && name.size() <= 63 &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_';
         });
}

}  // namespace

const char* KindName(internal::HeadKind kind) {
  switch (kind) {
    case internal::HEAD_KIND_RELEVANCE:
      return "relevance";
    case internal::HEAD_KIND_RECOMMENDATION:
      return "recommendation";
    case internal::HEAD_KIND_INTEREST:
      return "interest";
    default:
      return "classification";
  }
}

std::string HeadName(const FitTask& task) {
  if (!task.head.empty()) return task.head;
  return task.kind == internal::HEAD_KIND_CLASSIFICATION ? "classifier"
                                                         : KindName(task.kind);
}

void CheckTasks(absl::Span<const FitTask> tasks, const std::string& items,
                std::vector<std::string>* errors) {
  const auto require = [errors](bool good, std::string error) {
    if (!good) errors->push_back(std::move(error));
  };
  std::vector<std::string> names;
  for (const FitTask& task : tasks) {
    const std::string head = HeadName(task);
    require(!task.data.empty(),
            absl::StrCat("--task for head ", head, " has no --data"));
    require(task.weight > 0,
            absl::StrCat("--task-weight ", task.weight, ": above 0 is needed"));
    require(task.grades.min < task.grades.max,
            absl::StrCat("--grades ", task.grades.min, ":", task.grades.max,
                         ": the first must be the smaller"));
    require(IsHeadName(head),
            absl::StrCat("--head ", head, ": a-z 0-9 _ are allowed"));
    require(head != "embedding", "--head embedding: the name is taken");
    require(std::find(names.begin(), names.end(), head) == names.end(),
            absl::StrCat("two tasks for head ", head,
                         "; name them apart with --head"));
    names.push_back(head);
    const bool needs_items = task.kind == internal::HEAD_KIND_RECOMMENDATION ||
                             task.kind == internal::HEAD_KIND_INTEREST;
    require(!needs_items || !items.empty(),
            absl::StrCat("head ", head, " needs --items"));
  }
}

absl::StatusOr<TaskData> ReadTaskData(const std::string& items,
                                      absl::Span<const FitTask> tasks,
                                      double validation_share,
                                      const std::atomic<bool>& stop) {
  TaskData out;
  if (!items.empty()) {
    ASSIGN_OR_RETURN(out.catalogue, ReadItems(items, &out.digest));
  }
  for (const FitTask& task : tasks) {
    ASSIGN_OR_RETURN(Dataset data,
                     ReadDataset(task.kind, task.data, task.grades,
                                 &out.catalogue, &out.digest));
    if (task.validation.empty()) {
      out.splits.push_back(SplitDataset(std::move(data), validation_share));
    } else {
      ASSIGN_OR_RETURN(Dataset held_out,
                       ReadDataset(task.kind, task.validation, task.grades,
                                   &out.catalogue, &out.digest));
      out.splits.push_back({std::move(data), std::move(held_out)});
    }
    RETURN_IF_ERROR(CheckStop(stop));
  }
  return out;
}

absl::Status CheckStop(const std::atomic<bool>& stop) {
  return stop ? absl::CancelledError("interrupted; nothing was published")
              : absl::OkStatus();
}

}  // namespace vitrine
