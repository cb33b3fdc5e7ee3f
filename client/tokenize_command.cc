// vitrine tokenize: what a model folder's tokenizer makes of texts and pairs.
// No server is asked.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "client/command.h"
#include "client/input.h"
#include "model/featurizer.h"
#include "model/load_tokenizer.h"
#include "model/model_config.h"
#include "model/tokenizer.h"
#include "model/unicode.h"

namespace vitrine {
namespace {

using nlohmann::json;

constexpr char kName[] = "tokenize";
constexpr int kDefaultMaxTokens = 512;  // where config.json is absent
constexpr int kMaxConfigBytes = 1 << 20;
constexpr size_t kFlushBytes = 1 << 16;

struct TokenizeFlags {
  std::string pairs_file;
  std::vector<std::string> texts;
  std::vector<std::string> pair;
  int max_tokens = 0;
  bool pieces = false;
};

struct Shape {
  EncoderConfig encoder;
  int max_tokens = kDefaultMaxTokens;
};

absl::StatusOr<Shape> ReadShape(const std::string& folder,
                                const TokenizeFlags& flags) {
  Shape shape;
  shape.encoder.type_vocab_size = 2;
  const std::string path = JoinPath(folder, "config.json");
  if (PathExists(path)) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
    absl::StatusOr<EncoderConfig> config = ParseEncoderConfig(text);
    if (!config.ok()) return Annotate(config.status(), path);
    shape.encoder = *std::move(config);
    shape.max_tokens = static_cast<int>(shape.encoder.max_tokens());
  }
  if (flags.max_tokens > 0) shape.max_tokens = flags.max_tokens;
  return shape;
}

// Budgets that leave only the whole to cut.
internal::EncodingOptions WholeTexts(int max_tokens) {
  internal::EncodingOptions options;
  options.set_max_tokens(max_tokens);
  options.set_max_query_tokens(max_tokens);
  options.set_max_title_tokens(max_tokens);
  options.set_max_brand_tokens(-1);
  options.set_max_categories_tokens(-1);
  options.set_max_attributes_tokens(-1);
  options.set_max_description_tokens(-1);
  return options;
}

class Writer {
 public:
  Writer(const Tokenizer& tokenizer, const Shape& shape, bool pieces)
      : tokenizer_(tokenizer),
        featurizer_(tokenizer, WholeTexts(shape.max_tokens), shape.encoder),
        pieces_(pieces) {}
  ~Writer() { Flush(); }

  absl::Status Add(absl::string_view a, std::optional<absl::string_view> b) {
    RETURN_IF_ERROR(CheckUtf8(a, "a"));
    ASSIGN_OR_RETURN(const Tokens first, featurizer_.Query(a));
    Encoding encoding;
    if (b.has_value()) {
      RETURN_IF_ERROR(CheckUtf8(*b, "b"));
      v1::Item item;
      item.set_title(std::string(*b));
      const absl::StatusOr<Tokens> second = featurizer_.ItemText(item);
      // Its only error, now, is that there is no text in `b`.
      encoding = featurizer_.Pair(first, second.ok() ? *second : Tokens());
    } else {
      encoding = featurizer_.Single(first);
    }
    out_ += "{\"ids\":[";
    Append(encoding.ids);
    out_ += "],\"type_ids\":[";
    Append(encoding.segment_ids);
    out_ += ']';
    if (pieces_) {
      json pieces = json::array();
      for (const int32_t id : encoding.ids) {
        pieces.push_back(tokenizer_.Piece(id));
      }
      out_ += ",\"pieces\":";
      out_ += pieces.dump(-1, ' ', false, json::error_handler_t::replace);
    }
    out_ += "}\n";
    if (out_.size() > kFlushBytes) Flush();
    return absl::OkStatus();
  }

 private:
  static absl::Status CheckUtf8(absl::string_view text, const char* name) {
    if (const auto bad = FindInvalidUtf8({text.data(), text.size()})) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": invalid UTF-8 at byte ", *bad));
    }
    return absl::OkStatus();
  }

  void Append(const std::vector<int32_t>& numbers) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      absl::StrAppend(&out_, i == 0 ? "" : ",", numbers[i]);
    }
  }

  void Flush() {
    std::fwrite(out_.data(), 1, out_.size(), stdout);
    out_.clear();
  }

  const Tokenizer& tokenizer_;
  const Featurizer featurizer_;
  const bool pieces_;
  std::string out_;
};

absl::Status AddPair(absl::string_view line, Writer* writer) {
  json object;
  try {
    object = json::parse(line.begin(), line.end());
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", e.what()));
  }
  if (!object.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  const auto a = object.find("a");
  if (a == object.end() || !a->is_string()) {
    return absl::InvalidArgumentError("no \"a\" in it that is text");
  }
  const auto b = object.find("b");
  if (b == object.end() || b->is_null()) {
    return writer->Add(a->get_ref<const std::string&>(), std::nullopt);
  }
  if (!b->is_string()) return absl::InvalidArgumentError("\"b\" is not text");
  return writer->Add(a->get_ref<const std::string&>(),
                     b->get_ref<const std::string&>());
}

absl::Status Tokenize(const std::string& folder, const TokenizeFlags& flags) {
  if (folder.empty()) {
    return absl::InvalidArgumentError("give --model FOLDER");
  }
  if (!PathExists(folder)) {
    return absl::NotFoundError(absl::StrCat(folder, ": no such folder"));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                   LoadTokenizer(folder));
  ASSIGN_OR_RETURN(const Shape shape, ReadShape(folder, flags));
  Writer writer(*tokenizer, shape, flags.pieces);
  for (const std::string& text : flags.texts) {
    RETURN_IF_ERROR(writer.Add(text, std::nullopt));
  }
  if (flags.pair.size() == 2) {
    RETURN_IF_ERROR(writer.Add(flags.pair[0], flags.pair[1]));
  }
  if (flags.pairs_file.empty() &&
      !(flags.texts.empty() && flags.pair.empty())) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(
      const std::unique_ptr<LineReader> reader,
      LineReader::Open(flags.pairs_file.empty() ? "-" : flags.pairs_file));
  std::string line;
  while (reader->Next(&line)) {
    RETURN_IF_ERROR(reader->At(AddPair(line, &writer)));
  }
  return absl::OkStatus();
}

}  // namespace

void AddTokenizeCommand(CLI::App& app, GlobalOptions& globals, int* exit_code) {
  CLI::App* const tokenize = app.add_subcommand(
      kName, "Print the token ids that a model folder makes of texts");
  auto flags = std::make_shared<TokenizeFlags>();
  auto folder = std::make_shared<std::string>();
  tokenize
      ->add_option("--model", *folder,
                   "A model folder: a version of a registry, or a Hugging "
                   "Face folder with vocab.txt or a SentencePiece model")
      ->type_name("FOLDER");
  tokenize
      ->add_option("--pairs", flags->pairs_file,
                   "{\"a\": text, \"b\": text} a line, \"b\" optional; \"-\", "
                   "and the default: standard input")
      ->type_name("FILE");
  tokenize->add_option("--text", flags->texts, "A text; repeat it")
      ->allow_extra_args(false);
  tokenize
      ->add_option("--pair", flags->pair,
                   "Two texts, such as a query and "
                   "a title")
      ->expected(2);
  tokenize
      ->add_option("--max-tokens", flags->max_tokens,
                   "The longest sequence, special tokens included (default: "
                   "what the folder's config.json allows, or 512)")
      ->check(CLI::PositiveNumber);
  tokenize->add_flag("--pieces", flags->pieces, "Print the pieces too");
  tokenize->callback([flags, folder, &globals, exit_code] {
    const absl::Status status =
        Tokenize(folder->empty() ? globals.model : *folder, *flags);
    if (!status.ok()) PrintError(kName, status);
    *exit_code = status.ok() ? kExitOk : kExitUsage;
  });
  tokenize->footer(
      R"(Prints a line for each input: {"ids":[…],"type_ids":[…]}. Only the second text
of a pair is cut. A pair is encoded as a query and an item's title are.

Examples:
  vitrine tokenize --model registry/shop/3 --text "red sofa" --pieces
  vitrine tokenize --model registry/shop/3 --pair "red sofa" "Crimson couch"
  vitrine tokenize --model registry/shop/3 --pairs pairs.jsonl > ids.jsonl)");
}

}  // namespace vitrine
