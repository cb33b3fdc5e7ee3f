#include "trainer/task_flags.h"

#include <algorithm>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace vitrine {

const char kTaskGroup[] = "Tasks (repeatable)";
const char kRowsHelp[] =
    R"(Files are JSON lines, plain or gzip, UTF-8. Errors name file, line and field.
  items            {"id", "title", "brand", "description", "categories": [..],
                    "attributes": {..}}
  relevance        {"query", "grade", "item_id"}, or the item's own fields in
                   place of item_id
  recommendation   {"user_id", "items": [id, ..]}, oldest first
  interest         {"user_id", "items": [id, ..], "categories": [..]}
  classification   {"text", "label"}

)";

namespace {

const std::map<std::string, internal::HeadKind>& Kinds() {
  static const auto* const kinds =
      new std::map<std::string, internal::HeadKind>{
          {"relevance", internal::HEAD_KIND_RELEVANCE},
          {"recommendation", internal::HEAD_KIND_RECOMMENDATION},
          {"interest", internal::HEAD_KIND_INTEREST},
          {"classification", internal::HEAD_KIND_CLASSIFICATION}};
  return *kinds;
}

GradeRange ParseGrades(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  GradeRange range;
  if (parts.size() != 2 || !absl::SimpleAtof(parts[0], &range.min) ||
      !absl::SimpleAtof(parts[1], &range.max)) {
    throw CLI::ValidationError("--grades",
                               absl::StrCat(text, " is not MIN:MAX"));
  }
  return range;
}

}  // namespace

std::vector<FitTask> GroupTasks(const CLI::App& command,
                                const TaskFlags& flags) {
  std::map<std::string, size_t> used;
  const bool one = flags.kinds.size() == 1;
  std::vector<FitTask> tasks;
  std::vector<std::map<std::string, bool>> given;
  if (one) {
    tasks.emplace_back().kind = Kinds().at(flags.kinds.front());
    given.emplace_back();
  }
  for (const CLI::Option* const option : command.parse_order()) {
    const std::string name = option->get_name();
    const size_t number = used[name]++;
    if (name == "--task") {
      if (one) continue;
      tasks.emplace_back().kind = Kinds().at(flags.kinds[number]);
      given.emplace_back();
      continue;
    }
    const bool grouped = name == "--data" || name == "--head" ||
                         name == "--validation" || name == "--grades" ||
                         name == "--task-weight";
    if (!grouped) continue;
    if (tasks.empty()) {
      throw CLI::ValidationError(name, "comes before the --task it belongs to");
    }
    if (given.back()[name]) {
      throw CLI::ValidationError(name, "given twice for one --task");
    }
    given.back()[name] = true;
    FitTask& task = tasks.back();
    if (name == "--data") task.data = flags.data[number];
    if (name == "--head") task.head = flags.heads[number];
    if (name == "--validation") task.validation = flags.validation[number];
    if (name == "--grades") task.grades = ParseGrades(flags.grades[number]);
    if (name == "--task-weight") task.weight = flags.weights[number];
  }
  return tasks;
}

void AddTaskOptions(CLI::App* command, const char* what, TaskFlags* flags) {
  std::vector<std::string> kinds;
  for (const auto& [name, kind] : Kinds()) kinds.push_back(name);
  // One value each time, however many times.
  command->add_option("--task", flags->kinds, what)
      ->check(CLI::IsMember(kinds))
      ->allow_extra_args(false)
      ->group(kTaskGroup);
  command->add_option("--data", flags->data, "Rows, JSON lines (.gz too)")
      ->check(CLI::ExistingFile)
      ->allow_extra_args(false)
      ->group(kTaskGroup);
  command
      ->add_option("--head", flags->heads,
                   "The head's name; default: the kind's, classifier for "
                   "classification")
      ->allow_extra_args(false)
      ->group(kTaskGroup);
  command
      ->add_option("--validation", flags->validation,
                   "Held-out rows; default: a share of --data")
      ->check(CLI::ExistingFile)
      ->allow_extra_args(false)
      ->group(kTaskGroup);
  command
      ->add_option("--grades", flags->grades,
                   "MIN:MAX, the grades that mean 0 and 1 [0:3]")
      ->allow_extra_args(false)
      ->group(kTaskGroup);
}

std::string RecipeOf(const CLI::App& command,
                     const std::vector<std::string>& but) {
  std::vector<std::string> recipe;
  for (const CLI::Option* const option : command.get_options()) {
    const std::string name = option->get_name();
    if (option->count() == 0 ||
        std::find(but.begin(), but.end(), name) != but.end()) {
      continue;
    }
    for (const std::string& value : option->results()) {
      recipe.push_back(absl::StrCat(name, "=", value));
    }
  }
  return absl::StrJoin(recipe, " ");
}

}  // namespace vitrine
