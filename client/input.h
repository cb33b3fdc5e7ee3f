#pragma once

// What the `vitrine` command reads: lines, items, and requests as JSON.
// Errors are kInvalidArgument and begin with "FILE:LINE: ".

#include <cstdint>
#include <fstream>
#include <istream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

// The non-empty lines of a file, or of standard input where the path is "-".
class LineReader {
 public:
  // kNotFound when it cannot be opened.
  static absl::StatusOr<std::unique_ptr<LineReader>> Open(
      const std::string& path);

  // False at the end. A carriage return before the line's end is taken off.
  bool Next(std::string* line);

  // `status` with the place of the last line before it.
  absl::Status At(const absl::Status& status) const;

 private:
  LineReader(std::string name, std::unique_ptr<std::ifstream> file,
             std::istream* in);

  const std::string name_;
  const std::unique_ptr<std::ifstream> file_;  // null for standard input
  std::istream* const in_;
  int64_t line_ = 0;
};

// {"id" or "item_id", "title", "description", "brand", "categories": text or
// list, "attributes": {name: text, number, boolean or list of them}}; other
// keys are not read, so that catalogue files of many origins do.
absl::StatusOr<v1::Item> ParseItem(absl::string_view json);
absl::StatusOr<std::vector<v1::Item>> ReadItems(const std::string& path);

// A query a line: plain text, or JSON with "query".
absl::StatusOr<std::vector<std::string>> ReadQueries(const std::string& path);

// Lines as they are, which must be valid UTF-8.
absl::StatusOr<std::vector<std::string>> ReadTexts(const std::string& path);

// "Rank", "rank", "PredictInterests", "interests", …; kInvalidArgument lists
// what there is. ListModels is not one of them.
absl::StatusOr<const google::protobuf::MethodDescriptor*> FindMethod(
    absl::string_view name);

struct AnyRequest {
  const google::protobuf::MethodDescriptor* method;
  std::unique_ptr<google::protobuf::Message> message;
};

// A request in protobuf's JSON form, with the method's name under "method", or
// `method` where it has none; null: it must have one.
absl::StatusOr<AnyRequest> ParseRequest(
    absl::string_view json, const google::protobuf::MethodDescriptor* method);

// One line, with the proto's own field names. `zeros`: with fields that are
// zero or empty too, so that a reader finds every key.
std::string ToJsonLine(const google::protobuf::Message& message,
                       bool zeros = true);

}  // namespace vitrine
