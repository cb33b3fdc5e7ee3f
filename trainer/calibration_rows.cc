#include "trainer/calibration_rows.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

absl::Status AddTask(const FitTask& wanted, const Split& split,
                     absl::Span<const internal::Head> heads,
                     const TablesByHead& tables, const Featurizer& featurizer,
                     int count, CalibrationRows* out) {
  const std::string name = HeadName(wanted);
  const auto head =
      std::find_if(heads.begin(), heads.end(), [&](const internal::Head& h) {
        return h.name() == name && h.kind() == wanted.kind;
      });
  if (head == heads.end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head ", name, ": the version has none of this kind; it has ",
        absl::StrJoin(heads, ", ",
                      [](std::string* text, const internal::Head& h) {
                        absl::StrAppend(text, h.name());
                      })));
  }
  TaskSettings settings;
  settings.head = *head;
  settings.counts_from = TablesFrom::kSource;
  settings.ngrams_from = TablesFrom::kSource;
  const auto own = tables.find(name);
  if (own != tables.end()) settings.source_tables = own->second;
  ASSIGN_OR_RETURN(auto task,
                   NewTask(settings, featurizer, out->data.catalogue, split));
  const int known = head->labels_size();
  if (task->head().labels_size() > known) {
    return absl::InvalidArgumentError(
        absl::StrCat("head ", name, ": ", wanted.data, " has ",
                     task->head().labels_size() - known,
                     " labels that the head does not know, such as \"",
                     task->head().labels(known), "\""));
  }
  std::vector<int32_t> examples(std::min(count, task->examples()));
  for (size_t i = 0; i < examples.size(); ++i) {
    examples[i] = static_cast<int32_t>(i * task->examples() / examples.size());
  }
  CalibrationRows::Group& group = out->groups.emplace_back();
  group.heads = {static_cast<int>(head - heads.begin())};
  group.calibration = task->Sequences(examples);
  if (task->validation_rows() > 0) group.held_out = task->Samples(count);
  out->task_heads.push_back(group.heads.front());
  out->tasks.push_back(std::move(task));
  return absl::OkStatus();
}

absl::Status CheckEnough(const CalibrationRows& rows,
                         absl::Span<const internal::Head> heads) {
  for (const CalibrationRows::Group& group : rows.groups) {
    if (group.calibration.size() >= 2) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "head ", heads[group.heads.front()].name(), ": ",
        group.calibration.size(), " rows to calibrate on, at least 2 needed"));
  }
  return absl::OkStatus();
}

}  // namespace

int CalibrationRows::calibration_sequences() const {
  size_t count = 0;
  for (const Group& group : groups) count += group.calibration.size();
  return static_cast<int>(count);
}

absl::StatusOr<std::unique_ptr<CalibrationRows>> RowsOfTasks(
    const std::string& items, absl::Span<const FitTask> tasks,
    absl::Span<const internal::Head> heads, const TablesByHead& tables,
    const Featurizer& featurizer, int count, double validation_share,
    const std::atomic<bool>& stop) {
  auto out = std::make_unique<CalibrationRows>();
  ASSIGN_OR_RETURN(out->data,
                   ReadTaskData(items, tasks, validation_share, stop));
  out->digest = out->data.digest;
  for (size_t i = 0; i < tasks.size(); ++i) {
    RETURN_IF_ERROR(AddTask(tasks[i], out->data.splits[i], heads, tables,
                            featurizer, count, out.get()));
    RETURN_IF_ERROR(CheckStop(stop));
  }
  RETURN_IF_ERROR(CheckEnough(*out, heads));
  for (size_t h = 0; h < heads.size(); ++h) {
    const auto& own = out->task_heads;
    const int head = static_cast<int>(h);
    if (std::count(own.begin(), own.end(), head) > 0) continue;
    std::vector<int>& first = out->groups.front().heads;
    first.insert(std::upper_bound(first.begin(), first.end(), head), head);
    out->warnings.push_back(absl::StrCat(
        "head ", heads[h].name(), " has no rows: it is calibrated on those of ",
        heads[own.front()].name(),
        ", and how much quality it loses is not measured"));
  }
  return out;
}

absl::StatusOr<std::unique_ptr<CalibrationRows>> RowsOfTexts(
    const std::string& path, absl::Span<const internal::Head> heads,
    const Featurizer& featurizer, int count, double validation_share) {
  auto out = std::make_unique<CalibrationRows>();
  ASSIGN_OR_RETURN(out->texts,
                   ReadTextInputs(path, featurizer, validation_share));
  out->digest = out->texts.digest;
  CalibrationRows::Group pairs, single;
  for (size_t h = 0; h < heads.size(); ++h) {
    const bool pair = heads[h].kind() == internal::HEAD_KIND_RELEVANCE;
    (pair ? pairs : single).heads.push_back(static_cast<int>(h));
  }
  pairs.calibration = SpreadOver(out->texts.calibration.pairs, count);
  pairs.held_out = SpreadOver(out->texts.held_out.pairs, count);
  single.calibration = SpreadOver(out->texts.calibration.single, count);
  single.held_out = SpreadOver(out->texts.held_out.single, count);
  if (!pairs.heads.empty() && pairs.calibration.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": head ", heads[pairs.heads.front()].name(),
                     " reads pairs, and no line is one: query, tab, title"));
  }
  for (CalibrationRows::Group* const group : {&pairs, &single}) {
    if (!group->heads.empty()) out->groups.push_back(std::move(*group));
  }
  RETURN_IF_ERROR(CheckEnough(*out, heads));
  out->warnings.push_back(
      "no labelled rows: how much quality is lost is not measured");
  return out;
}

}  // namespace vitrine
