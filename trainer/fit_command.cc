// vitrine-trainer fit: the command line of FineTune().

#include <atomic>
#include <cstdio>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "trainer/commands.h"
#include "trainer/fine_tune.h"
#include "trainer/pass_device.h"
#include "trainer/progress.h"
#include "trainer/recipe_file.h"
#include "trainer/stop_signal.h"
#include "trainer/task_flags.h"
#include "trainer/training_state.h"

namespace vitrine {
namespace {

constexpr char kExamples[] =
    R"(Several --task groups train several heads over one encoder: --data,
--head, --validation, --grades and --task-weight belong to the --task before
them. Heads of a parent version that are not trained are carried over.

The weights of the epoch with the best validation metric are kept: ndcg@10 of
relevance and recommendation, macro_f1 of interest and classification, averaged
by --task-weight. trainer/evaluation.h defines every metric. What --gate rejects
is not published: every reason is printed, and the exit status is 1.

One --seed and one --threads give the same result again. Ctrl-C stops; nothing
is published then.

Rates: a pretrained encoder takes 2e-5 to 5e-5 (the default), a small one from
`init` learns with 1e-3 and a dozen epochs.

With --checkpoint DIR a run that was stopped, killed or cut off goes on when the
same command is given again, to the same result as in one go.

Examples:
  vitrine-trainer fit --from shop/3 --items items.jsonl \
      --task relevance --data relevance.jsonl.gz --out registry --model shop
  vitrine-trainer fit --from encoder --items items.jsonl \
      --task relevance --data relevance.jsonl \
      --task recommendation --data users.jsonl --task-weight 0.5 \
      --task interest --data interest.jsonl \
      --task classification --head category --data categories.jsonl \
      --learning-rate 1e-3 --epochs 12 --patience 3 \
      --out registry --model shop --json)";

// What the flags say before they become FineTuneOptions.
struct FitFlags {
  FineTuneOptions options;
  TaskFlags tasks;
  std::string optimizer = "adamw";
  std::string schedule = "linear";
  std::string relevance_loss = "graded";
  std::string freeze = "none";
  std::string device = "auto", bf16 = "auto";
  std::string co_occurrence = "auto";
  std::string ngrams = "auto";
  std::string pooling = "cls";
  std::string save_dtype = "f32";
  std::string match_marks = "auto";
  int max_tokens = 0, max_query_tokens = 0, max_title_tokens = 0,
      max_brand_tokens = 0, max_categories_tokens = 0,
      max_attributes_tokens = 0, max_description_tokens = 0,
      max_history_item_tokens = 0;
  std::string recipe;
  std::string gate;
  bool dry_run = false;
  bool json = false;
};

void Resolve(const CLI::App& command, FitFlags* flags) {
  FineTuneOptions& options = flags->options;
  options.tasks = GroupTasks(command, flags->tasks);
  options.sgd = flags->optimizer == "sgd";
  options.schedule = flags->schedule == "linear"   ? Schedule::kLinear
                     : flags->schedule == "cosine" ? Schedule::kCosine
                                                   : Schedule::kConstant;
  options.relevance_loss = flags->relevance_loss == "lambda"
                               ? RelevanceLoss::kLambda
                               : RelevanceLoss::kGraded;
  if (flags->freeze == "encoder") {
    options.freeze = FineTuneOptions::kFreezeEncoder;
  } else if (flags->freeze != "none" &&
             (!absl::SimpleAtoi(flags->freeze, &options.freeze) ||
              options.freeze < 0)) {
    throw CLI::ValidationError(
        "--freeze", flags->freeze + " is neither none, encoder nor a number");
  }
  if (flags->bf16 != "auto") options.bf16 = flags->bf16 == "on";
  options.co_occurrence = flags->co_occurrence == "auto";
  options.ngrams = flags->ngrams == "auto";
  options.pooling =
      flags->pooling == "mean" ? internal::POOLING_MEAN : internal::POOLING_CLS;
  options.save_f16 = flags->save_dtype == "f16";
  options.match_marks = flags->match_marks == "on"    ? MatchMarks::kOn
                        : flags->match_marks == "off" ? MatchMarks::kOff
                                                      : MatchMarks::kAuto;
  options.publish = !flags->dry_run;
  internal::EncodingOptions& encoding = options.encoding;
  encoding.set_max_tokens(flags->max_tokens);
  encoding.set_max_query_tokens(flags->max_query_tokens);
  encoding.set_max_title_tokens(flags->max_title_tokens);
  encoding.set_max_brand_tokens(flags->max_brand_tokens);
  encoding.set_max_categories_tokens(flags->max_categories_tokens);
  encoding.set_max_attributes_tokens(flags->max_attributes_tokens);
  encoding.set_max_description_tokens(flags->max_description_tokens);
  encoding.set_max_history_item_tokens(flags->max_history_item_tokens);
  // How a run is watched and kept is no part of what it makes.
  options.recipe = RecipeOf(
      command, {"--recipe", "--json", "--checkpoint", "--tensorboard"});
}

absl::Status Fit(FitFlags flags) {
  if (!flags.gate.empty()) {
    RETURN_IF_ERROR(ReadTextProto(flags.gate, &flags.options.gate.emplace()));
  }
  ASSIGN_OR_RETURN(flags.options.device,
                   ChoosePassDevice(DeviceOf(flags.device)));
  const std::atomic<bool>& stop = StopOnSignal();
  ProgressPrinter printer(stderr);
  ASSIGN_OR_RETURN(const FineTuneReport report,
                   FineTune(flags.options, &printer, stop));
  if (!flags.options.checkpoint_folder.empty()) {
    const absl::Status removed =
        RemoveTrainingStates(flags.options.checkpoint_folder);
    if (!removed.ok()) {
      absl::FPrintF(stderr, "warning: %s\n", removed.message());
    }
  }
  std::FILE* const out = flags.json ? stderr : stdout;
  absl::FPrintF(out, "\n%s\n", MetricsTable(report));
  absl::FPrintF(out,
                "%d epochs, %d steps in %s, %.0f examples/s; kept epoch %d\n",
                report.epochs, report.steps, FormatDuration(report.seconds),
                report.examples_per_second, report.best_epoch);
  if (flags.options.gate.has_value()) {
    absl::FPrintF(out, "%s", VerdictText(report));
  }
  if (report.version > 0) absl::FPrintF(out, "published %s\n", report.folder);
  if (flags.json) {
    absl::PrintF("%s\n", ReportToJson(report, flags.options.model));
  }
  if (report.rejected) {
    return absl::FailedPreconditionError(
        "rejected by the gate; nothing was published");
  }
  return absl::OkStatus();
}

void AddTrainingOptions(CLI::App* command, FitFlags* flags) {
  constexpr char kGroup[] = "Training";
  FineTuneOptions* const o = &flags->options;
  const auto add = [&](const char* name, auto& value, const char* help) {
    return command->add_option(name, value, help)
        ->capture_default_str()
        ->group(kGroup);
  };
  add("--optimizer", flags->optimizer, "adamw or sgd (momentum 0.9)")
      ->check(CLI::IsMember({"adamw", "sgd"}));
  add("--learning-rate", o->learning_rate, "At the end of the warm-up");
  add("--head-learning-rate", o->head_learning_rate,
      "Of the heads; 0: as --learning-rate");
  add("--schedule", flags->schedule, "linear or cosine (to 0), or constant")
      ->check(CLI::IsMember({"linear", "cosine", "constant"}));
  add("--warmup", o->warmup, "Share of the steps over which the rate rises");
  add("--batch-size", o->batch_size, "Examples in a step");
  add("--batch-tokens", o->batch_tokens, "Tokens in a step, at most");
  add("--epochs", o->epochs, "Times through the rows");
  add("--weight-decay", o->weight_decay, "But for biases and LayerNorm");
  add("--dropout", o->dropout, "Negative: as config.json says");
  add("--attention-dropout", o->attention_dropout,
      "Of attention's weights. Negative: as --dropout; 0 is faster");
  add("--clip", o->clip, "Largest norm of the gradients; 0: no limit");
  add("--freeze", flags->freeze,
      "none; encoder (heads only); N: the embeddings and the N bottom layers");
  add("--relevance-loss", flags->relevance_loss,
      "graded: cross-entropy on grades; lambda: half of it LambdaLoss over the "
      "rows of a query, for the order")
      ->check(CLI::IsMember({"graded", "lambda"}));
  add("--temperature", o->temperature, "Of recommendation's softmax");
  add("--targets-per-user", o->targets_per_user,
      "Recommendation: a user's newest items to predict; 0: all");
  add("--co-occurrence", flags->co_occurrence,
      "Recommendation: beside the texts, which items go together in the rows: "
      "auto (with 300 users or more, else as the parent has it) or off")
      ->check(CLI::IsMember({"auto", "off"}));
  add("--ngrams", flags->ngrams,
      "Classification and relevance: beside the encoder, a linear model over "
      "tokens and their pairs: auto (with 100 rows or more, else as the parent "
      "has it) or off")
      ->check(CLI::IsMember({"auto", "off"}));
  add("--pooling", flags->pooling, "What new heads read: cls or mean")
      ->check(CLI::IsMember({"cls", "mean"}));
  add("--seed", o->seed, "Of order, dropout and new heads");
  add("--device", flags->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  add("--bf16", flags->bf16,
      "bf16 products: on, off, or auto (on where the processor has them and "
      "the encoder is 256 wide or wider)")
      ->check(CLI::IsMember({"auto", "on", "off"}));
  add("--threads", o->threads, "0: one for each processor");
}

void AddValidationOptions(CLI::App* command, FitFlags* flags) {
  constexpr char kGroup[] = "Validation";
  FineTuneOptions* const o = &flags->options;
  command
      ->add_option("--validation-share", o->validation_share,
                   "Of queries, users or texts, by a hash; 0: none")
      ->capture_default_str()
      ->group(kGroup);
  command
      ->add_option("--patience", o->patience,
                   "Stop after so many epochs without gain; 0: never")
      ->capture_default_str()
      ->group(kGroup);
  command
      ->add_option("--gate", flags->gate,
                   "A file with what the result must show to be published: a "
                   "vitrine.v1.Gate as text; an empty one has the defaults")
      ->check(CLI::ExistingFile)
      ->group(kGroup);
  command
      ->add_option("--incumbent", o->incumbent,
                   "With --gate, the version in service: a folder, "
                   "MODEL/NUMBER or MODEL; default: --from")
      ->group(kGroup);
  command
      ->add_flag("--dry-run", flags->dry_run,
                 "Train and judge, but publish nothing")
      ->group(kGroup);
}

void AddEncodingOptions(CLI::App* command, FitFlags* flags) {
  constexpr char kGroup[] = "Input (0: as the parent has it, or the default)";
  const auto add = [&](const char* name, int& value, const char* help) {
    command->add_option(name, value, help)->group(kGroup);
  };
  add("--max-tokens", flags->max_tokens, "Longest sequence [128]");
  add("--max-query-tokens", flags->max_query_tokens, "Query [32]");
  add("--max-title-tokens", flags->max_title_tokens, "Title [48]");
  add("--max-brand-tokens", flags->max_brand_tokens, "Brand [8]");
  add("--max-categories-tokens", flags->max_categories_tokens,
      "Categories [12]");
  add("--max-attributes-tokens", flags->max_attributes_tokens,
      "Attributes [24]");
  add("--max-description-tokens", flags->max_description_tokens,
      "Description [48]; -1: left out, as in every field");
  add("--max-history-item-tokens", flags->max_history_item_tokens,
      "One item of a history [16]");
  command
      ->add_option("--match-marks", flags->match_marks,
                   "Of the words that query and item share: on (an encoder of "
                   "two segments gets four), off, or auto (as it is)")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str()
      ->group(kGroup);
}

}  // namespace

void AddFitCommand(CLI::App* app, CommandFunction* run) {
  CLI::App* const command =
      app->add_subcommand("fit", "Fine-tune and publish a version");
  auto flags = std::make_shared<FitFlags>();
  FineTuneOptions* const o = &flags->options;
  command
      ->add_option("--from", o->from,
                   "What to start from: a folder, or MODEL/NUMBER or MODEL of "
                   "the registry")
      ->required();
  command->add_option("--out", o->registry, "Registry")->required();
  command->add_option("--model", o->model, "Name in the registry")->required();
  command->add_option("--recipe", flags->recipe, kRecipeHelp)
      ->check(CLI::ExistingFile);
  command->add_option("--items", o->items, "Items that rows name by id")
      ->check(CLI::ExistingFile);
  command
      ->add_option("--save-dtype", flags->save_dtype,
                   "Of the weights on disk: f32 or f16")
      ->check(CLI::IsMember({"f32", "f16"}))
      ->capture_default_str();
  command->add_option("--checkpoint", o->checkpoint_folder,
                      "Keep the run's state in this folder, every minute, "
                      "after each epoch and at Ctrl-C; the same command goes "
                      "on from it. Removed when the version is published");
  command->add_option(
      "--tensorboard", o->tensorboard_folder,
      "Write curves of the loss, its rate and gradients, and of "
      "the metrics, as TensorBoard events into this folder");
  command->add_flag("--json", flags->json,
                    "One line of JSON on standard output, the rest on "
                    "standard error");
  AddTaskOptions(command, "What to train: a head's kind", &flags->tasks);
  command->get_option("--task")->required();
  command->get_option("--data")->required();
  command
      ->add_option("--task-weight", flags->tasks.weights,
                   "Of the task's loss, and of its metric in choosing the "
                   "epoch [1]")
      ->allow_extra_args(false)
      ->group(kTaskGroup);

  AddTrainingOptions(command, flags.get());
  AddValidationOptions(command, flags.get());
  AddEncodingOptions(command, flags.get());
  command->footer(absl::StrCat(kRowsHelp, kExamples));
  command->callback([command, flags, run] {
    Resolve(*command, flags.get());
    *run = [flags] { return Fit(*flags); };
  });
}

}  // namespace vitrine
