// vitrine-trainer import: a Hugging Face folder as a served version.

#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "model/featurizer.h"
#include "trainer/commands.h"
#include "trainer/source_model.h"
#include "trainer/version_writer.h"

namespace vitrine {
namespace {

struct ImportOptions {
  std::string from;
  std::string registry;
  std::string model;
};

// Neutral words: what a load compares its own answers on.
constexpr const char* kSamples[] = {
    "red running shoes", "a wooden table for six people", "12 x 30 cm", "€ 5"};

absl::Status AddSamples(const SourceModel& source, NewVersion* version) {
  const Featurizer featurizer(*source.tokenizer, version->manifest.encoding(),
                              source.checkpoint.config);
  for (const internal::Head& head : version->manifest.heads()) {
    for (const char* const text : kSamples) {
      ASSIGN_OR_RETURN(const Tokens tokens, featurizer.Query(text));
      version->samples.emplace_back(head.name(),
                                    head.kind() == internal::HEAD_KIND_RELEVANCE
                                        ? featurizer.Pair(tokens, tokens)
                                        : featurizer.Single(tokens));
    }
  }
  return absl::OkStatus();
}

void PrintFound(const NewVersion& version, const Tokenizer& tokenizer) {
  const EncoderConfig& config = version.config;
  int64_t parameters = 0;
  for (const NamedTensor& tensor : version.encoder) {
    parameters += static_cast<int64_t>(tensor.values.size());
  }
  absl::PrintF("encoder    %s, %d layers of %d, %d attention heads\n",
               config.model_type, config.num_layers, config.hidden_size,
               config.num_heads);
  absl::PrintF(
      "weights    %d tensors, %.1fM parameters, %.1f MB\n",
      version.encoder.size() + version.heads.size(),
      static_cast<double>(parameters) / 1e6,
      static_cast<double>(SizeOnDisk(version.encoder, version.heads)) / 1e6);
  absl::PrintF("tokenizer  %s, %d pieces\n", std::string(tokenizer.kind()),
               tokenizer.vocab_size());
  absl::PrintF("input      up to %d tokens\n",
               version.manifest.encoding().max_tokens());
  for (const internal::Head& head : version.manifest.heads()) {
    absl::PrintF("head       %s%s\n", head.name(),
                 head.labels().empty()
                     ? ""
                     : absl::StrCat(": ", absl::StrJoin(head.labels(), ", ")));
  }
  if (version.manifest.heads().empty()) {
    absl::PrintF("head       none: Embed answers, `fit` adds heads\n");
  }
}

absl::Status Import(const ImportOptions& options) {
  RETURN_IF_ERROR(CheckModelName(options.model));
  const ModelRegistry registry(options.registry);
  ASSIGN_OR_RETURN(const auto source, LoadSourceModel(options.from));
  ASSIGN_OR_RETURN(NewVersion version, CopyOf(*source));
  version.manifest.set_parent(0);
  version.manifest.set_created_by("vitrine-trainer 0.1.0");
  version.manifest.set_description("imported from a Hugging Face folder");
  RETURN_IF_ERROR(AddSamples(*source, &version));
  ASSIGN_OR_RETURN(const int64_t number,
                   PublishVersion(registry, options.model, version));
  PrintFound(version, *source->tokenizer);
  absl::PrintF("published  %s\n",
               registry.VersionFolder(options.model, number));
  return absl::OkStatus();
}

}  // namespace

void AddImportCommand(CLI::App* app, CommandFunction* run) {
  CLI::App* const command = app->add_subcommand(
      "import", "Publish a Hugging Face folder as a version");
  auto options = std::make_shared<ImportOptions>();
  command
      ->add_option("--from", options->from,
                   "Folder with config.json, model.safetensors (or its shards) "
                   "and vocab.txt or a SentencePiece model")
      ->required()
      ->check(CLI::ExistingDirectory);
  command->add_option("--out", options->registry, "Registry")->required();
  command->add_option("--model", options->model, "Name in the registry")
      ->required();
  command->footer(
      "Takes BERT, RoBERTa and XLM-RoBERTa in F32, F16 or BF16. A sequence "
      "classification\nhead with one output becomes the head relevance, one "
      "with several the head\nclassifier. Every tensor is checked against "
      "config.json; what is missing, extra or\nmisshapen is named.\n\n"
      "Example:\n"
      "  vitrine-trainer import --from ms-marco-MiniLM-L-6-v2 "
      "--out registry --model shop");
  command->callback(
      [options, run] { *run = [options] { return Import(*options); }; });
}

}  // namespace vitrine
