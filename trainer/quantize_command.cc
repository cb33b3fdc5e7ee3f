// vitrine-trainer quantize: the command line of Quantize().

#include <atomic>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "trainer/commands.h"
#include "trainer/progress.h"
#include "trainer/quantize.h"
#include "trainer/quantize_progress.h"
#include "trainer/stop_signal.h"
#include "trainer/task_flags.h"

namespace vitrine {
namespace {

constexpr char kExamples[] =
    R"(The rows are the fit's: those that it trained on are calibrated on, those
that it held out measure fp32 against int8, head by head. --texts has no labels:
a text a line, or query, tab, title, which relevance needs; then only the
outputs are compared.

The weights stay as they are; the new version's manifest says which products run
in int8, how large their inputs may be, and which are kept in bf16. A server
with dtype AUTO runs it so.

Refused, with every reason, and exit status 1: outputs further off than
--max-loss though --max-kept products are kept out of int8; a head whose first
metric loses more than --max-metric-loss; a batch that takes longer than
max_latency_ratio of --gate allows; too few held-out rows to tell.

Examples:
  vitrine-trainer quantize --from shop/3 --out registry --items items.jsonl \
      --task relevance --data relevance.jsonl.gz
  vitrine-trainer quantize --from shop/3 --out registry --texts pairs.tsv)";

struct QuantizeFlags {
  QuantizeOptions options;
  TaskFlags tasks;
  std::string gate;
  bool dry_run = false;
  bool json = false;
};

void Resolve(const CLI::App& command, QuantizeFlags* flags) {
  flags->options.tasks = GroupTasks(command, flags->tasks);
  flags->options.publish = !flags->dry_run;
  flags->options.recipe = RecipeOf(command, {"--json"});
}

void Print(const QuantizeReport& report, std::FILE* out) {
  absl::FPrintF(out, "\n%s\n", ProductsTable(report.calibration.quantization));
  absl::FPrintF(out,
                "outputs are off by %.4f of their spread, by %.4f without "
                "calibration\n\n",
                report.calibration.loss, report.calibration.dynamic_loss);
  absl::FPrintF(out, "%s\n", ParityTable(report));
  if (!report.metrics.empty()) {
    absl::FPrintF(out, "before: fp32, after: int8\n%s\n", MetricsTable(report));
  }
  for (const std::string& warning : report.warnings) {
    absl::FPrintF(out, "warning: %s\n", warning);
  }
  if (report.rejected || !report.metrics.empty()) {
    absl::FPrintF(out, "%s", VerdictText(report));
  }
  if (report.version > 0) absl::FPrintF(out, "published %s\n", report.folder);
}

absl::Status RunQuantize(QuantizeFlags flags) {
  if (!flags.gate.empty()) {
    RETURN_IF_ERROR(ReadTextProto(flags.gate, &flags.options.gate.emplace()));
  }
  const std::atomic<bool>& stop = StopOnSignal();
  QuantizePrinter printer(stderr);
  ASSIGN_OR_RETURN(const QuantizeReport report,
                   Quantize(flags.options, &printer, stop));
  Print(report, flags.json ? stderr : stdout);
  if (flags.json) absl::PrintF("%s\n", ReportToJson(report));
  if (report.rejected) {
    return absl::FailedPreconditionError(
        "rejected by the gate; nothing was published");
  }
  return absl::OkStatus();
}

void AddCalibrationOptions(CLI::App* command, QuantizeOptions* o) {
  const auto add = [&](const char* name, auto& value, const char* help) {
    command->add_option(name, value, help)
        ->capture_default_str()
        ->group("Calibration");
  };
  add("--calibration-rows", o->calibration_rows,
      "Sequences of each task to calibrate on, at most");
  add("--max-loss", o->calibration.max_loss,
      "How far outputs may be off, as a share of their spread over the rows");
  add("--max-kept", o->calibration.max_kept,
      "Products that may be kept out of int8; -1: a quarter of them");
  add("--seed", o->seed, "Of the intervals");
  add("--threads", o->threads, "0: one for each processor");
}

void AddValidationOptions(CLI::App* command, QuantizeFlags* flags) {
  constexpr char kGroup[] = "Validation";
  QuantizeOptions* const o = &flags->options;
  command
      ->add_option("--validation-share", o->validation_share,
                   "As the fit had it, so that the same rows are held out")
      ->capture_default_str()
      ->group(kGroup);
  command
      ->add_option("--max-metric-loss", o->max_metric_loss,
                   "What a head's first metric may lose")
      ->capture_default_str()
      ->group(kGroup);
  command
      ->add_option("--gate", flags->gate,
                   "A file with what the result must show to be published: a "
                   "vitrine.v1.Gate as text; its rules, where it has some, "
                   "stand in place of --max-metric-loss")
      ->check(CLI::ExistingFile)
      ->group(kGroup);
  command
      ->add_flag("--dry-run", flags->dry_run,
                 "Calibrate and judge, but publish nothing")
      ->group(kGroup);
}

}  // namespace

void AddQuantizeCommand(CLI::App* app, CommandFunction* run) {
  CLI::App* const command = app->add_subcommand(
      "quantize", "Calibrate a version for int8 and publish that");
  auto flags = std::make_shared<QuantizeFlags>();
  QuantizeOptions* const o = &flags->options;
  command
      ->add_option("--from,version", o->from,
                   "The version: a folder, or MODEL/NUMBER or MODEL of the "
                   "registry")
      ->required();
  command->add_option("--out", o->registry, "Registry")->required();
  command->add_option("--model", o->model,
                      "Name in the registry; default: the version's");
  command->add_option("--items", o->items, "Items that rows name by id")
      ->check(CLI::ExistingFile);
  command
      ->add_option(
          "--texts", o->texts,
          "Lines of text in place of tasks; nothing tells quality then")
      ->check(CLI::ExistingFile);
  command->add_flag("--json", flags->json,
                    "One line of JSON on standard output, the rest on "
                    "standard error");
  AddTaskOptions(command, "Whose rows these are: a head's kind", &flags->tasks);
  AddCalibrationOptions(command, o);
  AddValidationOptions(command, flags.get());
  command->footer(absl::StrCat(kRowsHelp, kExamples));
  command->callback([command, flags, run] {
    Resolve(*command, flags.get());
    *run = [flags] { return RunQuantize(*flags); };
  });
}

}  // namespace vitrine
