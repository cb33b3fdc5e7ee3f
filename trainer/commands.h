#pragma once

// The subcommands of vitrine-trainer. Each adds itself to the command line and
// sets `run` when it is the one that was called.

#include <functional>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace vitrine {

using CommandFunction = std::function<absl::Status()>;

void AddInitCommand(CLI::App* app, CommandFunction* run);
void AddPretrainCommand(CLI::App* app, CommandFunction* run);
void AddImportCommand(CLI::App* app, CommandFunction* run);
void AddFitCommand(CLI::App* app, CommandFunction* run);
void AddEvaluateCommand(CLI::App* app, CommandFunction* run);
void AddQuantizeCommand(CLI::App* app, CommandFunction* run);
void AddWorkCommand(CLI::App* app, CommandFunction* run);

}  // namespace vitrine
