#include "trainer/piece_model.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/unicode.h"

namespace vitrine {
namespace {

constexpr char kProgram[] = "vitrine-train-pieces";
// The library skips lines above its limit; a piece never crosses a space.
constexpr size_t kLineBytes = 2000;

// 64 bits of FNV-1a.
uint64_t HashOf(absl::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  return hash ^ (hash >> 29);
}

void AppendLines(absl::string_view text, std::vector<std::string>* lines) {
  while (!text.empty()) {
    size_t size = text.size();
    if (size > kLineBytes) {
      const size_t space = text.rfind(' ', kLineBytes);
      size = space != absl::string_view::npos && space > 0
                 ? space
                 : Utf8Prefix({text.data(), size}, kLineBytes).size();
    }
    const absl::string_view line = text.substr(0, size);
    lines->push_back(absl::StrReplaceAll(
        line, {{"\n", " "}, {"\r", " "}, {absl::string_view("\0", 1), " "}}));
    text.remove_prefix(line.size());
  }
}

absl::StatusOr<std::string> ProgramPath() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string beside = (self.parent_path() / kProgram).string();
  if (error || !PathExists(beside)) {
    return absl::NotFoundError(absl::StrCat(
        beside, ": no such program; it trains the SentencePiece model"));
  }
  return beside;
}

// Runs `arguments` with files as standard input, output and error; the exit
// status.
absl::StatusOr<int> RunProgram(const std::vector<std::string>& arguments,
                               const std::string& in, const std::string& out,
                               const std::string& err) {
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  const absl::Cleanup destroy = [&files] {
    posix_spawn_file_actions_destroy(&files);
  };
  constexpr int kWrite = O_WRONLY | O_CREAT | O_TRUNC;
  posix_spawn_file_actions_addopen(&files, 0, in.c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, out.c_str(), kWrite, 0644);
  posix_spawn_file_actions_addopen(&files, 2, err.c_str(), kWrite, 0644);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  pid_t child = 0;
  const int error =
      posix_spawn(&child, argv[0], &files, nullptr, argv.data(), environ);
  if (error != 0) {
    return absl::InternalError(
        absl::StrCat("start ", arguments[0], ": ", std::strerror(error)));
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) {
      return absl::InternalError(
          absl::StrCat("wait for ", arguments[0], ": ", std::strerror(errno)));
    }
  }
  return status;
}

// The last line that says something: the reason, where it failed.
std::string LastLine(const std::string& path) {
  const auto text = ReadFile(path);
  if (!text.ok()) return "";
  const size_t end = text->find_last_not_of('\n');
  if (end == std::string::npos) return "";
  const size_t begin = text->rfind('\n', end);
  return text->substr(begin == std::string::npos ? 0 : begin + 1,
                      end - (begin == std::string::npos ? 0 : begin + 1) + 1);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> SampleLines(
    const std::vector<TextSource>& sources, int64_t sample_bytes) {
  Document document;
  int64_t total = 0;
  for (DocumentReader reader(sources);;) {
    ASSIGN_OR_RETURN(const bool read, reader.Next(&document));
    if (!read) break;
    for (const std::string& part : document) total += part.size();
  }
  const double share = std::min(
      1.0, static_cast<double>(sample_bytes) / std::max<int64_t>(1, total));
  const auto limit = static_cast<uint64_t>(share * 4294967296.0);
  std::vector<std::string> lines;
  for (DocumentReader reader(sources);;) {
    ASSIGN_OR_RETURN(const bool read, reader.Next(&document));
    if (!read) break;
    const std::string text = TextOf(document);
    if ((HashOf(text) >> 32) < limit) AppendLines(text, &lines);
  }
  return lines;
}

absl::StatusOr<std::string> TrainPieceModel(
    const std::vector<std::string>& lines, const PieceModelOptions& options,
    const std::string& scratch) {
  ASSIGN_OR_RETURN(const std::string program, ProgramPath());
  const std::string in = JoinPath(scratch, "pieces.txt");
  const std::string out = JoinPath(scratch, "pieces.model");
  const std::string err = JoinPath(scratch, "pieces.log");
  const absl::Cleanup remove = [&] {
    for (const std::string& path : {in, out, err}) unlink(path.c_str());
  };
  std::string text;
  for (const std::string& line : lines) absl::StrAppend(&text, line, "\n");
  RETURN_IF_ERROR(WriteFile(in, text));
  ASSIGN_OR_RETURN(
      const int status,
      RunProgram({program, "model_type=unigram", "byte_fallback=true",
                  absl::StrCat("vocab_size=", options.pieces),
                  absl::StrCat("normalization_rule_name=",
                               options.lower_case ? "nmt_nfkc_cf" : "nmt_nfkc"),
                  "character_coverage=0.9995", "max_sentence_length=65536",
                  "shuffle_input_sentence=false",
                  absl::StrCat("num_threads=", options.threads), "pad_id=0",
                  "unk_id=1", "bos_id=2", "eos_id=3", "pad_piece=<pad>",
                  "unk_piece=<unk>", "bos_piece=[CLS]", "eos_piece=[SEP]",
                  "control_symbols=[MASK]", "hard_vocab_limit=false"},
                 in, out, err));
  if (status != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("training of ", options.pieces, " pieces on ",
                     lines.size(), " lines failed: ", LastLine(err)));
  }
  return ReadFile(out);
}

std::string PieceModelConfigJson() {
  return "{\n"
         "  \"bos_token\": \"[CLS]\",\n"
         "  \"cls_token\": \"[CLS]\",\n"
         "  \"do_lower_case\": false,\n"
         "  \"eos_token\": \"[SEP]\",\n"
         "  \"keep_accents\": true,\n"
         "  \"mask_token\": \"[MASK]\",\n"
         "  \"pad_token\": \"<pad>\",\n"
         "  \"sep_token\": \"[SEP]\",\n"
         "  \"tokenizer_class\": \"AlbertTokenizer\",\n"
         "  \"unk_token\": \"<unk>\"\n"
         "}\n";
}

}  // namespace vitrine
