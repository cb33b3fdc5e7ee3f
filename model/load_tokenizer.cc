#include "model/load_tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/sentencepiece_tokenizer.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

constexpr char kConfigFile[] = "tokenizer_config.json";
constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kMaxModelBytes = 64 << 20;

// What a model file is, by its name. The first that exists counts.
enum class Kind { kWordPiece, kXlmRoberta, kAlbert };

struct KnownFile {
  const char* name;
  Kind kind;
};

constexpr KnownFile kKnownFiles[] = {
    {"vocab.txt", Kind::kWordPiece},
    {"sentencepiece.bpe.model", Kind::kXlmRoberta},
    {"spiece.model", Kind::kAlbert},
    {"spm.model", Kind::kAlbert},
};

// Classes whose files bear the same names but mean other ids (CamemBERT's
// offsets, BertJapanese's morphemes) must not be read as if they were these.
struct KnownClass {
  const char* name;
  Kind kind;
};

constexpr KnownClass kKnownClasses[] = {
    {"BertTokenizer", Kind::kWordPiece},
    {"DistilBertTokenizer", Kind::kWordPiece},
    {"ElectraTokenizer", Kind::kWordPiece},
    {"MobileBertTokenizer", Kind::kWordPiece},
    {"ConvBertTokenizer", Kind::kWordPiece},
    {"XLMRobertaTokenizer", Kind::kXlmRoberta},
    {"AlbertTokenizer", Kind::kAlbert},
};

// Says nothing of the kind: the file's name does.
constexpr const char* kGenericClasses[] = {
    "PreTrainedTokenizer", "TokenizersBackend", "SentencePieceBackend"};

struct TokenizerConfig {
  WordPieceOptions wordpiece;
  SentencePieceOptions sentencepiece;
  std::string tokenizer_class;
};

absl::Status BadField(absl::string_view field, const nlohmann::json& value,
                      absl::string_view want) {
  // dump() recurses: a list may be nested deeper than the stack.
  const std::string shown =
      value.is_structured()
          ? value.type_name()
          : value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", shown.substr(0, 64), " is not ", want));
}

// Leaves `*out` alone where the field is absent or null.
absl::Status ReadBool(const nlohmann::json& json, const char* field,
                      bool* out) {
  const auto at = json.find(field);
  if (at == json.end() || at->is_null()) return absl::OkStatus();
  if (!at->is_boolean()) return BadField(field, *at, "true or false");
  *out = at->get<bool>();
  return absl::OkStatus();
}

absl::StatusOr<TokenizerConfig> ParseConfig(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  TokenizerConfig config;
  WordPieceOptions& wordpiece = config.wordpiece;
  RETURN_IF_ERROR(ReadBool(json, "do_lower_case", &wordpiece.lower_case));
  wordpiece.strip_accents = wordpiece.lower_case;
  RETURN_IF_ERROR(ReadBool(json, "strip_accents", &wordpiece.strip_accents));
  RETURN_IF_ERROR(
      ReadBool(json, "tokenize_chinese_chars", &wordpiece.split_cjk));
  SentencePieceOptions& albert = config.sentencepiece;
  RETURN_IF_ERROR(ReadBool(json, "do_lower_case", &albert.lower_case));
  bool keep_accents = !albert.lower_case;
  RETURN_IF_ERROR(ReadBool(json, "keep_accents", &keep_accents));
  albert.strip_accents = !keep_accents;
  const auto at = json.find("tokenizer_class");
  if (at != json.end() && !at->is_null()) {
    if (!at->is_string()) return BadField("tokenizer_class", *at, "a string");
    config.tokenizer_class = at->get<std::string>();
  }
  return config;
}

// That the class that wrote the folder reads `file` the way we do.
absl::Status CheckClass(const std::string& tokenizer_class,
                        const KnownFile& file) {
  absl::string_view name = tokenizer_class;
  if (absl::EndsWith(name, "Fast")) name.remove_suffix(4);
  if (name.empty()) return absl::OkStatus();
  for (const char* generic : kGenericClasses) {
    if (name == generic) return absl::OkStatus();
  }
  std::vector<absl::string_view> supported;
  for (const KnownClass& known : kKnownClasses) {
    if (name != known.name) {
      supported.push_back(known.name);
      continue;
    }
    if (known.kind == file.kind) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer_class: ", tokenizer_class, " does not read ", file.name));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "tokenizer_class: ", tokenizer_class,
      " is not supported; these are: ", absl::StrJoin(supported, ", ")));
}

// What the folder's tokenizer_config.json says; the defaults without one.
absl::StatusOr<TokenizerConfig> ReadConfig(const std::string& folder,
                                           const KnownFile& file) {
  const std::string path = JoinPath(folder, kConfigFile);
  if (!PathExists(path)) return TokenizerConfig();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  auto config = ParseConfig(text);
  if (!config.ok()) return Annotate(config.status(), path);
  RETURN_IF_ERROR(Annotate(CheckClass(config->tokenizer_class, file), path));
  return config;
}

const KnownFile* FindKnownFile(const std::string& folder) {
  for (const KnownFile& file : kKnownFiles) {
    if (PathExists(JoinPath(folder, file.name))) return &file;
  }
  return nullptr;
}

absl::Status NothingFound(const std::string& folder) {
  std::vector<std::string> names;
  for (const KnownFile& file : kKnownFiles) names.push_back(file.name);
  std::string message = absl::StrCat(folder, ": no tokenizer: looked for ",
                                     absl::StrJoin(names, ", "));
  if (PathExists(JoinPath(folder, "merges.txt"))) {
    absl::StrAppend(&message,
                    "; merges.txt is there, but byte-level BPE is not "
                    "supported");
  } else if (PathExists(JoinPath(folder, "tokenizer.json"))) {
    absl::StrAppend(&message,
                    "; tokenizer.json is there, but is not supported alone: "
                    "add the file that it was made from");
  }
  return absl::NotFoundError(message);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(
    const std::string& folder) {
  const KnownFile* file = FindKnownFile(folder);
  if (file == nullptr) return NothingFound(folder);
  ASSIGN_OR_RETURN(const TokenizerConfig config, ReadConfig(folder, *file));
  const std::string path = JoinPath(folder, file->name);
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path, kMaxModelBytes));
  if (file->kind == Kind::kWordPiece) {
    auto tokenizer = NewWordPieceTokenizer(content, config.wordpiece);
    if (!tokenizer.ok()) return Annotate(tokenizer.status(), path);
    return tokenizer;
  }
  SentencePieceOptions options = config.sentencepiece;
  // XLM-R's folders carry do_lower_case too, and nothing that made the models
  // ever looked at it.
  if (file->kind == Kind::kXlmRoberta) {
    options = {.layout = SentencePieceLayout::kOffsetByOne};
  }
  std::string error;
  auto tokenizer = NewSentencePieceTokenizer(content, options, &error);
  if (tokenizer == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", error));
  }
  return tokenizer;
}

std::vector<std::string> TokenizerFiles(const std::string& folder) {
  std::vector<std::string> files;
  if (const KnownFile* file = FindKnownFile(folder)) {
    files.push_back(file->name);
  }
  if (PathExists(JoinPath(folder, kConfigFile))) files.push_back(kConfigFile);
  return files;
}

}  // namespace vitrine
