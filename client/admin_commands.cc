// vitrine train, model and audit: the admin's commands.

#include <unistd.h>

#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "client/admin_client.h"
#include "client/command.h"
#include "client/input.h"
#include "client/table.h"

namespace vitrine {
namespace {

// A training may take days; to look on costs nothing.
constexpr absl::Duration kWatchTimeout = absl::Hours(24 * 7);
// Loading a version reads and checks gigabytes.
constexpr absl::Duration kActivateTimeout = absl::Minutes(10);

struct AdminOptions {
  std::string target = "127.0.0.1:8501";
  std::string token_file;
};

absl::StatusOr<std::unique_ptr<AdminClient>> NewAdminClient(
    const GlobalOptions& globals, const AdminOptions& admin) {
  if (admin.token_file.empty()) {
    return absl::InvalidArgumentError(
        "--token-file is needed: the file with the admin's token");
  }
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(admin.token_file, /*max_bytes=*/4096));
  const std::string token(
      absl::StripAsciiWhitespace(text.substr(0, text.find('\n'))));
  if (token.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--token-file: ", admin.token_file, " is empty"));
  }
  ASSIGN_OR_RETURN(ClientOptions options, ResolveClientOptions(globals));
  options.target = admin.target;
  return AdminClient::Create(options, token);
}

std::string TimeText(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0) return "";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S",
                          absl::FromUnixSeconds(time.seconds()),
                          absl::LocalTimeZone());
}

// "TRAINING_JOB_STATE_QUEUED" as "queued"; a newer server's as its number.
std::string StateText(v1::TrainingJobState state) {
  const std::string name = v1::TrainingJobState_Name(state);
  if (name.empty()) return absl::StrCat(static_cast<int>(state));
  return absl::AsciiStrToLower(absl::StripPrefix(name, "TRAINING_JOB_STATE_"));
}

bool HasEnded(const v1::TrainingJob& job) {
  return job.state() >= v1::TRAINING_JOB_STATE_SUCCEEDED;
}

std::string Number(double value) { return absl::StrFormat("%.4f", value); }

void PrintMetrics(
    const google::protobuf::RepeatedPtrField<v1::EvaluationMetric>& metrics) {
  if (metrics.empty()) return;
  Table table;
  table.AddColumn("head");
  table.AddColumn("metric");
  table.AddColumn("before", Table::kRight);
  table.AddColumn("value", Table::kRight);
  table.AddColumn("change", Table::kRight);
  for (const v1::EvaluationMetric& metric : metrics) {
    std::string change;
    if (metric.has_before()) {
      change = absl::StrFormat("%+.4f", metric.value() - metric.before());
    }
    if (metric.has_change_low()) {
      absl::StrAppend(&change,
                      absl::StrFormat(" [%+.4f, %+.4f]", metric.change_low(),
                                      metric.change_high()));
    }
    table.AddRow(
        {Printable(metric.head()),
         absl::StrCat(Printable(metric.name()),
                      metric.lower_is_better() ? " (less is better)" : ""),
         metric.has_before() ? Number(metric.before()) : "",
         Number(metric.value()), change});
  }
  absl::PrintF("%s", table.ToString());
}

void PrintJob(const v1::TrainingJob& job) {
  absl::PrintF("job %d of %s: %s%s\n", job.id(), Printable(job.model()),
               StateText(job.state()),
               job.cancel_requested() && !HasEnded(job)
                   ? ", its end was asked for"
                   : "");
  absl::PrintF("  from version %d, labels up to %d, asked for by %s at %s%s\n",
               job.base_version(), job.label_watermark(),
               Printable(job.created_by()), TimeText(job.created()),
               job.dry_run() ? ", dry run" : "");
  if (job.training_rows() > 0) {
    absl::PrintF("  %d rows to train on, %d held out\n", job.training_rows(),
                 job.validation_rows());
  }
  if (!job.worker().empty() && !HasEnded(job)) {
    absl::PrintF("  worker %s\n", Printable(job.worker()));
  }
  if (job.result_version() > 0) {
    absl::PrintF("  published version %d\n", job.result_version());
  }
  for (const std::string& reason : job.rejections()) {
    absl::PrintF("  rejected: %s\n", Printable(reason));
  }
  if (!job.error().empty())
    absl::PrintF("  error: %s\n", Printable(job.error()));
  PrintMetrics(job.metrics());
}

// One line of what has changed.
std::string ProgressLine(const v1::TrainingJob& job) {
  const v1::TrainingProgress& progress = job.progress();
  std::string line =
      absl::StrCat("job ", job.id(), " ", StateText(job.state()));
  if (progress.steps() > 0) {
    absl::StrAppend(
        &line,
        absl::StrFormat(": epoch %d/%d, step %d/%d, loss %.4f, %.0f examples/s",
                        progress.epoch(), progress.epochs(), progress.step(),
                        progress.steps(), progress.loss(),
                        progress.examples_per_second()));
    if (!HasEnded(job)) {
      absl::StrAppend(
          &line, ", ",
          absl::FormatDuration(absl::Seconds(progress.eta().seconds())),
          " left");
    }
  }
  // The first metric of each head: what the best epoch is chosen by.
  std::string head;
  for (const v1::EvaluationMetric& metric : progress.metrics()) {
    if (metric.head() == std::exchange(head, metric.head())) continue;
    absl::StrAppend(&line, " | ", Printable(metric.head()), " ",
                    Printable(metric.name()), " ", Number(metric.value()));
  }
  return line;
}

// What every admin command does: a client, a call, its error.
class Command {
 public:
  Command(const GlobalOptions& globals, const AdminOptions& admin,
          std::string name)
      : globals_(globals), admin_(admin), name_(std::move(name)) {}

  template <typename Request, typename Response, typename Print>
  ExitCode Run(absl::StatusOr<Response> (AdminClient::*method)(
                   const Request&, const CallOptions&) const,
               const Request& request, const Print& print,
               absl::Duration timeout = absl::ZeroDuration()) {
    const auto client = NewAdminClient(globals_, admin_);
    if (!client.ok()) return Usage(client.status());
    const absl::StatusOr<Response> response =
        (**client.*method)(request, {.timeout = timeout});
    if (!response.ok()) return Failed(response.status());
    if (globals_.json) {
      absl::PrintF("%s\n", ToJsonLine(*response));
    } else {
      print(*response);
    }
    return kExitOk;
  }

  // Follows the job to its end; 0 where it succeeded.
  ExitCode Watch(int64_t id) {
    const auto client = NewAdminClient(globals_, admin_);
    if (!client.ok()) return Usage(client.status());
    v1::WatchTrainingJobRequest request;
    request.set_id(id);
    v1::TrainingJob last;
    const bool terminal = isatty(STDERR_FILENO) != 0;
    // A log wants a line now and then.
    constexpr absl::Duration kLineInterval = absl::Seconds(10);
    absl::Time next_line = absl::InfinitePast();
    v1::TrainingJobState shown = v1::TRAINING_JOB_STATE_UNSPECIFIED;
    const absl::Status status = (*client)->WatchTrainingJob(
        request,
        [&](const v1::TrainingJob& job) {
          last = job;
          if (globals_.json) {
            absl::PrintF("%s\n", ToJsonLine(job));
            std::fflush(stdout);
          } else if (terminal) {
            absl::FPrintF(stderr, "\r\033[K%s", ProgressLine(job));
          } else if (job.state() != shown || absl::Now() >= next_line) {
            absl::FPrintF(stderr, "%s\n", ProgressLine(job));
            shown = job.state();
            next_line = absl::Now() + kLineInterval;
          }
          return true;
        },
        {.timeout = kWatchTimeout});
    if (terminal && !globals_.json) absl::FPrintF(stderr, "\r\033[K");
    if (!status.ok()) return Failed(status);
    if (!globals_.json) PrintJob(last);
    return last.state() == v1::TRAINING_JOB_STATE_SUCCEEDED ? kExitOk
                                                            : kExitCallFailed;
  }

  ExitCode Usage(const absl::Status& status) {
    PrintError(name_, status);
    return kExitUsage;
  }
  ExitCode Failed(const absl::Status& status) {
    PrintError(name_, status);
    return ExitCodeOf(status);
  }

 private:
  const GlobalOptions& globals_;
  const AdminOptions& admin_;
  const std::string name_;
};

struct StartFlags {
  std::vector<std::string> tasks;
  std::string recipe_file;
  std::string key;
  int64_t base_version = 0;
  int64_t watermark = 0;
  bool dry_run = false;
  bool watch = false;
};

// "relevance", "relevance:0.5", "classification/spam:2".
absl::StatusOr<v1::TrainingTask> ParseTask(const std::string& text) {
  static const auto* const kinds =
      new std::map<std::string, v1::TrainingTaskKind>{
          {"relevance", v1::TRAINING_TASK_KIND_RELEVANCE},
          {"recommendation", v1::TRAINING_TASK_KIND_RECOMMENDATION},
          {"interest", v1::TRAINING_TASK_KIND_INTEREST},
          {"classification", v1::TRAINING_TASK_KIND_CLASSIFICATION}};
  const auto error = [&text] {
    return absl::InvalidArgumentError(absl::StrCat(
        "--task: \"", text,
        "\" is not KIND[/HEAD][:WEIGHT] with KIND one of relevance, "
        "recommendation, interest, classification"));
  };
  v1::TrainingTask task;
  const std::pair<std::string, std::string> parts =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  const std::pair<std::string, std::string> names =
      absl::StrSplit(parts.first, absl::MaxSplits('/', 1));
  const auto kind = kinds->find(names.first);
  double weight = 0;
  if (kind == kinds->end()) return error();
  if (!parts.second.empty() &&
      (!absl::SimpleAtod(parts.second, &weight) || !(weight > 0))) {
    return error();
  }
  task.set_kind(kind->second);
  task.set_head(names.second);
  task.set_weight(weight);
  return task;
}

absl::StatusOr<v1::StartTrainingRequest> MakeStart(const GlobalOptions& globals,
                                                   const StartFlags& flags) {
  v1::StartTrainingRequest request;
  request.set_model(globals.model);
  if (!flags.recipe_file.empty()) {
    RETURN_IF_ERROR(ReadTextProto(flags.recipe_file, request.mutable_recipe()));
  }
  if (!flags.tasks.empty()) request.mutable_recipe()->clear_tasks();
  for (const std::string& text : flags.tasks) {
    ASSIGN_OR_RETURN(*request.mutable_recipe()->add_tasks(), ParseTask(text));
  }
  request.set_base_version(flags.base_version);
  request.set_label_watermark(flags.watermark);
  request.set_idempotency_key(flags.key);
  request.set_dry_run(flags.dry_run);
  return request;
}

ExitCode Start(const GlobalOptions& globals, const AdminOptions& admin,
               const StartFlags& flags) {
  Command command(globals, admin, "train start");
  const absl::StatusOr<v1::StartTrainingRequest> request =
      MakeStart(globals, flags);
  if (!request.ok()) return command.Usage(request.status());
  if (!flags.watch) {
    return command.Run(&AdminClient::StartTraining, *request,
                       [](const v1::StartTrainingResponse& response) {
                         if (response.existed()) {
                           absl::PrintF("there already, by its key\n");
                         }
                         PrintJob(response.job());
                       });
  }
  const auto client = NewAdminClient(globals, admin);
  if (!client.ok()) return command.Usage(client.status());
  const auto started = (*client)->StartTraining(*request);
  if (!started.ok()) return command.Failed(started.status());
  return command.Watch(started->job().id());
}

void AddTrainCommand(CLI::App& app, GlobalOptions& globals,
                     const std::shared_ptr<AdminOptions>& admin,
                     int* exit_code) {
  CLI::App* const train =
      app.add_subcommand("train", "Start, watch and cancel training jobs");
  train->require_subcommand(1);

  CLI::App* const start = train->add_subcommand("start", "Queue a job");
  const auto flags = std::make_shared<StartFlags>();
  start
      ->add_option("--task", flags->tasks,
                   "A head to train, such as relevance, interest:0.5, "
                   "classification/spam; may be repeated (default: every head "
                   "of the base version that has labels)")
      ->type_name("KIND[/HEAD][:WEIGHT]")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  start
      ->add_option("--recipe", flags->recipe_file,
                   "How to train and what the result must show: a textproto of "
                   "vitrine.v1.TrainingRecipe")
      ->type_name("FILE");
  start->add_option("--base", flags->base_version,
                    "The version to start from (default: the one in service)");
  start->add_option("--watermark", flags->watermark,
                    "Labels up to this number (default: all)");
  start->add_option("--key", flags->key,
                    "The same key again returns the same job");
  start->add_flag("--dry-run", flags->dry_run,
                  "Train and judge, publish nothing");
  start->add_flag("--watch", flags->watch, "Stay until it has ended");
  start->callback([&globals, admin, flags, exit_code] {
    *exit_code = Start(globals, *admin, *flags);
  });

  const auto id = std::make_shared<int64_t>(0);
  CLI::App* const watch = train->add_subcommand(
      "watch", "Follow a job to its end; 0 where it succeeded");
  watch->add_option("job", *id, "Its number")->required();
  watch->callback([&globals, admin, id, exit_code] {
    *exit_code = Command(globals, *admin, "train watch").Watch(*id);
  });

  CLI::App* const show = train->add_subcommand("show", "One job");
  show->add_option("job", *id, "Its number")->required();
  show->callback([&globals, admin, id, exit_code] {
    v1::GetTrainingJobRequest request;
    request.set_id(*id);
    *exit_code = Command(globals, *admin, "train show")
                     .Run(&AdminClient::GetTrainingJob, request,
                          [](const auto& r) { PrintJob(r.job()); });
  });

  CLI::App* const cancel =
      train->add_subcommand("cancel", "Ask for the end of a job");
  cancel->add_option("job", *id, "Its number")->required();
  cancel->callback([&globals, admin, id, exit_code] {
    v1::CancelTrainingJobRequest request;
    request.set_id(*id);
    *exit_code = Command(globals, *admin, "train cancel")
                     .Run(&AdminClient::CancelTrainingJob, request,
                          [](const auto& r) { PrintJob(r.job()); });
  });

  const auto limit = std::make_shared<int>(20);
  CLI::App* const list =
      train->add_subcommand("list", "Jobs, the newest first");
  list->add_option("--limit", *limit, "At most so many")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  list->callback([&globals, admin, limit, exit_code] {
    v1::ListTrainingJobsRequest request;
    request.set_model(globals.model);
    request.set_page_size(*limit);
    *exit_code =
        Command(globals, *admin, "train list")
            .Run(&AdminClient::ListTrainingJobs, request, [](const auto& r) {
              Table table;
              table.AddColumn("job", Table::kRight);
              table.AddColumn("model");
              table.AddColumn("state");
              table.AddColumn("base", Table::kRight);
              table.AddColumn("result", Table::kRight);
              table.AddColumn("labels", Table::kRight);
              table.AddColumn("created");
              table.AddColumn("finished");
              table.AddColumn("by");
              table.AddColumn("why");
              for (const v1::TrainingJob& job : r.jobs()) {
                const std::string why =
                    !job.error().empty()
                        ? job.error()
                        : absl::StrJoin(job.rejections(), "; ");
                table.AddRow({absl::StrCat(job.id()), Printable(job.model()),
                              StateText(job.state()),
                              absl::StrCat(job.base_version()),
                              job.result_version() > 0
                                  ? absl::StrCat(job.result_version())
                                  : "",
                              absl::StrCat(job.label_watermark()),
                              TimeText(job.created()), TimeText(job.finished()),
                              Printable(job.created_by()), Printable(why, 60)});
              }
              absl::PrintF("%s", table.ToString());
            });
  });
  train->footer(R"(Examples:
  vitrine train start --watch
  vitrine train start --recipe recipe.textproto --task relevance --key nightly-7
  vitrine train list
  vitrine train watch 12)");
}

std::string Marks(const v1::RegisteredVersion& version) {
  if (version.serving())
    return version.current() ? "serving" : "serving, not CURRENT";
  return version.current() ? "CURRENT, not serving" : "";
}

void PrintVersion(const v1::RegisteredVersion& version) {
  absl::PrintF("%s version %d%s\n", Printable(version.model()),
               version.version(),
               Marks(version).empty() ? "" : ": " + Marks(version));
  const auto line = [](const char* name, const std::string& value) {
    if (!value.empty()) absl::PrintF("  %-16s %s\n", name, Printable(value));
  };
  line("parent", version.parent() > 0 ? absl::StrCat(version.parent()) : "");
  line("created", TimeText(version.created()));
  line("by", version.created_by());
  line("description", version.description());
  line("heads", absl::StrJoin(version.heads(), ", "));
  line("bytes", absl::StrCat(version.size_bytes()));
  line("job", version.job() > 0 ? absl::StrCat(version.job()) : "");
  line("labels up to", version.label_watermark() > 0
                           ? absl::StrCat(version.label_watermark())
                           : "");
  line("data", version.data_digest());
  line("seed", absl::StrCat(version.seed()));
  line("recipe", version.recipe());
  if (!version.metrics().empty()) absl::PrintF("\n");
  PrintMetrics(version.metrics());
  if (version.label_reports().empty()) return;
  Table table;
  table.AddColumn("head");
  table.AddColumn("label");
  table.AddColumn("precision", Table::kRight);
  table.AddColumn("recall", Table::kRight);
  table.AddColumn("f1", Table::kRight);
  table.AddColumn("rows", Table::kRight);
  for (const v1::LabelReport& report : version.label_reports()) {
    table.AddRow({Printable(report.head()), Printable(report.label()),
                  Number(report.precision()), Number(report.recall()),
                  Number(report.f1()), absl::StrCat(report.rows())});
  }
  absl::PrintF("\n%s", table.ToString());
}

template <typename Response>
void PrintSwap(const Response& response) {
  const absl::Duration took = absl::Seconds(response.took().seconds()) +
                              absl::Nanoseconds(response.took().nanos());
  absl::PrintF("%s: version %d serves, after %s; it was %d\n",
               Printable(response.model()), response.version(),
               absl::FormatDuration(absl::Trunc(took, absl::Milliseconds(1))),
               response.previous());
}

void AddModelCommand(CLI::App& app, GlobalOptions& globals,
                     const std::shared_ptr<AdminOptions>& admin,
                     int* exit_code) {
  CLI::App* const model = app.add_subcommand(
      "model", "List, show, activate and roll back versions");
  model->require_subcommand(1);

  CLI::App* const list =
      model->add_subcommand("list", "Versions, the newest first");
  list->callback([&globals, admin, exit_code] {
    v1::ListModelVersionsRequest request;
    request.set_model(globals.model);
    *exit_code =
        Command(globals, *admin, "model list")
            .Run(&AdminClient::ListModelVersions, request, [](const auto& r) {
              Table table;
              table.AddColumn("version", Table::kRight);
              table.AddColumn("parent", Table::kRight);
              table.AddColumn("created");
              table.AddColumn("job", Table::kRight);
              table.AddColumn("heads");
              table.AddColumn("bytes", Table::kRight);
              table.AddColumn("");
              for (const v1::RegisteredVersion& version : r.versions()) {
                table.AddRow(
                    {absl::StrCat(version.version()),
                     version.parent() > 0 ? absl::StrCat(version.parent()) : "",
                     TimeText(version.created()),
                     version.job() > 0 ? absl::StrCat(version.job()) : "",
                     Printable(absl::StrJoin(version.heads(), ", ")),
                     absl::StrCat(version.size_bytes()), Marks(version)});
              }
              absl::PrintF("%s", table.ToString());
            });
  });

  const auto number = std::make_shared<int64_t>(0);
  CLI::App* const show = model->add_subcommand(
      "show", "One version with what was measured before it was published");
  show->add_option("version", *number,
                   "Its number (default: the one in service)");
  show->callback([&globals, admin, number, exit_code] {
    v1::GetModelVersionRequest request;
    request.set_model(globals.model);
    request.set_version(*number);
    *exit_code = Command(globals, *admin, "model show")
                     .Run(&AdminClient::GetModelVersion, request,
                          [](const auto& r) { PrintVersion(r.version()); });
  });

  CLI::App* const activate = model->add_subcommand(
      "activate", "Load a version beside the one in service and swap it in");
  activate->add_option("version", *number, "Its number")->required();
  activate->callback([&globals, admin, number, exit_code] {
    v1::ActivateModelVersionRequest request;
    request.set_model(globals.model);
    request.set_version(*number);
    *exit_code = Command(globals, *admin, "model activate")
                     .Run(
                         &AdminClient::ActivateModelVersion, request,
                         [](const auto& r) { PrintSwap(r); }, kActivateTimeout);
  });

  CLI::App* const rollback = model->add_subcommand(
      "rollback", "Activate the parent of the version in service");
  rollback->callback([&globals, admin, exit_code] {
    v1::RollbackModelRequest request;
    request.set_model(globals.model);
    *exit_code = Command(globals, *admin, "model rollback")
                     .Run(
                         &AdminClient::RollbackModel, request,
                         [](const auto& r) { PrintSwap(r); }, kActivateTimeout);
  });
  model->footer(R"(Examples:
  vitrine model list
  vitrine model show 12
  vitrine model activate 12
  vitrine model rollback)");
}

void AddAuditCommand(CLI::App& app, GlobalOptions& globals,
                     const std::shared_ptr<AdminOptions>& admin,
                     int* exit_code) {
  CLI::App* const audit = app.add_subcommand(
      "audit", "What was done to jobs and versions, by whom");
  const auto request = std::make_shared<v1::ListAuditEventsRequest>();
  const auto limit = std::make_shared<int>(100);
  const auto after = std::make_shared<std::optional<int64_t>>();
  audit->add_option("--limit", *limit, "At most so many, the newest")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  audit->add_option("--after", *after,
                    "Events with greater numbers than this, the oldest first");
  audit->callback([&globals, admin, request, limit, after, exit_code] {
    request->set_model(globals.model);
    request->set_page_size(*limit);
    if (after->has_value()) request->set_after(**after);
    *exit_code =
        Command(globals, *admin, "audit")
            .Run(&AdminClient::ListAuditEvents, *request, [](const auto& r) {
              Table table;
              table.AddColumn("event", Table::kRight);
              table.AddColumn("time");
              table.AddColumn("actor");
              table.AddColumn("action");
              table.AddColumn("model");
              table.AddColumn("job", Table::kRight);
              table.AddColumn("version", Table::kRight);
              table.AddColumn("detail");
              for (const v1::AuditEvent& event : r.events()) {
                table.AddRow(
                    {absl::StrCat(event.id()), TimeText(event.time()),
                     Printable(event.actor()), Printable(event.action()),
                     Printable(event.model()),
                     event.job() > 0 ? absl::StrCat(event.job()) : "",
                     event.version() > 0 ? absl::StrCat(event.version()) : "",
                     Printable(event.detail(), 80)});
              }
              absl::PrintF("%s", table.ToString());
            });
  });
}

}  // namespace

void AddAdminCommands(CLI::App& app, GlobalOptions& globals, int* exit_code) {
  const auto admin = std::make_shared<AdminOptions>();
  app.add_option("--admin-target", admin->target,
                 "The server's admin listener, host:port, for train, model and "
                 "audit")
      ->envname("VITRINE_ADMIN_TARGET")
      ->capture_default_str();
  app.add_option("--token-file", admin->token_file,
                 "A file whose first line is the admin's token")
      ->envname("VITRINE_ADMIN_TOKEN_FILE")
      ->type_name("FILE");
  AddTrainCommand(app, globals, admin, exit_code);
  AddModelCommand(app, globals, admin, exit_code);
  AddAuditCommand(app, globals, admin, exit_code);
}

}  // namespace vitrine
