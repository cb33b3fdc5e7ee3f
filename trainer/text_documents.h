#pragma once

// Texts for pre-training, one document at a time: plain text files, where a
// line is a document, and JSON lines, of which some fields are taken. Both may
// be gzip.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "trainer/line_reader.h"

namespace vitrine {

struct TextField {
  std::string name;
  bool optional = false;  // rows without it are taken too
};

// "title,description?": names, those with a question mark optional.
absl::StatusOr<std::vector<TextField>> ParseTextFields(absl::string_view text);

struct TextSource {
  std::string path;
  // Of JSON lines, in the order in which they make a document; empty: plain
  // text.
  std::vector<TextField> fields;
};

// FILE.jsonl, FILE.json, with or without .gz.
bool IsJsonLines(absl::string_view path);

// A document's parts: its fields that are there, or its line alone. A list of
// strings (a category path) is one part. None is empty.
using Document = std::vector<std::string>;

// The parts as one text.
std::string TextOf(const Document& document);

// For one thread. Errors name file, line and field, never a text:
// kInvalidArgument: not UTF-8, not a JSON object, a field that is missing or
// of another type, a file without documents, a .gz that is no gzip.
class DocumentReader {
 public:
  explicit DocumentReader(std::vector<TextSource> sources)
      : sources_(std::move(sources)) {}

  // The next document; false after the last. Empty lines are none.
  absl::StatusOr<bool> Next(Document* document);

  // "FILE:17", of the document last read.
  std::string where() const { return lines_->where(); }

 private:
  absl::Status OpenNext();
  absl::Status ParseLine(const std::string& line, Document* document) const;

  const std::vector<TextSource> sources_;
  size_t next_ = 0;  // of sources_, to be opened
  std::unique_ptr<LineReader> lines_;
  bool any_ = false;  // a document in the file that is open
};

}  // namespace vitrine
