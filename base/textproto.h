#pragma once

// Text-format protos as files: an unknown field, a repeated singular field or
// a syntax error is kInvalidArgument with file, line and column.

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace vitrine {

// `name` is what errors call the text. All errors are listed, one a line.
absl::Status ParseTextProto(absl::string_view text, absl::string_view name,
                            google::protobuf::Message* message);

absl::Status ReadTextProto(const std::string& path,
                           google::protobuf::Message* message);

// Fields in the order of their numbers, UTF-8 left readable.
std::string PrintTextProto(const google::protobuf::Message& message);

// The same with a last line, "# sha256: ..." of all that is above it: text that
// was cut at the end of a field parses as well as the whole does. A file
// without that line, or with another digest, is kDataLoss.
absl::Status ReadSealedTextProto(const std::string& path,
                                 google::protobuf::Message* message);
std::string PrintSealedTextProto(const google::protobuf::Message& message);

}  // namespace vitrine
