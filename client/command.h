#pragma once

// What the subcommands of `vitrine` share: global options, exit codes, and
// how an error is said.

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/client.h"

namespace vitrine {

// Documented in main.cc's --help; scripts depend on them.
enum ExitCode {
  kExitOk = 0,
  kExitCallFailed = 1,
  kExitUsage = 2,
  kExitUnavailable = 3,
  kExitItemErrors = 4,
};

// Options that every subcommand takes, on either side of its name.
struct GlobalOptions {
  ClientOptions client;
  std::string timeout = "10s";
  bool json = false;
  std::string model;
  std::string model_version;
};

// Each adds its subcommand to `app`. Run by app.parse(), it sets `*exit_code`.
// `globals` and `exit_code` outlive the parse.
void AddInferenceCommands(CLI::App& app, GlobalOptions& globals,
                          int* exit_code);
void AddStatusCommand(CLI::App& app, GlobalOptions& globals, int* exit_code);
void AddTokenizeCommand(CLI::App& app, GlobalOptions& globals, int* exit_code);
void AddLabelCommand(CLI::App& app, GlobalOptions& globals, int* exit_code);
// train, model, audit; with the global options that they need.
void AddAdminCommands(CLI::App& app, GlobalOptions& globals, int* exit_code);
void AddBenchCommand(CLI::App& app, GlobalOptions& globals, int* exit_code);

// "500ms", "2s", "1m"; a plain number is seconds. Finite and positive.
absl::StatusOr<absl::Duration> ParseTimeout(const std::string& text);

// The client that the global options describe.
absl::StatusOr<ClientOptions> ResolveClientOptions(
    const GlobalOptions& globals);
absl::StatusOr<std::unique_ptr<Client>> NewClient(const GlobalOptions& globals);

// "vitrine rank: RESOURCE_EXHAUSTED: …" on stderr.
void PrintError(absl::string_view command, const absl::Status& status);
// For a failed call: kExitUnavailable or kExitCallFailed.
ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace vitrine
