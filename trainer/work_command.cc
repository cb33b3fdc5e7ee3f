// vitrine-trainer work: the command line of TrainingWorker.

#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/proto_duration.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "store/database.h"
#include "trainer/commands.h"
#include "trainer/stop_signal.h"
#include "trainer/training_worker.h"
#include "trainer/worker_config.h"

namespace vitrine {
namespace {

constexpr char kFooter[] =
    R"(Takes training jobs from the label store that it shares with the servers: jobs
that an admin started (vitrine train start) and those of the policies in the
configuration. Any number of workers may run, on any number of hosts that share
registry and store; each takes one job at a time.

A worker that dies is replaced by whichever is next: the job goes on from its
last checkpoint, with the result of an unbroken run. SIGTERM and SIGINT give the
job back and end the worker.

A job's TensorBoard events are in <registry>/<model>/.jobs/<job>/tensorboard:
  tensorboard --logdir registry/shop/.jobs

The configuration is a textproto; proto/vitrine/internal/worker.proto describes
all fields. A small one:
  registry: "/var/lib/vitrine/models"
  store { url: "sqlite:/var/lib/vitrine/labels.db" }
  policies {
    model: "shop" min_new_labels: 5000
    max_interval { seconds: 86400 }
    recipe { epochs: 2 gate { rules { metric: "ndcg@10" min_change: 0 } } }
  }

Examples:
  vitrine-trainer work --registry models --store sqlite:labels.db
  vitrine-trainer work --config worker.textproto --once)";

struct WorkFlags {
  std::string config_file;
  std::string registry;
  std::string store;
  std::vector<std::string> models;
  int threads = 0;
  bool once = false;
  bool check = false;
};

absl::StatusOr<internal::WorkerConfig> MakeConfig(const WorkFlags& flags) {
  internal::WorkerConfig config;
  if (!flags.config_file.empty()) {
    RETURN_IF_ERROR(ReadTextProto(flags.config_file, &config));
  }
  if (!flags.registry.empty()) config.set_registry(flags.registry);
  if (!flags.store.empty()) config.mutable_store()->set_url(flags.store);
  if (!flags.models.empty()) {
    config.mutable_models()->Assign(flags.models.begin(), flags.models.end());
  }
  if (flags.threads > 0) config.set_threads(flags.threads);
  RETURN_IF_ERROR(ResolveWorkerConfig(&config));
  return config;
}

absl::Status Work(const WorkFlags& flags) {
  ASSIGN_OR_RETURN(const internal::WorkerConfig config, MakeConfig(flags));
  if (flags.check) {
    std::puts("the configuration is valid");
    return absl::OkStatus();
  }
  SetLogFormat(config.log().format() == internal::LOG_FORMAT_JSON
                   ? LogFormat::kJson
                   : LogFormat::kText);
  const std::atomic<bool>& stop = StopOnSignal();
  DatabaseOptions options;
  options.url = config.store().url();
  options.lock_timeout = FromProtoDuration(config.store().lock_timeout());
  ASSIGN_OR_RETURN(const std::unique_ptr<Database> database,
                   Database::Open(options));
  Log(LogLevel::kInfo, "working",
      {{"registry", config.registry()}, {"store", database->Describe()}});
  TrainingWorker worker(config, *database);
  if (!flags.once) {
    worker.Run(stop);
    return absl::OkStatus();
  }
  while (!stop) {
    ASSIGN_OR_RETURN(const bool worked, worker.RunOnce(stop));
    if (!worked) break;
  }
  return absl::OkStatus();
}

}  // namespace

void AddWorkCommand(CLI::App* app, CommandFunction* run) {
  CLI::App* const command =
      app->add_subcommand("work", "Take training jobs from the label store");
  auto flags = std::make_shared<WorkFlags>();
  command
      ->add_option("-c,--config", flags->config_file,
                   "The configuration; each flag below overrides a field of it")
      ->check(CLI::ExistingFile)
      ->type_name("FILE");
  command->add_option("--registry", flags->registry, "Folder of models");
  command
      ->add_option("--store", flags->store,
                   "sqlite:PATH or postgresql://USER@HOST/NAME?passfile=FILE")
      ->type_name("URL");
  command
      ->add_option("--model", flags->models,
                   "Takes this model's jobs only; may be repeated")
      ->allow_extra_args(false);
  command->add_option("--threads", flags->threads,
                      "Of training; 0: one for each processor");
  command->add_flag("--once", flags->once, "Do what is queued, then exit");
  command->add_flag("--check", flags->check,
                    "Check the configuration, list every error, and exit");
  command->footer(kFooter);
  command->callback([flags, run] { *run = [flags] { return Work(*flags); }; });
}

}  // namespace vitrine
