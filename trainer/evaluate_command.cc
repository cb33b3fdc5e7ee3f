// vitrine-trainer evaluate: the command line of EvaluateVersion().

#include <atomic>
#include <cstdio>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "trainer/commands.h"
#include "trainer/evaluate.h"
#include "trainer/evaluate_progress.h"
#include "trainer/pass_device.h"
#include "trainer/progress.h"
#include "trainer/stop_signal.h"
#include "trainer/task_flags.h"

namespace vitrine {
namespace {

constexpr char kExamples[] =
    R"(All rows of --data count: nothing is split off, and nothing is trained.
Give rows that no training has seen. The numbers are those of `fit`, by the same
code (trainer/evaluation.h defines every metric), with the engine that a server
would serve the version with. A label that the head does not know counts as
missed; a warning says of how many rows.

--scores writes what the head said of each row, a line of JSON each, in the
order of the rows; labels are in the head's order:
  relevance        {"query", "item_id", "score", "logit", "grade"}; score is
                   sigmoid(logit), in [0, 1]
  recommendation   {"user_id", "next", "place", "top"}: the row's last item, its
                   place from 0, and the ten best of the catalogue, the row's
                   other items left out
  interest         {"user_id", "probabilities": {label: p}, "categories"}
  classification   {"label", "predicted", "probabilities": {label: p},
                    "logits", "energy"}; energy is -log(sum of exp(logit))

--json prints {"source", "version", "folder", "engine", "device", "dtype",
"rows", "sequences", "seconds", "data_digest", "heads", "warnings"}; a head has
"name", "kind", "rows", "metrics", "baselines" and "labels" (precision, recall
and f1 of each).

Examples:
  vitrine-trainer evaluate --from shop/3 --registry registry \
      --items items.jsonl --task relevance --data test.jsonl --grades 0:3
  vitrine-trainer evaluate registry/shop/3 --dtype fp32 \
      --task classification --head intent --data test.jsonl \
      --scores scores.jsonl --json)";

struct EvaluateFlags {
  EvaluateOptions options;
  TaskFlags tasks;
  std::string device = "auto", dtype = "auto", engine = "auto";
  bool json = false;
};

const std::map<std::string, internal::Dtype> kDtypes = {
    {"auto", internal::DTYPE_AUTO},
    {"fp32", internal::DTYPE_FP32},
    {"bf16", internal::DTYPE_BF16},
    {"fp16", internal::DTYPE_FP16},
    {"int8", internal::DTYPE_INT8}};
const std::map<std::string, internal::EngineKind> kEngines = {
    {"auto", internal::ENGINE_KIND_AUTO},
    {"torch", internal::ENGINE_KIND_TORCH},
    {"onednn", internal::ENGINE_KIND_ONEDNN}};

void Resolve(const CLI::App& command, EvaluateFlags* flags) {
  flags->options.tasks = GroupTasks(command, flags->tasks);
  flags->options.device = DeviceOf(flags->device);
  flags->options.dtype = kDtypes.at(flags->dtype);
  flags->options.engine = kEngines.at(flags->engine);
}

absl::Status RunEvaluate(const EvaluateFlags& flags) {
  const std::atomic<bool>& stop = StopOnSignal();
  EvaluatePrinter printer(stderr);
  ASSIGN_OR_RETURN(const EvaluateReport report,
                   EvaluateVersion(flags.options, &printer, stop));
  std::FILE* const out = flags.json ? stderr : stdout;
  absl::FPrintF(out, "\n%s\n%d rows in %s\n", EvaluationTable(report),
                report.rows, FormatDuration(report.seconds));
  if (flags.json) absl::PrintF("%s\n", ReportToJson(report));
  return absl::OkStatus();
}

void AddEngineOptions(CLI::App* command, EvaluateFlags* flags) {
  constexpr char kGroup[] = "Engine (auto: as a server takes it)";
  const auto add = [&](const char* name, std::string& value, const auto& names,
                       const char* help) {
    command->add_option(name, value, help)
        ->check(CLI::IsMember(&names))
        ->capture_default_str()
        ->group(kGroup);
  };
  command->add_option("--device", flags->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str()
      ->group(kGroup);
  add("--dtype", flags->dtype, kDtypes, "auto, fp32, bf16, fp16 or int8");
  add("--engine", flags->engine, kEngines, "auto, torch or onednn");
  command
      ->add_option("--threads", flags->options.threads,
                   "0: one for each processor")
      ->capture_default_str()
      ->group("Engine (auto: as a server takes it)");
}

}  // namespace

void AddEvaluateCommand(CLI::App* app, CommandFunction* run) {
  CLI::App* const command =
      app->add_subcommand("evaluate", "Measure a version on labelled rows");
  auto flags = std::make_shared<EvaluateFlags>();
  EvaluateOptions* const o = &flags->options;
  command
      ->add_option("--from,version", o->from,
                   "The version: a folder, or MODEL/NUMBER or MODEL of the "
                   "registry")
      ->required();
  command->add_option("--registry,--out", o->registry,
                      "Registry; not needed where --from is a folder");
  command->add_option("--items", o->items, "Items that rows name by id")
      ->check(CLI::ExistingFile);
  command->add_option("--scores", o->scores,
                      "Write what the head said of each row into this file");
  command->add_flag("--json", flags->json,
                    "One line of JSON on standard output, the rest on "
                    "standard error");
  AddTaskOptions(command, "Whose rows these are: a head's kind", &flags->tasks);
  command->get_option("--task")->required();
  command->get_option("--data")->required();
  // All rows are held out.
  command->remove_option(command->get_option("--validation"));
  AddEngineOptions(command, flags.get());
  command->footer(absl::StrCat(kRowsHelp, kExamples));
  command->callback([command, flags, run] {
    Resolve(*command, flags.get());
    *run = [flags] { return RunEvaluate(*flags); };
  });
}

}  // namespace vitrine
