#pragma once

// The groups of --task, --data and their like, which `fit` and `quantize` have
// in common.

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "trainer/fit_task.h"

namespace vitrine {

// Values in the order of the command line, as GroupTasks() takes it.
struct TaskFlags {
  std::vector<std::string> kinds, data, heads, validation, grades;
  std::vector<double> weights;
};

// What the rows of --items and --data are, for a command's footer.
extern const char kRowsHelp[];
extern const char kTaskGroup[];  // the options' group in the help

// Adds --task, `what` it names, and --data, --head, --validation and --grades,
// none of which is required. `flags` outlives the command.
void AddTaskOptions(CLI::App* command, const char* what, TaskFlags* flags);

// Puts the values of the repeated options into the groups that --task opens,
// by their order on the command line. With one --task the order is free.
// Throws CLI::ValidationError.
std::vector<FitTask> GroupTasks(const CLI::App& command,
                                const TaskFlags& flags);

// The options that were given, but those of `but`, as text for a manifest.
std::string RecipeOf(const CLI::App& command,
                     const std::vector<std::string>& but);

}  // namespace vitrine
