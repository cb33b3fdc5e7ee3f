#pragma once

// Makes the tokenizer that a model folder holds.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer.h"

namespace vitrine {

struct WordPieceOptions {
  bool lower_case = true;
  bool strip_accents = true;  // follows lower_case unless the folder says so
  bool split_cjk = true;
  int max_word_chars = 100;  // a longer word is [UNK]
};

// `vocab` is vocab.txt's content: one piece a line, its id the line's number
// from 0. kInvalidArgument: no [UNK], [CLS], [SEP] or [PAD]; a repeated piece;
// invalid UTF-8 (the line is named).
absl::StatusOr<std::unique_ptr<Tokenizer>> NewWordPieceTokenizer(
    absl::string_view vocab, const WordPieceOptions& options);

// Looks for vocab.txt (WordPiece), else sentencepiece.bpe.model (XLM-R
// layout), spiece.model or spm.model (ALBERT layout). tokenizer_config.json is
// honoured where present: for WordPiece do_lower_case, strip_accents and
// tokenize_chinese_chars; for ALBERT do_lower_case and keep_accents (absent:
// what the library does alone); tokenizer_class must be one that reads such
// files as we do. kNotFound when the folder holds none of them (the names
// looked for are listed; a lone tokenizer.json is named as unsupported);
// kInvalidArgument names the file and the field or line.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(
    const std::string& folder);

// The files of `folder` that LoadTokenizer reads, those that exist: what an
// import copies. Names, not paths.
std::vector<std::string> TokenizerFiles(const std::string& folder);

}  // namespace vitrine
