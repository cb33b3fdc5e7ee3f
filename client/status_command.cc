// vitrine status.

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command.h"
#include "client/input.h"
#include "client/table.h"

namespace vitrine {
namespace {

constexpr char kName[] = "status";

std::string HeadsOf(const v1::ServedModel& model) {
  std::vector<std::string> heads;
  for (const v1::HeadInfo& head : model.heads()) {
    heads.push_back(head.name() == head.kind()
                        ? head.name()
                        : absl::StrCat(head.name(), " (", head.kind(), ")"));
  }
  return Printable(absl::StrJoin(heads, ", "));
}

void PrintTables(const std::string& target, Health health,
                 const v1::ListModelsResponse& response) {
  const v1::ServerLimits& limits = response.limits();
  absl::PrintF("server  %s %s: %s\n", target,
               Printable(response.server_version()),
               health == Health::kServing ? "serving" : "not serving");
  absl::PrintF(
      "limits  a call: %d items, %d texts, %d interactions, %d bytes; "
      "a field: %d bytes\n\n",
      limits.max_items(), limits.max_texts(), limits.max_history(),
      limits.max_message_bytes(), limits.max_field_bytes());
  Table table;
  table.AddColumn("model");
  table.AddColumn("version", Table::kRight);
  table.AddColumn("heads");
  table.AddColumn("tokens", Table::kRight);
  table.AddColumn("width", Table::kRight);
  table.AddColumn("tokenizer");
  table.AddColumn("engine");
  table.AddColumn("loaded");
  for (const v1::ServedModel& model : response.models()) {
    const absl::Time loaded = absl::FromUnixSeconds(model.loaded().seconds());
    table.AddRow(
        {absl::StrCat(Printable(model.model().name()),
                      model.is_default() ? " (default)" : ""),
         Printable(model.model().version()), HeadsOf(model),
         absl::StrCat(model.max_tokens()), absl::StrCat(model.embedding_size()),
         Printable(model.tokenizer()),
         Printable(absl::StrJoin(
             {model.engine(), model.device(), model.dtype()}, " ")),
         absl::FormatTime("%Y-%m-%d %H:%M:%S", loaded, absl::LocalTimeZone())});
  }
  absl::PrintF("%s", table.ToString());
}

ExitCode RunStatus(const GlobalOptions& globals) {
  const absl::StatusOr<std::unique_ptr<Client>> client = NewClient(globals);
  if (!client.ok()) {
    PrintError(kName, client.status());
    return kExitUsage;
  }
  const absl::StatusOr<Health> health =
      (*client)->CheckHealth(kInferenceService);
  if (!health.ok()) {
    PrintError(kName, health.status());
    return ExitCodeOf(health.status());
  }
  const absl::StatusOr<v1::ListModelsResponse> response =
      (*client)->ListModels(v1::ListModelsRequest());
  if (!response.ok()) {
    PrintError(kName, response.status());
    return ExitCodeOf(response.status());
  }
  const bool serving = *health == Health::kServing;
  if (globals.json) {
    auto json = nlohmann::ordered_json::parse(ToJsonLine(*response));
    json["serving"] = serving;
    absl::PrintF("%s\n", json.dump());
  } else {
    PrintTables(globals.client.target, *health, *response);
  }
  return serving ? kExitOk : kExitUnavailable;
}

}  // namespace

void AddStatusCommand(CLI::App& app, GlobalOptions& globals, int* exit_code) {
  CLI::App* const status = app.add_subcommand(
      kName, "Show health, models, versions, heads and limits");
  status->callback([&globals, exit_code] { *exit_code = RunStatus(globals); });
  status->footer(
      R"(Exits with 3 when the server cannot be reached or does not serve.

Examples:
  vitrine status --target ranker:8500
  until vitrine status > /dev/null 2>&1; do sleep 1; done
  vitrine status --json | jq -r '.models[] | [.model.name, .model.version] | @tsv')");
}

}  // namespace vitrine
