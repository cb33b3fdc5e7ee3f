// vitrine-trainer pretrain: the command line of Pretrain().

#include <atomic>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "trainer/commands.h"
#include "trainer/pass_device.h"
#include "trainer/pretrain.h"
#include "trainer/pretrain_progress.h"
#include "trainer/progress.h"
#include "trainer/recipe_file.h"
#include "trainer/stop_signal.h"
#include "trainer/training_state.h"

namespace vitrine {
namespace {

constexpr char kFooter[] =
    R"(Plain text files have a document a line; of JSON lines (FILE.jsonl) the next
--fields after the file says which fields make one, those with a question mark
where they are there. Both may be gzip. Errors name file, line and field.

Without --from the encoder begins with random weights, and without --tokenizer
a SentencePiece model is learnt from the texts. With --from FOLDER training goes
on from that encoder, with its tokenizer, on a shop's own texts: a lower rate
(1e-4 to 3e-4) and one or two epochs are enough.

--stage contrastive goes on after the masked words: the vectors of a text's
first field and of another one, or of two crops of a long text, come close,
those of other texts in the step go apart. Embed and recommendation start from
it. A rate of 1e-4 to 5e-4 and one or two epochs are enough.

--stage matching teaches which item a query is of, both read as one text as
Score reads them, with match marks: queries are words of documents, or names of
a first field that is a list of them (sofa, couch, lounge). The result has a
relevance head, from which fit --task relevance goes on. An encoder without
segments for match marks gets them.

Several processes train together where RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT are set, as torchrun does; process 0 writes the result.

With --checkpoint DIR a run that was stopped, killed or cut off goes on when the
same command is given again, to the same result as in one go.

Examples:
  vitrine-trainer pretrain --text texts.txt.gz --epochs 10 --out encoder
  vitrine-trainer pretrain --from encoder --text items.jsonl \
      --fields title,description? --learning-rate 2e-4 --out encoder-shop
  vitrine-trainer pretrain --stage contrastive --from encoder-shop \
      --text items.jsonl --fields title,description?,categories? \
      --learning-rate 2e-4 --out encoder-shop-2
  vitrine-trainer pretrain --stage matching --from encoder-shop-2 \
      --text items.jsonl --fields title,description?,categories? \
      --learning-rate 2e-4 --out encoder-shop-3)";

struct PretrainFlags {
  PretrainOptions options;
  std::vector<std::string> texts, fields;
  bool cased = false;
  std::string stage = "mlm";
  std::string pooling = "cls";
  std::string schedule = "cosine";
  std::string device = "auto", bf16 = "auto";
  std::string save_dtype = "f32";
  std::string recipe;
};

// --fields belong to the files of JSON lines before them that have none yet.
void GroupTexts(const CLI::App& command, PretrainFlags* flags) {
  std::vector<TextSource>& texts = flags->options.texts;
  size_t text = 0, fields = 0, waiting = 0;
  for (const CLI::Option* const option : command.parse_order()) {
    if (option->get_name() == "--text") {
      texts.push_back({flags->texts[text++], {}});
    }
    if (option->get_name() != "--fields") continue;
    const std::string& given = flags->fields[fields++];
    absl::StatusOr<std::vector<TextField>> parsed = ParseTextFields(given);
    if (!parsed.ok()) {
      throw CLI::ValidationError(std::string(parsed.status().message()));
    }
    bool used = false;
    for (; waiting < texts.size(); ++waiting) {
      if (!IsJsonLines(texts[waiting].path)) continue;
      texts[waiting].fields = *parsed;
      used = true;
    }
    if (!used) {
      throw CLI::ValidationError(
          "--fields", given + ": comes after no --text of JSON lines");
    }
  }
}

void Resolve(const CLI::App& command, PretrainFlags* flags) {
  GroupTexts(command, flags);
  PretrainOptions& options = flags->options;
  options.stage = flags->stage == "contrastive" ? Stage::kContrastive
                  : flags->stage == "matching"  ? Stage::kMatching
                                                : Stage::kMlm;
  options.pooling =
      flags->pooling == "mean" ? internal::POOLING_MEAN : internal::POOLING_CLS;
  options.lower_case = !flags->cased;
  options.schedule = flags->schedule == "linear"   ? Schedule::kLinear
                     : flags->schedule == "cosine" ? Schedule::kCosine
                                                   : Schedule::kConstant;
  if (flags->bf16 != "auto") options.bf16 = flags->bf16 == "on";
  options.save_f16 = flags->save_dtype == "f16";
}

absl::Status PretrainAndTell(PretrainOptions options,
                             const std::string& device) {
  ASSIGN_OR_RETURN(options.device, ChoosePassDevice(DeviceOf(device)));
  const double timeout = options.processes.timeout_seconds;
  ASSIGN_OR_RETURN(options.processes, ProcessesOfEnvironment());
  options.processes.timeout_seconds = timeout;
  const std::atomic<bool>& stop = StopOnSignal();
  PretrainPrinter printer(stderr);
  PretrainListener silent;
  const bool first = options.processes.rank == 0;
  ASSIGN_OR_RETURN(const PretrainReport report,
                   Pretrain(options, first ? &printer : &silent, stop));
  if (!first) return absl::OkStatus();
  if (!options.checkpoint_folder.empty()) {
    const absl::Status removed =
        RemoveTrainingStates(options.checkpoint_folder);
    if (!removed.ok()) {
      absl::FPrintF(stderr, "warning: %s\n", removed.message());
    }
  }
  absl::PrintF(
      "%s: %d tokens (%.2f epochs) in %s, %.0f tokens/s, perplexity %.2f\n",
      options.out, report.tokens, report.epochs, FormatDuration(report.seconds),
      report.tokens_per_second, report.perplexity);
  return absl::OkStatus();
}

void AddModelOptions(CLI::App* command, PretrainFlags* flags) {
  constexpr char kGroup[] = "Model (without --from)";
  PretrainOptions* const o = &flags->options;
  const auto add = [&](const char* name, auto& value, const char* help) {
    return command->add_option(name, value, help)
        ->capture_default_str()
        ->group(kGroup);
  };
  add("--tokenizer", o->tokenizer,
      "A folder with a tokenizer's files; default: learnt from the texts")
      ->check(CLI::ExistingDirectory);
  add("--pieces", o->pieces, "Of the SentencePiece model that is learnt");
  command
      ->add_flag("--cased", flags->cased,
                 "The SentencePiece model keeps upper and lower case apart")
      ->group(kGroup);
  add("--layers", o->layers, "Layers");
  add("--hidden", o->hidden, "Width");
  add("--heads", o->heads, "Attention heads; 0: one for each 64 of the width");
  add("--intermediate", o->intermediate,
      "Width inside a layer; 0: four times the width");
  add("--max-positions", o->max_positions, "Longest input in tokens");
  add("--segments", o->segments,
      "Rows of the segment table; 4: pairs can mark the words they share");
}

void AddTrainingOptions(CLI::App* command, PretrainFlags* flags) {
  constexpr char kGroup[] = "Training";
  PretrainOptions* const o = &flags->options;
  const auto add = [&](const char* name, auto& value, const char* help) {
    return command->add_option(name, value, help)
        ->capture_default_str()
        ->group(kGroup);
  };
  add("--tokens", o->tokens,
      "To train on, pairs of crops counted as if they were whole; 0: by "
      "--epochs");
  add("--epochs", o->epochs, "Times through the texts");
  add("--max-tokens", o->max_tokens,
      "Longest sequence; longer documents are several");
  add("--batch-tokens", o->batch_tokens, "Tokens in a step, at most");
  add("--share-tokens", o->share_tokens,
      "Tokens that go through the network together; a step adds up so many "
      "shares");
  add("--mask", o->masking.share, "Share of the tokens hidden, whole words");
  add("--mask-keep", o->masking.keep, "Of the hidden words, left as they are");
  add("--mask-substitute", o->masking.substitute,
      "Of the hidden words, put other tokens for");
  add("--temperature", o->temperature,
      "Contrastive: what cosines are divided by");
  add("--pooling", flags->pooling,
      "Contrastive and matching: a text's vector, or what the relevance head "
      "reads: cls or mean, as in fit")
      ->check(CLI::IsMember({"cls", "mean"}));
  add("--negatives", o->negatives,
      "Matching: other documents' items beside a query's own");
  add("--hard-negatives", o->hard_negatives,
      "Matching: of them, such as have words of the query");
  add("--learning-rate", o->learning_rate, "At the end of the warm-up");
  add("--schedule", flags->schedule, "linear or cosine (to 0), or constant")
      ->check(CLI::IsMember({"linear", "cosine", "constant"}));
  add("--warmup", o->warmup, "Share of the steps over which the rate rises");
  add("--weight-decay", o->weight_decay, "But for biases and LayerNorm");
  add("--beta2", o->beta2, "AdamW's, of the squared gradients");
  add("--clip", o->clip, "Largest norm of the gradients; 0: no limit");
  add("--dropout", o->dropout,
      "While pre-training; config.json keeps its own for fit");
  add("--held-out-share", o->held_out_share,
      "Of the documents, for the perplexity; 0: none");
  add("--evaluate-tokens", o->evaluate_tokens,
      "Trained on between two evaluations");
  add("--seed", o->seed, "Of weights, order and masks");
  add("--device", flags->device,
      "auto, cpu or cuda (of several GPUs that of LOCAL_RANK)")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  add("--bf16", flags->bf16,
      "bf16 products: on, off, or auto (on where the device has them)")
      ->check(CLI::IsMember({"auto", "on", "off"}));
  add("--threads", o->threads,
      "0: one for each processor; of each process, where there are several");
  add("--process-timeout", o->processes.timeout_seconds,
      "Seconds to wait for other processes");
}

}  // namespace

void AddPretrainCommand(CLI::App* app, CommandFunction* run) {
  CLI::App* const command = app->add_subcommand(
      "pretrain", "Train an encoder on texts without labels");
  auto flags = std::make_shared<PretrainFlags>();
  PretrainOptions* const o = &flags->options;
  command
      ->add_option("--text", flags->texts,
                   "Files of texts: plain, or JSON lines (.gz too)")
      ->required()
      ->check(CLI::ExistingFile);
  command
      ->add_option("--fields", flags->fields,
                   "Of the JSON lines before it: NAME,NAME?, … (?: may be "
                   "missing)")
      ->allow_extra_args(false);
  command->add_option("--out", o->out, "Folder to make")->required();
  command->add_option("--recipe", flags->recipe, kRecipeHelp)
      ->check(CLI::ExistingFile);
  command
      ->add_option("--from", o->from,
                   "A Hugging Face folder or a version to go on from")
      ->check(CLI::ExistingDirectory);
  command
      ->add_option("--stage", flags->stage,
                   "What is learnt: mlm (hidden words), contrastive (which "
                   "texts belong together) or matching (which item a query is "
                   "of); the latter two go on from --from")
      ->check(CLI::IsMember({"mlm", "contrastive", "matching"}))
      ->capture_default_str();
  command
      ->add_option("--save-dtype", flags->save_dtype,
                   "Of the weights on disk: f32 or f16")
      ->check(CLI::IsMember({"f32", "f16"}))
      ->capture_default_str();
  command->add_option("--checkpoint", o->checkpoint_folder,
                      "Keep the run's state in this folder, every five minutes "
                      "and at Ctrl-C; the same command goes on from it. "
                      "Removed at the end");
  command
      ->add_option("--checkpoint-seconds", o->checkpoint_seconds,
                   "Between two checkpoints")
      ->capture_default_str();
  command->add_option(
      "--tensorboard", o->tensorboard_folder,
      "Write curves of the loss, its rate and gradients, and of the "
      "perplexity, as TensorBoard events into this folder");
  AddModelOptions(command, flags.get());
  AddTrainingOptions(command, flags.get());
  command->footer(kFooter);
  command->callback([command, flags, run] {
    Resolve(*command, flags.get());
    *run = [flags] { return PretrainAndTell(flags->options, flags->device); };
  });
}

}  // namespace vitrine
