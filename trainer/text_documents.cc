#include "trainer/text_documents.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/unicode.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

using Json = nlohmann::json;

absl::Status FieldError(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("\"", field, "\": ", what));
}

absl::string_view TypeName(const Json& value) {
  return value.is_number() ? "number" : value.type_name();
}

// A string, or a list of strings with spaces between them.
absl::StatusOr<std::string> TextOfField(const Json& value,
                                        absl::string_view field) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) {
    return FieldError(
        field, absl::StrCat("a string is expected, not ", TypeName(value)));
  }
  std::vector<std::string> parts;
  for (const Json& part : value) {
    if (!part.is_string()) {
      return FieldError(field, absl::StrCat("a list of strings is expected, ",
                                            "not of ", TypeName(part)));
    }
    parts.push_back(part.get<std::string>());
  }
  return absl::StrJoin(parts, " ");
}

bool IsBlank(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isspace(c); });
}

// A file that is cut or was never packed reads as text of noise.
absl::Status CheckGzip(const std::string& path) {
  if (!absl::EndsWith(path, ".gz")) return absl::OkStatus();
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return absl::OkStatus();  // opening it says why
  unsigned char head[2] = {0, 0};
  const size_t read = std::fread(head, 1, 2, file);
  std::fclose(file);
  if (read == 0) return absl::OkStatus();  // empty, as the caller finds out
  if (read == 2 && head[0] == 0x1f && head[1] == 0x8b) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": its name ends in .gz, but it is not gzip"));
}

}  // namespace

absl::StatusOr<std::vector<TextField>> ParseTextFields(absl::string_view text) {
  std::vector<TextField> fields;
  for (absl::string_view name : absl::StrSplit(text, ',')) {
    TextField& field = fields.emplace_back();
    field.optional = absl::ConsumeSuffix(&name, "?");
    field.name = std::string(name);
    if (name.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--fields ", text, ": an empty name"));
    }
  }
  return fields;
}

bool IsJsonLines(absl::string_view path) {
  absl::ConsumeSuffix(&path, ".gz");
  return absl::EndsWith(path, ".jsonl") || absl::EndsWith(path, ".json");
}

std::string TextOf(const Document& document) {
  return absl::StrJoin(document, " ");
}

absl::Status DocumentReader::OpenNext() {
  const std::string& path = sources_[next_++].path;
  RETURN_IF_ERROR(CheckGzip(path));
  ASSIGN_OR_RETURN(lines_, LineReader::Open(path));
  any_ = false;
  return absl::OkStatus();
}

absl::Status DocumentReader::ParseLine(const std::string& line,
                                       Document* document) const {
  const TextSource& source = sources_[next_ - 1];
  if (FindInvalidUtf8(line).has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("not UTF-8 at byte ", *FindInvalidUtf8(line)));
  }
  if (source.fields.empty()) {
    document->push_back(line);
    return absl::OkStatus();
  }
  const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (row.is_discarded()) return absl::InvalidArgumentError("not JSON");
  if (!row.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("an object is expected, not ", TypeName(row)));
  }
  for (const TextField& field : source.fields) {
    const auto it = row.find(field.name);
    if (it == row.end() || it->is_null()) {
      if (field.optional) continue;
      return FieldError(field.name, "missing");
    }
    ASSIGN_OR_RETURN(std::string text, TextOfField(*it, field.name));
    if (!IsBlank(text)) document->push_back(std::move(text));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> DocumentReader::Next(Document* document) {
  std::string line;
  for (;;) {
    if (lines_ == nullptr) {
      if (next_ == sources_.size()) return false;
      RETURN_IF_ERROR(OpenNext());
    }
    ASSIGN_OR_RETURN(const bool read, lines_->Next(&line));
    if (!read) {
      if (!any_) {
        return absl::InvalidArgumentError(
            absl::StrCat(sources_[next_ - 1].path, ": no text in it"));
      }
      lines_.reset();
      continue;
    }
    if (IsBlank(line)) continue;
    document->clear();
    RETURN_IF_ERROR(Annotate(ParseLine(line, document), lines_->where()));
    if (document->empty()) continue;  // fields without text
    any_ = true;
    return true;
  }
}

}  // namespace vitrine
