#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "trainer/pretrain.h"

namespace vitrine {

absl::Status CheckOptions(const PretrainOptions& options) {
  std::vector<std::string> errors;
  const auto require = [&errors](bool good, std::string error) {
    if (!good) errors.push_back(std::move(error));
  };
  const auto above_zero = [&require](const char* flag, auto value) {
    require(value > 0, absl::StrCat(flag, " ", value, ": above 0 is needed"));
  };
  const auto share = [&require](const char* flag, double value) {
    require(value >= 0 && value < 1,
            absl::StrCat(flag, " ", value, ": outside [0, 1)"));
  };
  require(!options.texts.empty(), "--text: no file");
  require(!options.out.empty(), "--out: empty");
  require(options.from.empty() || options.tokenizer.empty(),
          "--tokenizer: --from brings its own");
  for (const TextSource& text : options.texts) {
    require(IsJsonLines(text.path) == !text.fields.empty(),
            absl::StrCat(text.path, text.fields.empty()
                                        ? ": JSON lines need --fields"
                                        : ": --fields are for JSON lines"));
  }
  require(options.stage == Stage::kMlm || !options.from.empty(),
          absl::StrCat(
              "--stage ",
              options.stage == Stage::kMatching ? "matching" : "contrastive",
              ": needs --from, an encoder to go on from"));
  above_zero("--process-timeout", options.processes.timeout_seconds);
  require(options.negatives >= 1 && options.negatives <= 63,
          absl::StrCat("--negatives ", options.negatives, ": outside 1..63"));
  require(
      options.hard_negatives >= 0 &&
          options.hard_negatives <= options.negatives,
      absl::StrCat("--hard-negatives ", options.hard_negatives, ": outside 0..",
                   options.negatives, ", the --negatives"));
  above_zero("--temperature", options.temperature);
  require(options.pieces >= 300 && options.pieces <= 1'000'000,
          absl::StrCat("--pieces ", options.pieces, ": outside 300..1000000"));
  require(options.max_tokens >= 8,
          absl::StrCat("--max-tokens ", options.max_tokens, ": below 8"));
  require(options.tokens >= 0,
          absl::StrCat("--tokens ", options.tokens, ": below 0"));
  above_zero("--epochs", options.epochs);
  require(options.share_tokens >= options.max_tokens,
          absl::StrCat("--share-tokens ", options.share_tokens,
                       ": below --max-tokens ", options.max_tokens));
  require(options.batch_tokens >= options.max_tokens,
          absl::StrCat("--batch-tokens ", options.batch_tokens,
                       ": below --max-tokens ", options.max_tokens));
  above_zero("--learning-rate", options.learning_rate);
  share("--warmup", options.warmup);
  require(options.weight_decay >= 0,
          absl::StrCat("--weight-decay ", options.weight_decay, ": below 0"));
  require(options.clip >= 0,
          absl::StrCat("--clip ", options.clip, ": below 0"));
  share("--beta2", options.beta2);
  share("--dropout", options.dropout);
  share("--mask", options.masking.share);
  share("--mask-keep", options.masking.keep);
  share("--mask-substitute", options.masking.substitute);
  require(options.masking.share > 0, "--mask 0: above 0 is needed");
  require(options.masking.keep + options.masking.substitute <= 1,
          "--mask-keep and --mask-substitute: above 1 together");
  share("--held-out-share", options.held_out_share);
  require(options.threads >= 0,
          absl::StrCat("--threads ", options.threads, ": below 0"));
  if (errors.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(errors, "\n"));
}

}  // namespace vitrine
