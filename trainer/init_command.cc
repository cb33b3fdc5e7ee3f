// vitrine-trainer init: an encoder with random weights, as a Hugging Face
// folder.

#include <cstdio>
#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/load_tokenizer.h"
#include "trainer/commands.h"
#include "trainer/network.h"
#include "trainer/version_writer.h"

namespace vitrine {
namespace {

struct InitOptions {
  std::string vocab;
  std::string spm;
  std::string spm_layout = "xlm-roberta";
  bool cased = false;
  int64_t layers = 2;
  int64_t hidden = 128;
  int64_t heads = 0;
  int64_t intermediate = 0;
  int64_t max_positions = 128;
  int64_t segments = 4;
  double dropout = 0.1;
  uint64_t seed = 1;
  std::string out;
};

absl::Status CheckEmpty(const std::string& folder) {
  if (!PathExists(folder)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  if (names.empty()) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("--out ", folder, ": the folder is not empty"));
}

// The folder was empty before.
void RemoveContents(const std::string& folder) {
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator(folder, ignored)) {
    std::filesystem::remove_all(entry.path(), ignored);
  }
}

absl::Status CopyFile(const std::string& from, const std::string& to) {
  ASSIGN_OR_RETURN(const std::string content, ReadFile(from));
  return WriteFile(to, content);
}

absl::Status WriteTokenizer(const InitOptions& options,
                            const std::string& folder) {
  const bool offset = options.spm_layout == "xlm-roberta";
  if (!options.vocab.empty()) {
    RETURN_IF_ERROR(CopyFile(options.vocab, JoinPath(folder, "vocab.txt")));
    return WriteFile(
        JoinPath(folder, "tokenizer_config.json"),
        absl::StrFormat("{\n  \"do_lower_case\": %s,\n"
                        "  \"tokenizer_class\": \"BertTokenizer\"\n}\n",
                        options.cased ? "false" : "true"));
  }
  RETURN_IF_ERROR(CopyFile(
      options.spm,
      JoinPath(folder, offset ? "sentencepiece.bpe.model" : "spiece.model")));
  // Without it, transformers would look for the tokenizer of config.json's
  // model_type, and AlbertTokenizer would take accents off.
  return WriteFile(JoinPath(folder, "tokenizer_config.json"),
                   offset ? "{\n  \"tokenizer_class\": "
                            "\"XLMRobertaTokenizer\"\n}\n"
                          : "{\n  \"do_lower_case\": false,\n"
                            "  \"keep_accents\": true,\n"
                            "  \"tokenizer_class\": "
                            "\"AlbertTokenizer\"\n}\n");
}

absl::Status MakeEncoder(const InitOptions& options) {
  RETURN_IF_ERROR(WriteTokenizer(options, options.out));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                   LoadTokenizer(options.out));
  NewVersion model;
  EncoderConfig& config = model.config;
  const bool roberta =
      options.vocab.empty() && options.spm_layout == "xlm-roberta";
  config.model_type = roberta ? "xlm-roberta" : "bert";
  config.architectures = {roberta ? "XLMRobertaModel" : "BertModel"};
  config.vocab_size = tokenizer->vocab_size();
  config.pad_token_id = tokenizer->special().pad;
  config.hidden_size = options.hidden;
  config.num_layers = options.layers;
  config.num_heads = options.heads > 0
                         ? options.heads
                         : std::max<int64_t>(1, options.hidden / 64);
  config.intermediate_size =
      options.intermediate > 0 ? options.intermediate : 4 * options.hidden;
  config.type_vocab_size = options.segments;
  config.hidden_dropout = options.dropout;
  config.attention_dropout = options.dropout;
  config.max_positions = options.max_positions + config.first_position();
  // Checks the numbers by the rules of every other config.
  RETURN_IF_ERROR(ParseEncoderConfig(EncoderConfigToJson(config)).status());
  const auto network = Network::Random(config, options.seed);
  model.encoder = network->SaveEncoder(TensorType::kF32);
  RETURN_IF_ERROR(CheckFreeDisk(options.out, SizeOnDisk(model.encoder, {})));
  // The tokenizer's files are there already.
  model.tokenizer_folder = options.out;
  RETURN_IF_ERROR(WriteModelFolder(options.out, model));
  int64_t parameters = 0;
  for (const NamedTensor& tensor : model.encoder) {
    parameters += static_cast<int64_t>(tensor.values.size());
  }
  absl::PrintF(
      "%s: %s, %d layers of %d, %d heads, %d pieces, %.2fM parameters\n",
      options.out, config.model_type, config.num_layers, config.hidden_size,
      config.num_heads, config.vocab_size,
      static_cast<double>(parameters) / 1e6);
  return absl::OkStatus();
}

absl::Status Init(const InitOptions& options) {
  RETURN_IF_ERROR(CheckEmpty(options.out));
  RETURN_IF_ERROR(MakeFolders(options.out));
  const absl::Status made = MakeEncoder(options);
  // So that the next try finds it empty again.
  if (!made.ok()) RemoveContents(options.out);
  return made;
}

}  // namespace

void AddInitCommand(CLI::App* app, CommandFunction* run) {
  CLI::App* const command =
      app->add_subcommand("init", "Make an encoder with random weights");
  auto options = std::make_shared<InitOptions>();
  CLI::Option* const vocab =
      command
          ->add_option("--vocab", options->vocab,
                       "WordPiece vocabulary (vocab.txt), one piece a line")
          ->check(CLI::ExistingFile)
          ->group("Tokenizer (one of the two)");
  CLI::Option* const spm =
      command->add_option("--spm", options->spm, "SentencePiece model")
          ->check(CLI::ExistingFile)
          ->group("Tokenizer (one of the two)");
  vocab->excludes(spm);
  command
      ->add_option("--spm-layout", options->spm_layout,
                   "Ids as xlm-roberta or albert has them")
      ->check(CLI::IsMember({"xlm-roberta", "albert"}))
      ->capture_default_str()
      ->group("Tokenizer (one of the two)");
  command
      ->add_flag("--cased", options->cased,
                 "Keep upper case and accents (WordPiece)")
      ->group("Tokenizer (one of the two)");
  command->add_option("--layers", options->layers, "Layers")
      ->capture_default_str()
      ->group("Shape");
  command->add_option("--hidden", options->hidden, "Width")
      ->capture_default_str()
      ->group("Shape");
  command
      ->add_option("--heads", options->heads,
                   "Attention heads; 0: one for each 64 of the width")
      ->capture_default_str()
      ->group("Shape");
  command
      ->add_option("--intermediate", options->intermediate,
                   "Width inside a layer; 0: four times the width")
      ->capture_default_str()
      ->group("Shape");
  command
      ->add_option("--max-positions", options->max_positions,
                   "Longest input in tokens")
      ->capture_default_str()
      ->group("Shape");
  command
      ->add_option(
          "--segments", options->segments,
          "Rows of the segment table (type_vocab_size); with 4, pairs mark the "
          "words that both texts have, by which a small encoder learns "
          "relevance far faster")
      ->capture_default_str()
      ->group("Shape");
  command
      ->add_option("--dropout", options->dropout,
                   "Dropout that config.json asks of training")
      ->capture_default_str()
      ->group("Shape");
  command->add_option("--seed", options->seed, "Of the weights")
      ->capture_default_str();
  command->add_option("--out", options->out, "Folder to make")->required();
  command->footer(
      "Writes config.json, model.safetensors and the tokenizer's file: a "
      "Hugging Face\nfolder, which `fit --from` and other tools read.\n\n"
      "Example:\n"
      "  vitrine-trainer init --vocab vocab.txt --layers 2 --hidden 128 "
      "--out encoder");
  command->callback([options, run] {
    if (options->vocab.empty() && options->spm.empty()) {
      throw CLI::ValidationError("--vocab FILE or --spm FILE is needed");
    }
    *run = [options] { return Init(*options); };
  });
}

}  // namespace vitrine
